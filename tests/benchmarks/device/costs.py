"""What guards cost on a device: waits of the host, memory, and time beside a comparison by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import torch

from pytest_bninvariants import InvariantBroken, bn_updates, frozen, frozen_bn, trains
from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot.arena import arena
from tests.benchmarks.device.meters import can_count_waits, peak_of, seconds, waits
from tests.benchmarks.device.networks import Training
from tests.benchmarks.device.report import Report
from tests.benchmarks.speed.workloads import WORKLOADS, small

_MOST_WAITS, _MOST_WAITS_BROKEN = 4, 12
_BATCHES = 2**25  # bytes in which a layer's batch fits several times, in float64
Guard = Callable[[Training], AbstractContextManager[object]]
_GUARDS: dict[str, tuple[Guard, bool]] = {
    "frozen_bn(model)": (lambda training: frozen_bn(training.model), True),
    "bn_updates(model)": (lambda training: bn_updates(training.model), False),
    "trains(model)": (lambda training: trains(training.model), False),
}


def count_waits(report: Report) -> None:
    """Count how often the host waits in a guarded step, beyond a bare one."""
    if not can_count_waits(report.device):
        report.say(f"- left out: waits for {report.device} cannot be counted")
        return
    lines = []
    for name, (guard, is_frozen) in _GUARDS.items():
        training = _trained(report, frozen=is_frozen)
        bare = _waits_of(report, training, nullcontext())
        around = _waits_of(report, training, guard(training)) - bare
        lines.append([name, str(len(training.layers)), str(bare), str(around)])
        if is_frozen:
            report.check(f"{name} that holds waits {around} times", holds=around <= _MOST_WAITS)
    training = _trained(report, frozen=False)
    bare = _waits_of(report, training, nullcontext())
    broken = _waits_of(report, training, frozen_bn(training.model)) - bare
    what = f"frozen_bn(model) that is broken waits {broken} times"
    report.check(what, holds=broken <= _MOST_WAITS_BROKEN)
    report.table(["guard", "BN layers", "waits of a bare step", "waits that it adds"], lines)


def _trained(report: Report, *, frozen: bool) -> Training:
    training = Training(report.device, tiny=report.tiny, batch=8, frozen=frozen)
    training.step()
    training.step()
    return training


def _waits_of(report: Report, training: Training, guard: AbstractContextManager[object]) -> int:
    with waits(report.device) as count, suppress(InvariantBroken), guard:
        training.step()
    return count[0]


def memory(report: Report) -> None:
    """Measure the peak of a device's memory with a guard and without."""
    lines = []
    everything: dict[str, tuple[Guard, bool]] = {
        **_GUARDS,
        "frozen(model)": (lambda training: frozen(training.model), True),
    }
    for name, (guard, is_frozen) in everything.items():
        training = _trained(report, frozen=is_frozen)
        size = sum(each.nbytes for each in training.model.state_dict().values())
        for budget in (None, 0):
            bare = _peak(report, training, nullcontext(), budget)
            if bare is None:
                report.say(f"- left out: {report.device} does not tell its peak")
                return
            added = (_peak(report, training, guard(training), budget) or 0) - bare
            lines.append([name, str(budget), *(f"{n / 2**20:.1f}" for n in (size, bare, added))])
            what = f"{name}, bn_snapshot_budget {budget}: the peak grows by {added / size:.2f}"
            what += " times the model's bytes"
            report.check(what, holds=added <= 2.2 * size + _BATCHES)
    head = ["guard", "bn_snapshot_budget", "model, MiB", "peak of a bare step, MiB", "it adds, MiB"]
    report.table(head, lines)


def _peak(
    report: Report, training: Training, guard: AbstractContextManager[object], budget: int | None
) -> int | None:
    def run() -> None:
        with override(snapshot_budget=budget), suppress(InvariantBroken), _quiet(), guard:
            training.step()

    arena.release(torch.device(report.device))
    return peak_of(report.device, run)


def _quiet() -> AbstractContextManager[object]:
    return warnings.catch_warnings(action="ignore")


def ratios(report: Report) -> None:
    """Time guards beside what people write by hand, and around a training step."""
    rounds = 1 if report.tiny else 15
    with _quiet():
        head = ["", "what", "tensors", "by hand, ms", "later guard", "fingerprint", "clone + equal"]
        report.table(head, _workload_rows(report, rounds))
        lines = _step_rows(report, rounds)
        report.table(["guard", "a bare step takes, ms", "it adds, %"], lines)


def _workload_rows(report: Report, rounds: int) -> Iterator[list[str]]:
    makers = {"small": small} if report.tiny else WORKLOADS
    for name, make in makers.items():
        workload = make().to(report.device)

        def by_fingerprint(guard: Callable[[], None] = workload.by_guard) -> None:
            with override(snapshot_budget=0):
                guard()

        by_fingerprint()
        workload.by_guard()
        ways = (workload.by_hand, workload.by_guard, by_fingerprint, workload.bound)
        hand, *others = (seconds(report.device, way, rounds) for way in ways)
        what = getattr(make, "what", "three linear layers")
        numbers = [f"{hand * 1e3:.2f}", *(f"{other / hand:.2f}" for other in others)]
        yield [name, what, f"{workload.count:,}", *numbers]
        arena.release(torch.device(report.device))


def _step_rows(report: Report, rounds: int) -> Iterator[list[str]]:
    for name, (guard, is_frozen) in _GUARDS.items():
        training = _trained(report, frozen=is_frozen)

        def guarded(guard: Guard = guard, training: Training = training) -> None:
            with guard(training):
                training.step()

        guarded()
        bare = seconds(report.device, training.step, rounds)
        added = seconds(report.device, guarded, rounds) / bare - 1
        yield [name, f"{bare * 1e3:.2f}", f"{added * 100:.1f}"]
