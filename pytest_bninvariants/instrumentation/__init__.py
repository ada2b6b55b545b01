"""Hear what torch does while a guard watches: calls, modes, steps, loads, writes."""
