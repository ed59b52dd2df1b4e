"""Starting the whole service on one machine, and the configuration to deploy it."""
