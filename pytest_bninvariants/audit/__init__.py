"""`--bn-audit`: which BN layers of frozen models move their statistics, over a whole suite."""
