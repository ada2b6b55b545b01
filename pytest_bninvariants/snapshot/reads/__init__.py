"""Read what devices hold, together."""
