"""A look at the layer before the laws: what no law can do without is told once."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from pytest_bninvariants.batchnorm.trials.declaration import SETTING_NAMES, STATE_NAMES
from pytest_bninvariants.batchnorm.trials.layer_under_test import CHANNELS, LayerUnderTest

_HOW = "; declare it, as in {}, or write an adapter: docs/conformance.md"


def require_names(subject: LayerUnderTest, needs: Collection[str]) -> None:
    """Refuse a layer that lacks what laws need and is not declared.

    Args:
        subject: the layer.
        needs: names of settings, and of parts of the state beside those of every BatchNorm.

    Raises:
        ValueError: if it lacks any; the message names them all, and says how to go on.
    """
    missing = list(_missing(subject, needs))
    if missing:
        example = f"{subject.label}[{missing[0][1]}]"
        news = "; ".join(text for text, _ in missing)
        raise ValueError(f"{news}{_HOW.format(repr(example))}")


def _missing(subject: LayerUnderTest, needs: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what is missing, each with an example of a declaration."""
    declaration = subject.declaration
    settings = [
        name
        for name in SETTING_NAMES
        if name in needs and name not in declaration.settings and not subject.accepts(name)
    ]
    if settings:
        first = settings[0]
        example = f"{first}={declaration.defaults[first]!r}"
        yield f"its constructor takes no {' or '.join(settings)}", example
    absent = list(_absent_state(subject, needs))
    if absent:
        name = absent[0].split()[0]
        text = f"a new layer of {CHANNELS} channels has no {', no '.join(absent)}"
        nowhere = name == STATE_NAMES[-1]
        yield text, f"{name}=None" if nowhere else f"{name}='path.of.it'"


def _absent_state(subject: LayerUnderTest, needs: Collection[str]) -> Iterator[str]:
    layer = subject.make()
    for name in STATE_NAMES[:4]:
        value = _read(layer, name)
        if not isinstance(value, Tensor) or value.shape != (CHANNELS,):
            yield f"{name} of shape ({CHANNELS},)"
    counted = STATE_NAMES[-1]
    if counted in needs and subject.counts and _read(layer, counted) is None:
        yield counted


def _read(layer: object, name: str) -> object:
    try:
        return getattr(layer, name, None)
    except Exception:  # a property of a user's class may raise anything
        return None
