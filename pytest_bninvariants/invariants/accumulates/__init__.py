"""The invariant `accumulates`."""
