"""A plain library and command that compresses networks; knows nothing of queues, databases or HTTP."""
