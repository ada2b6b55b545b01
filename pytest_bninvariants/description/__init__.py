"""`describe`: what each layer of a model would do in the next step, read off the model as it is."""
