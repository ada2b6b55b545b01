"""The invariant `same_output`."""
