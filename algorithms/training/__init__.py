"""Training of S seeds at once, without Ray and without any algorithm by name."""
