"""Predict with a trained model, and export it."""
