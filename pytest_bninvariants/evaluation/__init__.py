"""Run a module in eval or in another precision, and leave everything as it was."""
