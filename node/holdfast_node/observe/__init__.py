"""A node's measurements of itself and of its load."""
