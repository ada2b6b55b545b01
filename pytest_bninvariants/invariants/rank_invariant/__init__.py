"""The invariant `rank_invariant`."""
