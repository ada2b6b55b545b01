"""Fingerprints tell bytes apart by what they are and where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, InvariantHazard, frozen
from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot.fingerprints import (
    CHUNK,
    Method,
    _weights,
    fingerprints,
    method_on,
)

METHODS: list[Method] = ["xxhash", "torch operators"]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    chosen: Method = request.param
    if chosen == "xxhash":
        pytest.importorskip("xxhash")
    return chosen


def of(values: Tensor, method: Method) -> list[int]:
    return fingerprints(values.view(-1).view(torch.uint8), method).view(torch.int64).tolist()


PAIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows swapped": lambda x: x[torch.tensor([1, 0, *range(2, len(x))])],
    "two signs flipped": lambda x: x * torch.tensor([[-1.0], *[[1.0]] * (len(x) - 2), [-1.0]]),
    "negated": torch.neg,
    "all of one value": lambda x: torch.full_like(x, 3.0),
    "shifted": lambda x: x.roll(1),
    "shifted by a word": lambda x: x.view(-1).roll(2),
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("change", PAIRS.values(), ids=PAIRS)
def test_what_plain_sums_and_xors_miss_is_told_apart(
    change: Callable[[Tensor], Tensor], method: Method
) -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert of(x, method) != of(change(x), method)


def test_constants_are_told_apart(method: Method) -> None:
    found = [of(torch.full((4096,), value), method)[0] for value in (0.0, 1.0, -1.0, 3.0, 7.0)]
    assert len(set(found)) == len(found)


def test_no_flip_of_two_bits_goes_unnoticed(method: Method) -> None:
    numbers = random.Random(0)
    x = torch.randn(256, generator=torch.Generator().manual_seed(0))
    expected, raw = of(x, method), x.view(torch.uint8)
    for _ in range(500):
        flips = [(numbers.randrange(len(raw)), 1 << numbers.choice((0, 7))) for _ in range(2)]
        if flips[0] != flips[1]:
            for byte, mask in flips:
                raw[byte] ^= mask
            assert of(x, method) != expected
            for byte, mask in flips:
                raw[byte] ^= mask
    assert of(x, method) == expected


@pytest.mark.parametrize("count", [1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_each_chunk_has_one_which_depends_on_its_bytes_alone(count: int, method: Method) -> None:
    room = torch.randint(0, 256, (count + 16,), dtype=torch.uint8)
    flat = room[3 : 3 + count]
    found = of(flat.clone(), method)
    assert len(found) == -(-count // CHUNK)
    assert of(flat, method) == found
    flat[-1] ^= 1
    changed = of(flat, method)
    assert changed[:-1] == found[:-1]
    assert changed[-1] != found[-1]


def test_a_gpu_is_asked_by_operators_of_torch() -> None:
    assert method_on(torch.device("cuda")) == "torch operators"


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3 * CHUNK // 4 + 10))
        self.small = nn.Parameter(torch.zeros(3))

    def forward(self) -> None:
        pass


def told(write: Callable[[Large], object], limit: int | None = 1000) -> dict[str, str]:
    model = Large()
    try:
        with override(snapshot_budget=limit), torch.no_grad(), frozen(model):
            model()
            write(model)
    except FrozenStateChanged as failure:
        return {change.name: change.text for change in failure.verdict.changes}
    return {}


def test_a_change_is_told_by_chunk_and_by_how_it_was_found() -> None:
    how = method_on(torch.device("cpu"))
    chunk = CHUNK // 4
    texts = told(lambda model: model.weight[chunk + 5].fill_(1.0))
    at = f"[{chunk}:{2 * chunk}]"
    assert texts == {"weight": f"1 of 4 fingerprints by {how}, first in flatten(){at}"}
    texts = told(lambda model: model.weight[-1].fill_(1.0))
    at = f"[{3 * chunk}:{3 * chunk + 10}]"
    assert texts == {"weight": f"1 of 4 fingerprints by {how}, first in flatten(){at}"}


def test_small_tensors_are_kept_all_the_same() -> None:
    texts = told(lambda model: model.small.add_(1.0))
    assert texts == {"small": "3 of 3 values, max |d| 1.0e+00 at [0]: 0.0 -> 1.0"}


def test_what_is_within_the_budget_is_kept() -> None:
    (text,) = told(lambda model: model.weight[7].fill_(1.0), limit=2**23).values()
    assert text.endswith("max |d| 1.0e+00 at [7]: 0.0 -> 1.0")


def test_the_next_such_guard_keeps_what_fingerprints_told_of_as_far_as_the_budget_goes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.zeros(5000))
            self.other = nn.Parameter(torch.zeros(5000))

    def change(model: nn.Module, names: Iterable[str]) -> None:
        with torch.no_grad():
            for name in names:
                getattr(model, name)[7] = 1.0

    def told(limit: int, *names: str, exclude: str = "absent") -> list[str]:
        model = Two()
        model.absent = nn.Parameter(torch.zeros(2))
        guard = frozen(model, exclude=exclude)
        with override(snapshot_budget=limit), pytest.raises(FrozenStateChanged) as caught, guard:
            change(model, names)
        return [change.text for change in caught.value.verdict.changes]

    by_fingerprint = f"1 of 1 fingerprints by {method_on(torch.device('cpu'))}, first in flatten()"
    by_value = "1 of 5000 values, max |d| 1.0e+00 at [7]: 0.0 -> 1.0"
    assert told(0, "one", "other") == [f"{by_fingerprint}[0:5000]"] * 2
    assert told(0, "one", "other") == [f"{by_fingerprint}[0:5000]"] * 2
    assert told(30_000, "one", "other") == [by_value, f"{by_fingerprint}[0:5000]"]
    assert told(30_000, "other") == [by_value]
    assert told(30_000, "one") == [f"{by_fingerprint}[0:5000]"]
    assert told(30_000, "other", exclude="a*") == [f"{by_fingerprint}[0:5000]"]


def test_equal_bytes_elsewhere_are_no_change() -> None:
    def replace(model: Large) -> None:
        model.weight = nn.Parameter(torch.zeros(model.weight.numel() * 2)[::2])

    with pytest.warns(InvariantHazard, match="replaced by a tensor with equal values"):
        assert told(replace) == {}


def test_a_cast_is_told_without_a_look_at_the_bytes() -> None:
    assert told(lambda model: model.half()) == {
        "weight": "float32 -> float16",
        "small": "float32 -> float16",
    }


def test_each_word_of_a_chunk_has_an_odd_weight_of_its_own() -> None:
    weights = _weights(torch.device("cpu"))
    assert bool((weights & 1).all())
    assert len(weights.unique()) > 0.999 * CHUNK / 8
