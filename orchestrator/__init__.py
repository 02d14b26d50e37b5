"""What runs where, and what is recorded."""
