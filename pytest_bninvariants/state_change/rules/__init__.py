"""Why frozen state moved, as rules."""
