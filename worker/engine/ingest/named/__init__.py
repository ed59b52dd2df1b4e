"""Weights with a named architecture: the file gives numbers, timm or transformers the network, nobody runs the file."""
