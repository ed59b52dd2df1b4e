"""The network as a graph of real layers: lifting, channel labels, cutting, costs."""
