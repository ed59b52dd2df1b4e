"""HTTP routes: thin; each parses, calls a service, answers."""
