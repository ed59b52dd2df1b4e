"""The factorize step."""
