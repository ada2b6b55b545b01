"""What people do with a model."""

from tests.oracle.actions import averages, conversions, forwards, loads, modes, training, writes

__all__ = ["averages", "conversions", "forwards", "loads", "modes", "training", "writes"]
