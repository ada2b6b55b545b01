"""What a model holds besides parameters and buffers is compared, and put back."""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.snapshot.model_state.plain_state import PlainState
from pytest_bninvariants.snapshot.model_state.restore import ModelState


class Notes:
    """An object of a user's own class, which counts calls."""

    def __init__(self) -> None:
        self.calls, self.nested = 0, {"seen": [1]}

    def __call__(self) -> None:
        self.calls += 1


class Slotted:
    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready = False


class Holder(nn.Module):
    """A module with many kinds of plain state."""

    def __init__(self) -> None:
        super().__init__()
        self.ready, self.count, self.cache = False, 0, {"a": [1, 2]}
        self.history: list[Any] = []
        self.order: OrderedDict[str, int] = OrderedDict(x=1)
        self.recent: deque[int] = deque([1, 2], maxlen=2)
        self.names = {"one"}
        self.notes, self.slotted = Notes(), Slotted()
        self.mean = torch.zeros(2)
        self.norms = [nn.BatchNorm1d(2)]
        self.inner = nn.Linear(2, 2)
        self.parent = (self,)
        self.proxies = [weakref.proxy(self)]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norms[0](x))


def call_notes(holder: Holder) -> None:
    holder.notes()


def grow_nested(holder: Holder) -> None:
    holder.notes.nested["seen"].append(2)


def set_slot(holder: Holder) -> None:
    holder.slotted.ready = True


def patch_child(holder: Holder) -> None:
    holder.inner.forward = lambda x: x  # type: ignore[method-assign]


def hook_child(holder: Holder) -> None:
    holder.inner.register_forward_hook(lambda *_: None)


CHANGES: list[tuple[Callable[[Any], object], str]] = [
    (lambda h: setattr(h, "ready", True), "ready"),
    (lambda h: setattr(h, "count", h.count + 1), "count"),
    (lambda h: setattr(h, "new", 1), "new"),
    (lambda h: delattr(h, "ready"), "ready"),
    (lambda h: h.cache["a"].append(3), "cache"),
    (lambda h: h.cache.update(b=1), "cache.b"),
    (lambda h: h.history.append(1), "history"),
    (lambda h: h.order.move_to_end("x") or h.order.update(y=2), "order.y"),
    (lambda h: h.recent.append(3), "recent"),
    (lambda h: h.names.add("two"), "names"),
    (call_notes, "notes.calls"),
    (grow_nested, "notes.nested"),
    (set_slot, "slotted.ready"),
]


def look(holder: Holder) -> list[object]:
    return [
        {name: value for name, value in vars(holder).items() if not name.startswith("_")}.keys(),
        holder.__dict__.get("ready"),
        holder.count,
        str(holder.cache),
        [*holder.history],
        [*holder.order.items()],
        [*holder.recent],
        sorted(holder.names),
        holder.notes.calls,
        str(holder.notes.nested),
        holder.slotted.ready,
    ]


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=[name for _, name in CHANGES])
def test_a_change_is_named_and_put_back(change: Callable[[Any], object], name: str) -> None:
    holder = Holder()
    before, state = look(holder), PlainState(holder)
    assert state.changes() == []
    change(holder)
    assert name in "\n".join(state.changes())
    state.restore()
    assert look(holder) == before
    assert state.changes() == []


@pytest.mark.parametrize("change", [patch_child, hook_child])
def test_a_change_of_a_layer_of_torch_is_named(change: Callable[[Any], object]) -> None:
    holder = Holder()
    state = PlainState(holder)
    change(holder)
    assert [name.partition(".")[0] for name in state.changes()] == ["inner"]


def test_a_forward_that_is_patched_on_the_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    state = PlainState(Holder())
    monkeypatch.setattr(Holder, "forward", lambda self, x: x)
    assert state.changes() == ["Holder.forward"]


def test_attributes_of_torchs_own_modules_stay_as_a_forward_left_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    state = PlainState(model)
    model._lazy_init_ran = True  # type: ignore[assignment]
    model[0].eval()
    state.restore()
    assert model._lazy_init_ran


def test_layers_in_a_list_and_tensors_in_attributes_are_put_back_too() -> None:
    holder = Holder()
    state = ModelState(holder)
    holder(torch.randn(8, 2))
    holder.mean += 1
    holder.norms[0].eval()
    state.restore()
    assert holder.norms[0].training
    assert holder.norms[0].num_batches_tracked == 0
    assert torch.equal(holder.norms[0].running_mean, torch.zeros(2))
    assert torch.equal(holder.mean, torch.zeros(2))


def test_an_attribute_that_holds_another_tensor_holds_the_old_one_again() -> None:
    holder = Holder()
    mean, state = holder.mean, ModelState(holder)
    holder.mean = torch.ones(2)
    state.restore()
    assert holder.mean is mean


def test_a_scripted_module_has_no_plain_state() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    assert PlainState(scripted).changes() == []
