"""What the guard of one marker watches, and what these layers would do in the next step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.optim import Optimizer

from pytest_bninvariants.description.describe import describe
from pytest_bninvariants.diagnosis.wording import counted, first_few
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.plugin.guarded_call import naming
from pytest_bninvariants.plugin.marker_guards import MarkerRequest, make_guard
from pytest_bninvariants.plugin.model_lookup import collect_values
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of
from pytest_bninvariants.reporting.lines import printable, wrap

_NAMED = 8


def watched_by(item: pytest.Item, mark: pytest.Mark) -> Iterator[str]:
    """Yield lines that say what the guards of a marker watch, and how it is set now.

    Args:
        item: the test, whose fixtures are made.
        mark: the marker.

    Raises:
        GateError: if there is no model, or nothing to watch; not in a test under `@given`, which
            may draw the model.
    """
    values = collect_values(item, {})
    optimizers = [v.value for v in values.values() if isinstance(v.value, Optimizer)]
    try:
        with naming(mark):
            guard, _ = make_guard(MarkerRequest.from_mark(mark), values)
            guard.start()
    except GateError as error:
        if not hasattr(function_of(item), "hypothesis"):
            raise
        yield from wrap(f"{error}; or @given draws it", first="  ", rest="    ")
        return
    try:
        for part in guard.parts:
            yield from map(printable, _lines(part, optimizers))
    finally:
        guard.stop()


def _lines(guard: Guard, optimizers: list[Optimizer]) -> Iterator[str]:
    model = f"{type(guard.model).__name__} ({guard.source})"
    watched = guard.watched_layers
    if not watched:
        yield from wrap(f"{guard.spelling} on {model}", first="  ", rest="    ")
        return
    title = f"{guard.spelling} on {model}: watches {counted(len(watched), 'layer')}"
    yield from wrap(title, first="  ", rest="    ")
    described = describe(guard.model, optimizers or None, all_layers=True)
    for step, layers in described.by_next_step.items():
        names = [each.name or "the model" for each in layers if each.name in watched]
        if names:
            yield from wrap(f"{step}: {first_few(names, _NAMED)}", first="    ", rest="      ")
