"""`--bn-list`: what the tests of a session watch."""
