"""Run a law on one layer: the layer under test, the lines that run on it, and the report."""
