"""What is recorded of a sweep, and by whom."""
