"""Read, draw and write images and figures."""
