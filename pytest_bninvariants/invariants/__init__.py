"""The invariants: a guard for each, that holds around a step."""
