"""Measuring what each group of channels is worth."""
