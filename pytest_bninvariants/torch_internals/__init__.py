"""Every private name of torch that this package uses, and what happens without it."""
