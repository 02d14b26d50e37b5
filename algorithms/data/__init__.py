"""Data sets: where they come from, and what is in them."""
