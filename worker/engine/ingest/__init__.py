"""Strict readers of uploads; nothing in a file is ever run."""
