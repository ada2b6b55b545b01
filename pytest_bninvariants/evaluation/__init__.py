"""Run a module aside, in eval or in another precision, and leave no trace of it."""
