"""Networks as people really build them, small and with random weights, by family."""
