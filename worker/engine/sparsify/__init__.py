"""Setting weights to zero where they are, and keeping them there."""
