"""Networks as stacks over seeds and members, and how their arithmetic is called."""
