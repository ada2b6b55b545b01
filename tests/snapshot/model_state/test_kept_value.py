"""What a value holds is kept by identity, compared and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from pytest_bninvariants.snapshot.model_state.kept_value import KeptValue

A, B, C = object(), object(), object()


class Plain:
    def __init__(self) -> None:
        self.x, self.y = A, B


def _set(value: Any) -> None:
    value.x = C


def _delete(value: Any) -> None:
    del value.y


def _add(value: Any) -> None:
    value.z = C


CASES: list[tuple[str, Callable[[], Any], Callable[[Any], object], list[object]]] = [
    ("object", Plain, _set, ["x"]),
    ("object", Plain, _delete, ["y"]),
    ("object", Plain, _add, ["z"]),
    ("dict", lambda: {"x": A, "y": B}, lambda value: value.update(x=C), ["x"]),
    ("dict", lambda: {"x": A, "y": B}, lambda value: value.pop("y"), ["y"]),
    ("dict", lambda: {"x": A, "y": B}, lambda value: value.update(z=C), ["z"]),
    ("list", lambda: [A, B], lambda value: value.append(C), [2]),
    ("list", lambda: [A, B], lambda value: value.pop(), [1]),
    ("list", lambda: [A, B], lambda value: value.reverse(), [0, 1]),
    ("list", lambda: deque([A, B], maxlen=2), lambda value: value.append(C), [0, 1]),
    ("set", lambda: {A, B}, lambda value: value.add(C), [id(C)]),
    ("set", lambda: {A, B}, lambda value: value.remove(B), [id(B)]),
]


@pytest.mark.parametrize(("kind", "make", "change", "names"), CASES, ids=range(len(CASES)))
def test_a_change_is_named_and_put_back(
    kind: str, make: Callable[[], Any], change: Callable[[Any], object], names: list[object]
) -> None:
    value = make()
    kept: KeptValue = getattr(KeptValue, f"of_{kind}")("path", value)
    before = kept.read()
    assert kept.changed() == []
    change(value)
    assert kept.changed() == names
    kept.write()
    assert kept.changed() == []
    assert kept.read() == before == kept.held


def test_equal_values_that_are_other_objects_are_a_change() -> None:
    value = {"x": [1]}
    kept = KeptValue.of_dict("path", value)
    value["x"] = [1]
    assert kept.changed() == ["x"]
