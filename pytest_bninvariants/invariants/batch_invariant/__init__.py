"""The invariant `batch_invariant`."""
