"""Demonstrations from data to drawn predictions, and the page in the browser."""
