"""Weights in fewer bytes, computed with in single precision."""
