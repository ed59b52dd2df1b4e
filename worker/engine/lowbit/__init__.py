"""Weights of few bits: integers in groups, ternary, binary and codebooks, after training or with it."""
