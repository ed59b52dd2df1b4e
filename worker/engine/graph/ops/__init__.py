"""The registry: what is allowed, and the layer, channel, rewrite and cost rule of each operator."""
