"""The invariant `bn_updates`."""
