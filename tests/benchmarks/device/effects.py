"""What guards find on a device, and what they leave as it was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pytest_bninvariants import bn_updates, frozen_bn, same_output, trains
from tests.benchmarks.accuracy import detection
from tests.benchmarks.device.networks import Training
from tests.benchmarks.device.report import Report
from tests.snapshot.flips import ways_on


def flips(report: Report) -> None:
    """Flip bits of tensors on the device, and leave as many steps untouched."""
    ways = len(ways_on(report.device))
    for how, times in (("exact", 10_000), ("torch operators", 1_000)):
        times = 40 if report.tiny else times
        failures = detection.flips(how, times, report.device)
        what = f"{how}: {times} flips by {ways} ways, {len(failures)} missed"
        report.check(what, holds=not failures)
        for failure in failures[:10]:
            report.say(f"  - {failure}")
        untouched = times // 8
        alarms = detection.alarms(how, untouched, report.device)
        report.check(f"{how}: {untouched} untouched steps, {alarms} alarms", holds=not alarms)


def neutrality(report: Report) -> None:
    """Train with and without guards: losses, weights and random states are equal, bit for bit."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts, as it has not yet
    torch.use_deterministic_algorithms(True, warn_only=True)
    bare = _outcome(report, lambda training: nullcontext(), frozen=False)
    again = _outcome(report, lambda training: nullcontext(), frozen=False)
    report.check("two bare runs are equal, bit for bit", holds=bare == again)
    bare_frozen = _outcome(report, lambda training: nullcontext(), frozen=True)
    guards: dict[str, tuple[Callable[[Training], AbstractContextManager[object]], bool]] = {
        "frozen_bn": (lambda training: frozen_bn(training.model), True),
        "bn_updates": (lambda training: bn_updates(training.model), False),
        "trains": (lambda training: trains(training.model), False),
        "same_output": (_same_output_of_the_stem, True),
    }
    for name, (guard, frozen) in guards.items():
        guarded = _outcome(report, guard, frozen=frozen)
        equal = guarded == (bare_frozen if frozen else bare)
        report.check(f"{name} changes no bit of the training", holds=equal)


def _same_output_of_the_stem(training: Training) -> AbstractContextManager[object]:
    layer = training.layers[-1]
    x = torch.ones(2, layer.num_features, 4, 4).to(layer.weight.device)
    return same_output(layer, x)


def _outcome(
    report: Report, guard: Callable[[Training], AbstractContextManager[object]], *, frozen: bool
) -> list[bytes]:
    """Return the bytes of the losses, of the state and of the random generators after training."""
    training = Training(report.device, tiny=report.tiny, batch=8, frozen=frozen)
    if hasattr(training.model, "maxpool"):  # whose backward adds in any order on CUDA
        training.model.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    dropout = nn.Dropout(0.1)
    losses = []

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with guard(training):
                losses.append(training.step())
                losses.append(dropout(losses[-1].expand(8)).clone())

    training.epoch(2 if report.tiny else 6, step)
    state = [*losses, *training.model.state_dict().values(), torch.get_rng_state()]
    if not report.device.startswith("cpu"):
        state.append(torch.get_device_module(report.device).get_rng_state())
    flat = [tensor.detach().cpu().reshape(-1).view(torch.uint8) for tensor in state]
    return [tensor.numpy().tobytes() for tensor in flat]
