"""What people do with a model."""

from tests.oracle.actions import conversions, forwards, loads, modes, training, writes

__all__ = ["conversions", "forwards", "loads", "modes", "training", "writes"]
