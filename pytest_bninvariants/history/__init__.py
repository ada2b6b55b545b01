"""Samples of running statistics over the steps of a run, or over checkpoints, as a history."""
