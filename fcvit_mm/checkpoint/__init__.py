"""Read checkpoints safely, and have MMEngine do the same."""
