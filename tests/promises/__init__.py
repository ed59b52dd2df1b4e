"""What the service promises under faults, each promise measured with real processes: `make promises`."""
