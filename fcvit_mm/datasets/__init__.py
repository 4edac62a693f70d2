"""Example datasets that are generated, and checks of a user's own."""
