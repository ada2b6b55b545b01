"""`--bn-audit`: find frozen BN layers whose statistics move, in all tests of a suite."""
