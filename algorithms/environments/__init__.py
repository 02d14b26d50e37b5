"""What is known of each environment, and whole episodes in it."""
