"""What people do with a model."""

from tests.oracle.actions import forwards, loads, modes, training, writes

__all__ = ["forwards", "loads", "modes", "training", "writes"]
