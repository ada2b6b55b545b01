"""How rules find a cause, and how its sentences are worded."""
