"""A look at the layer before the laws: what no law can do without is told once."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.trials.declaration import SETTING_NAMES, STATE_NAMES
from pytest_bninvariants.batchnorm.trials.layer_under_test import (
    CHANNELS,
    HOW_TO_ADAPT,
    LayerUnderTest,
)

_COUNTER = STATE_NAMES[-1]
_STATISTICS = ("running_mean", "running_var")


def require_names(subject: LayerUnderTest, needs: Collection[str]) -> None:
    """Refuse a layer that lacks what laws need and is not declared.

    Args:
        subject: the layer.
        needs: names of settings, and of parts of the state beside those of every BatchNorm.

    Raises:
        ValueError: if it lacks any; the message names them all, and says how to go on.
    """
    layer = subject.make()
    settings = list(_missing_settings(subject, needs))
    absent = list(_absent_state(subject, layer, needs))
    if not settings and not absent:
        return
    news = [f"its constructor takes no {' or '.join(settings)}"] if settings else []
    if absent:
        shaped = [name if name == _COUNTER else f"{name} of shape ({CHANNELS},)" for name in absent]
        news.append(f"a new layer of {CHANNELS} channels has no {', no '.join(shaped)}")
    if "momentum" in settings and _is_frozen(subject, layer):
        news.append(
            "training leaves its statistics as they are: if it is frozen on purpose, choose the "
            "laws frozen"
        )
    defaults = subject.declaration.defaults
    declared = {name: repr(defaults[name]) for name in settings} | _places(layer, absent)
    example = f"{subject.label}[{','.join(f'{name}={value}' for name, value in declared.items())}]"
    raise ValueError(f"{'; '.join(news)}; declare it, as in {example!r}, or {HOW_TO_ADAPT}")


def _missing_settings(subject: LayerUnderTest, needs: Collection[str]) -> Iterator[str]:
    declared = subject.declaration.settings
    for name in SETTING_NAMES:
        if name in needs and name not in declared and not subject.accepts(name):
            yield name


def _absent_state(
    subject: LayerUnderTest, layer: nn.Module, needs: Collection[str]
) -> Iterator[str]:
    for name in STATE_NAMES[:4]:
        value = _read(layer, name)
        if not isinstance(value, Tensor) or value.shape != (CHANNELS,):
            yield name
    if _COUNTER in needs and subject.counts and _read(layer, _COUNTER) is None:
        yield _COUNTER


def _read(layer: object, name: str) -> object:
    try:
        return getattr(layer, name, None)
    except Exception:  # a property of a user's class may raise anything
        return None


def _places(layer: nn.Module, absent: Collection[str]) -> dict[str, str]:
    """Return where each absent part of the state may be: where a tensor of its name is."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    places = {}
    for name in absent:
        shape = () if name == _COUNTER else (CHANNELS,)
        found = [
            path
            for path, value in tensors.items()
            if path.rpartition(".")[2] == name and value.shape == shape
        ]
        nowhere = "None" if name == _COUNTER else "'path.of.it'"
        places[name] = repr(found[0]) if len(found) == 1 else nowhere
    return places


def _is_frozen(subject: LayerUnderTest, layer: nn.Module) -> bool:
    """Tell whether a batch in training leaves the statistics of the layer as they were."""
    before = [_read(layer, name) for name in _STATISTICS]
    if not all(isinstance(each, Tensor) for each in before):
        return False
    kept = [each.clone() for each in before if isinstance(each, Tensor)]
    try:
        with torch.no_grad():
            layer.train()(
                torch.arange(8.0 * CHANNELS).view(8, CHANNELS, *[1] * (subject.dims[0] - 2))
            )
        after = [getattr(layer, name) for name in _STATISTICS]
    except Exception:  # a layer that cannot be called is told of by the laws
        return False
    return all(torch.equal(*pair) for pair in zip(kept, after, strict=True))
