"""A snapshot's memory serves the next, and never two at a time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch
from torch import nn

from pytest_bninvariants import FrozenStateChanged, frozen
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot.arena import Arena, arena
from tests.watching import watched

CPU = torch.device("cpu")


class Large(nn.Linear):
    """A layer large enough for the arena."""

    def __init__(self, size: int = 100) -> None:
        super().__init__(size, size)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    arena.release(CPU)
    yield
    arena.release(CPU)


def run(model: nn.Linear) -> None:
    model(torch.ones(1, model.in_features))


def test_memory_that_was_let_go_serves_again() -> None:
    own = Arena()
    region = own.reserve(1000, CPU)
    start = region.take(10).data_ptr()
    del region
    assert own.idle_on(CPU) == 1000
    assert own.reserve(500, CPU).take(10).data_ptr() == start


@pytest.mark.parametrize("count", [0, 1000, 2**22, 2**23 + 1])
def test_memory_of_any_size_can_be_written_and_is_gone_with_the_arena(count: int) -> None:
    own = Arena()
    region = own.reserve(count, CPU)
    assert int(region.take(count).fill_(1).sum()) == count
    del region
    assert own.idle_on(CPU) == count
    own.release(CPU)
    assert own.idle_on(CPU) == 0


def test_memory_that_is_held_does_not() -> None:
    own = Arena()
    held = own.reserve(1000, CPU)
    other = own.reserve(1000, CPU)
    assert held.take(10).data_ptr() != other.take(10).data_ptr()


def test_the_largest_stays() -> None:
    own = Arena()
    regions = [own.reserve(count, CPU) for count in (100, 3000, 200)]
    regions.clear()
    assert own.idle_on(CPU) == 3000
    own.release(CPU)
    assert own.idle_on(CPU) == 0


def test_what_is_taken_from_one_region_does_not_overlap_and_is_aligned() -> None:
    region = Arena().reserve(1000, CPU)
    parts = [region.take(count).fill_(count) for count in (3, 64, 1, 100)]
    assert [int(part.max()) for part in parts] == [3, 64, 1, 100]
    assert [int(part.min()) for part in parts] == [3, 64, 1, 100]
    assert not any(part.storage_offset() % 8 for part in parts)


def test_memory_reserved_in_inference_mode_can_be_written_outside_of_it() -> None:
    model = Large()
    with torch.inference_mode(), frozen(model) as guard:
        run(model)
    assert watched(guard) == (1, 2)
    with frozen(model) as guard:
        run(model)
    assert watched(guard) == (1, 2)


def test_a_guard_leaves_its_memory_to_the_next() -> None:
    model = Large()
    with frozen(model):
        run(model)
    kept = arena.idle_on(CPU)
    assert kept >= model.weight.nbytes
    for _ in range(50):
        with frozen(model) as guard:
            assert arena.idle_on(CPU) == 0
            run(model)
        assert watched(guard) == (1, 2)
    assert arena.idle_on(CPU) == kept


def broken(model: nn.Linear) -> None:
    with contextlib.suppress(FrozenStateChanged), frozen(model), torch.no_grad():
        model.weight.add_(1)


def test_a_guard_that_fails_leaves_it_too() -> None:
    model = Large()
    with earlier_runs.remembering(None):
        broken(model)
    gc.collect()
    assert arena.idle_on(CPU) >= model.weight.nbytes


def test_what_is_remembered_for_a_rerun_is_not_written_over() -> None:
    model = Large()
    with earlier_runs.remembering(earlier_runs.EarlierRuns()):
        assert earlier_runs.active is not None
        earlier_runs.active.begin_run()
        was = float(model.weight[0, 0].detach())
        broken(model)
        for _ in range(3):
            with frozen(Large()) as other:
                run(other.model)  # type: ignore[arg-type]
        earlier_runs.active.begin_run()
        with pytest.raises(FrozenStateChanged) as caught, frozen(model):
            run(model)
    change = next(c for c in caught.value.verdict.changes if c.name == "weight")
    assert change.text.startswith("10000 of 10000 values, max |d| 1.0e+00")
    assert float(model.weight[0, 0].detach()) == pytest.approx(was + 1)


def test_guards_that_are_open_at_the_same_time_keep_what_each_saw() -> None:
    first, second = Large(), Large()
    outer, inner = frozen(first), frozen(second)
    outer.start()
    inner.start()
    with torch.no_grad():
        first.weight[0, 0] += 1
    run(first)
    run(second)
    assert inner.finish().holds
    with frozen(second) as third:
        run(second)
    assert watched(third) == (1, 2)
    assert outer.finish().changed_tensors == ("weight",)


def test_guards_in_threads_keep_what_each_saw() -> None:
    judged, wrong = [], []
    together = Barrier(4, timeout=60)  # so that a thread that raises fails the test

    def guard(number: int) -> None:
        model = Large(50 + number)
        for turn in range(20):
            guard = frozen(model)
            guard.start()
            together.wait()
            if (turn + number) % 2:
                with torch.no_grad():
                    model.weight[number, turn] += 1
            run(model)
            together.wait()
            verdict = guard.finish()
            judged.append(number)
            if verdict.changed_tensors != (("weight",) if (turn + number) % 2 else ()):
                wrong.append(verdict.changed_tensors)

    threads = [Thread(target=guard, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(judged) == 4 * 20


def test_memory_is_given_back_where_fingerprints_have_to_do() -> None:
    model = Large()
    with frozen(model):
        run(model)
    with override(snapshot_budget=1000), frozen(model) as guard:
        run(model)
    assert watched(guard) == (1, 2)
    assert arena.idle_on(CPU) == 0
