"""Turn verdicts into text."""
