"""Observe what torch does: module calls, modes, optimizer steps, loads, collectives."""
