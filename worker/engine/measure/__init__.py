"""Metrics, sizes and latencies, of the engine and of finished files."""
