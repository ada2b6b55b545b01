"""Keep what a model holds beside its parameters and buffers, and compare it."""
