"""`--bn-trace`: which operator, at which line, wrote to a tensor."""
