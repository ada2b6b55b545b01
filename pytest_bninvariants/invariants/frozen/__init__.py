"""The invariants `frozen_bn` and `frozen`."""
