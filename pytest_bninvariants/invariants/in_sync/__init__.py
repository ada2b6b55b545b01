"""The invariant `in_sync`."""
