"""Hear what torch does while a guard watches: calls, modes, optimizer steps, loads, collectives."""
