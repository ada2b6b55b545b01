"""The rules by which `bn_updates` finds the causes of what it found."""
