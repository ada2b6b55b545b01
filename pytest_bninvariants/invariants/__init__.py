"""The engine: what must hold around a step, without pytest."""
