"""Metrics beyond those of the toolboxes."""
