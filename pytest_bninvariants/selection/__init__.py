"""What is watched: names, patterns, and which modules are BN layers."""
