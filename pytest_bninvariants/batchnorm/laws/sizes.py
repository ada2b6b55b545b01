"""Laws that sweep sizes: kernels have corners where vectors and threads end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Batch, Case
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    build_in_mode,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

# around powers of two and their sums, where vectors, warps and blocks of kernels end
_EDGES = (127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 511, 512, 513, 768, 1000, 1023, 1024)
_SIZES = (*range(1, 68), *_EDGES, 1025)  # 67: past two warps of 32
_SWEEP: dict[str, Any] = {
    "layouts": CONTIGUOUS,
    "momentum": False,
    "share": 0.03,
    "threads": True,
}


def _sweep(trial: LawTrial, case: Case, shapes: list[tuple[int, ...]]) -> None:
    """Check output, statistics and gradients of each shape, each on a new layer."""
    for index, shape in enumerate(shapes):
        batch = Batch(shape=shape, seed=case.batches[0].seed + index, kappa=case.batches[0].kappa)
        one = replace(case, batches=(batch,), plain_gradient=False, count=0)
        each = trial.for_case(one)
        twin = build_in_mode(each, training=True)
        expected = run_forward(each, twin, grad=True)
        check_training_results(each, twin, expected)
        gradients = expected.gradients(each.run_backward(0))
        for name, gradient in zip(("x", "layer.weight", "layer.bias"), gradients, strict=True):
            each.check_close(f"{name}.grad", gradient, axis=int(name == "x"))
        set_mode(each, twin, training=False)
        each.check_close("y", run_forward(each, twin).output, axis=1)


def _positions(dims: int) -> tuple[int, ...]:
    return {2: (), 3: (3,), 4: (1, 3), 5: (1, 1, 3)}[dims]


@law(("float32",), **_SWEEP)
def batch_sizes(trial: LawTrial, case: Case) -> None:
    """Every batch size is right: all to 67, and those around powers of two to 1025."""
    rank = len(case.batches[0].shape)
    first = 2 if rank == 2 else 1
    _sweep(trial, case, [(n, 2, *_positions(rank)) for n in _SIZES if n >= first])


@law(("float32",), **_SWEEP)
def channel_counts(trial: LawTrial, case: Case) -> None:
    """Every number of channels is right: all to 67, and those around powers of two to 1025."""
    counts = (*_SIZES, 2048, 4097)  # the last stage of a ResNet-50 has 2048
    _sweep(trial, case, [(3, c, *_positions(len(case.batches[0].shape))) for c in counts])


@law(("float32", "float16"), least_rank=3, **_SWEEP)
def spatial_sizes(trial: LawTrial, case: Case) -> None:
    """Every number of positions is right: all to 67, and those around powers of two to 1025."""
    rank = len(case.batches[0].shape)
    ones = (1,) * (rank - 3)
    shapes = [(2, 2, *ones, length) for length in _SIZES]
    if rank > 3:
        shapes += [(2, 2, *ones[1:], side, side) for side in (5, 7, 8, 14, 28, 33, 70)]
        shapes += [(2, 2, *ones[1:], *sides) for sides in ((2, 9), (3, 64), (33, 4), (128, 2))]
    most = (1, 1, *ones, 2**16 + 1)  # past the range of 16-bit integers, and of float16
    if case.dtype == "float16":
        _counts_beyond_half(trial, case, most)
    else:
        _sweep(trial, case, [*shapes, most])


def _counts_beyond_half(trial: LawTrial, case: Case, shape: tuple[int, ...]) -> None:
    """Check that more values than float16 can count leave finite statistics.

    Their values are not compared, since torch 2.4.0 itself computes a variance of 0 here.
    """
    batch = Batch(shape=shape, seed=case.batches[0].seed, sigma=0.05, dtype="float16")
    trial.case = replace(case, batches=(batch,), count=0)
    twin = build_in_mode(trial, training=True)
    run_forward(trial, twin)
    for name in ("running_mean", "running_var"):
        trial.require(
            f"bool(layer.{name}.isfinite().all())", f"{name} is {{layer.{name}}} after {shape}"
        )
