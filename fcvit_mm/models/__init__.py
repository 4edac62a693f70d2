"""FCViT: the network, its weights, and what is built around it."""
