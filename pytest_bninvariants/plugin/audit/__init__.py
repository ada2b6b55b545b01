"""`--bn-audit` in a pytest session: its hooks, and the file of findings that are expected."""
