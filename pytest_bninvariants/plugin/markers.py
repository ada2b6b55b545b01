"""What the markers may say, and which a test has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

_FREEZING = ("parameters", "buffers", "allow_batch_stats", "exclude", "trains")
_SIGNATURE = (
    "(*modules, parameters=True, buffers=True, allow_batch_stats=False, exclude=(), trains=None, "
    "model=None)"
)


class Marker:
    """One marker that puts a guard around a test's call.

    Args:
        signature: its arguments, as `pytest --markers` shows them.
        help: what it holds, as `pytest --markers` says it.
        options: the keywords that it passes on to the guard.
        finds_model: whether it takes `model=`, or finds the only one there is.
    """

    def __init__(
        self, signature: str, help: str, options: tuple[str, ...], finds_model: bool = True
    ) -> None:
        self.signature = signature
        self.help = help
        self.accepted = (*options, "model") if finds_model else options


MARKERS = {
    "frozen_bn": Marker(
        signature=_SIGNATURE,
        help="fail the test if its call changes a BN layer in these modules (default: in the whole "
        "model), or lets one normalise with batch statistics.",
        options=_FREEZING,
    ),
    "frozen": Marker(
        signature=_SIGNATURE,
        help="fail the test if its call changes any parameter or buffer in these modules (default: "
        "the whole model).",
        options=_FREEZING,
    ),
    "bn_updates": Marker(
        signature="(*modules, times=1, per='step', exclude=(), model=None)",
        help="fail the test if in its call a BN layer in these modules (default: each that is in "
        "training) updates its running statistics another number of times, or otherwise than "
        "BatchNorm does.",
        options=("times", "per", "exclude"),
    ),
    "trains": Marker(
        signature="(*modules, buffers=True, exclude=(), model=None)",
        help="fail the test if in its call a parameter in these modules (default: each with "
        "requires_grad=True) does not move, or a BN layer there updates no running statistics.",
        options=("buffers", "exclude"),
    ),
    "same_output": Marker(
        signature="(*modules, inputs, rtol=0.0, atol=0.0, model=None)",
        help="fail the test if its call changes what these modules (default: the model) return "
        "in eval for the inputs, which are fixtures.",
        options=("inputs", "rtol", "atol"),
    ),
    "batch_invariant": Marker(
        signature="(*modules, inputs, rtol=0.0, atol=0.0, examples=20, model=None)",
        help="fail the test if after its call a sample's output of these modules (default: the "
        "model) in eval depends on the other samples of the inputs, which are fixtures.",
        options=("inputs", "rtol", "atol", "examples"),
    ),
    "in_sync": Marker(
        signature="(one, other=None, *modules, parameters=False, exclude=(), decay=None, "
        "buffers='copied')",
        help="fail the test if after its call two models, which are fixtures, or one on all ranks, "
        "have other buffers, or with decay= the other is not the moving average of one, for which "
        "parameters=True is the default and buffers= says what its buffers are.",
        options=("parameters", "exclude", "decay", "buffers"),
        finds_model=False,
    ),
}


def lines() -> Iterator[str]:
    """Yield the lines of `pytest --markers`."""
    for name, marker in MARKERS.items():
        yield f"{name}{marker.signature}: {marker.help}"


def spelled(mark: pytest.Mark) -> str:
    """Return a marker as its user wrote it."""
    arguments = [repr(value) for value in mark.args]
    arguments += [f"{name}={value!r}" for name, value in mark.kwargs.items()]
    return f"@pytest.mark.{mark.name}" + (f"({', '.join(arguments)})" if arguments else "")


def marks_of(item: pytest.Item) -> list[pytest.Mark]:
    """Return a test's markers that ask for a guard, its module's and class's first, each once."""
    found = {spelled(mark): mark for mark in item.iter_markers() if mark.name in MARKERS}
    return list(found.values())[::-1]
