"""Start the ranks of a distributed run, join them, and tell how each of them ended."""
