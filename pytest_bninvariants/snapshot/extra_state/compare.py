"""Compare what a model holds beside its parameters and buffers, before and after a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pytest_bninvariants.snapshot.kept_tensor import TensorCopy
from pytest_bninvariants.snapshot.tensor_bytes import same_bytes
from pytest_bninvariants.snapshot.value_difference import describe_difference
from pytest_bninvariants.verdict import Change


class ExtraValue(NamedTuple):
    """One value beside a model's parameters and buffers.

    Args:
        layer: qualified name of the module that holds it.
        value: its text, or a copy of a tensor.
    """

    layer: str
    value: str | TensorCopy


def extra_changes(
    before: Mapping[str, ExtraValue], now: Mapping[str, ExtraValue]
) -> Iterator[Change]:
    """Yield a change for each value that differs.

    One that is gone is none: libraries move scales from a weight to its module at first use.
    """
    for name, old in before.items():
        if name in now and not _is_equal(old.value, now[name].value):
            text = _describe(old.value, now[name].value)
            yield Change(name=name, layer=old.layer, kind="extra", text=text)


def _is_equal(old: str | TensorCopy, new: str | TensorCopy) -> bool:
    if isinstance(old, str) or isinstance(new, str):
        return old == new
    return (
        old.spec[:3] == new.spec[:3]
        and old.shapes == new.shapes
        and len(old.content) == len(new.content)
        and all(map(same_bytes, old.content, (part.to(old.spec.device) for part in new.content)))
    )


def _describe(old: str | TensorCopy, new: str | TensorCopy) -> str:
    if isinstance(old, TensorCopy) and isinstance(new, TensorCopy):
        if old.spec[:2] == new.spec[:2] and len(old.content) == len(new.content) == 1:
            moved = new.content[0].to(old.spec.device)
            return describe_difference(old.content[0], moved, old.spec.dtype, old.shapes[0])
        return f"{old.spec} -> {new.spec}" if old.spec != new.spec else "content differs"
    texts = [each if isinstance(each, str) else str(each.spec) for each in (old, new)]
    return " -> ".join(text if len(text) <= 40 else f"{text[:37]}..." for text in texts)
