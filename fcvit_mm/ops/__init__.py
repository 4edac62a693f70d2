"""How a layer is run fast; nothing here knows FCViT's architecture."""
