"""The invariant `trains`."""
