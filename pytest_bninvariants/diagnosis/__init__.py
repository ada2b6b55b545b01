"""How a cause is found by rules, and how its sentences are worded."""
