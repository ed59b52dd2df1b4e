"""8-bit integers by region: what suits each layer."""
