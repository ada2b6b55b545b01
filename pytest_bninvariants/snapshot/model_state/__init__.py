"""Keep a whole model's state, plain attributes included, to compare it and to put it back."""
