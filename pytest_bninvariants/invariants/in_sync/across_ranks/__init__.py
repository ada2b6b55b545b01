"""`in_sync(model)`: a model is the same on all ranks of a distributed run."""
