"""bn_updates over an epoch of a resnet18: torch's own updates are within the bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from pytest_bninvariants import InvariantBroken, bn_updates
from tests.benchmarks.device.networks import Training
from tests.benchmarks.device.report import Report

_WAYS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "channels_last": {"channels_last": True},
    "bfloat16 autocast": {"autocast": torch.bfloat16},
    "bfloat16 autocast, channels_last": {"autocast": torch.bfloat16, "channels_last": True},
    "float16 autocast": {"autocast": torch.float16},
}


def main(report: Report) -> None:
    """Guard each step of an epoch, with cuDNN and without, and an epoch as a whole."""
    steps = 2 if report.tiny else 40
    for cudnn in (True, False):
        for way, options in _WAYS.items():
            if report.device.startswith("simdev") and "autocast" in options:
                continue  # it has no autocast
            training = Training(report.device, tiny=report.tiny, **options)
            name = f"{way}, {'with' if cudnn else 'without'} cuDNN"
            with _judged(report, f"each of {steps} steps, {name}"), _with_cudnn(cudnn):
                training.epoch(steps, partial(_guarded_step, training))
    training = Training(report.device, tiny=report.tiny)
    with _judged(report, f"{steps} steps as a whole"), bn_updates(training.model, times=steps):
        training.epoch(steps, training.step)


def _guarded_step(training: Training) -> None:
    with bn_updates(training.model):
        training.step()


@contextmanager
def _judged(report: Report, what: str) -> Iterator[None]:
    """Report whether updates hold in a block."""
    failure = None
    try:
        yield
    except InvariantBroken as error:
        failure = error
    report.check(f"bn_updates in {what}", holds=failure is None)
    if failure is not None:
        report.say(f"```text\n{failure}\n```")


@contextmanager
def _with_cudnn(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = on
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
