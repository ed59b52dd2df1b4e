"""Fine-tuning, with labels, with the original as teacher, or both."""
