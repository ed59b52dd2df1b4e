"""8-bit weights, and inputs that become 8-bit integers at run time."""
