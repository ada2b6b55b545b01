"""Turn verdicts into text, HTML and plain data."""
