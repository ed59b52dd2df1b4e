"""Data sets: reading, splitting, transforming."""
