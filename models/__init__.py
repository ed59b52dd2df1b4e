"""The contract both processes share: tables, statuses, transitions, spec, events, errors."""
