"""Laws that sweep sizes: kernels have corners where vectors and threads end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Batch, Case
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    build_in_mode,
    check_training_results,
    one_thread,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

# around powers of two and their sums, where vectors, warps and blocks of kernels end
_EDGES = (127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 511, 512, 513, 768, 1000, 1023, 1024)
_SIZES = (*range(1, 68), *_EDGES, 1025)  # 67: past two warps of 32
_LARGEST = (2**16 + 1, 2 * 2**16 + 1)  # past the grids of kernels
_LAST_SIZES = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, *_EDGES[:11], 1000)
# shared unevenly by threads; with them at all sizes, two workers on two cores would mostly wait
_WITH_THREADS = (5, 129, 1025)
_SWEEP: dict[str, Any] = {
    "layouts": CONTIGUOUS,
    "momentum": False,
    "share": 0.03,
    "threads": True,
}


def _sweep(
    trial: LawTrial, case: Case, shapes: Iterable[tuple[int, ...]], layout: str = "contiguous"
) -> None:
    """Check output, statistics and gradients of each shape, each on a new layer."""
    for index, shape in enumerate(shapes):
        seed, kappa = case.batches[0].seed + index, case.batches[0].kappa
        batch = Batch(shape=shape, seed=seed, kappa=kappa, layout=layout)
        one = replace(case, batches=(batch,), plain_gradient=False, count=0)
        with nullcontext() if max(shape) in _WITH_THREADS else one_thread():
            _check_size(trial.for_case(one))


def _check_size(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    expected = run_forward(trial, twin, grad=True)
    check_training_results(trial, twin, expected)
    g = trial.bind_gradient()
    trial.run("y.backward(torch.empty_like(y).copy_(g))")  # laid out as the output is
    names = ("x", "layer.weight", "layer.bias")
    for name, gradient in zip(names, expected.gradients(g), strict=True):
        trial.check_close(f"{name}.grad", gradient, axis=int(name == "x"))
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)


def _sweep_channels_last(trial: LawTrial, case: Case, shapes: Iterable[tuple[int, int]]) -> None:
    """Check batches in channels_last, given as pairs of N and C, if the rank has that."""
    more = len(case.batches[0].shape) - 2
    if more > 1:
        _sweep(trial, case, ((*pair, *[2] * more) for pair in shapes), "channels_last")


def _positions(dims: int) -> tuple[int, ...]:
    return {2: (), 3: (3,), 4: (1, 3), 5: (1, 1, 3)}[dims]


@law(("float32",), needs=("small_batches",), **_SWEEP)
def batch_sizes(trial: LawTrial, case: Case) -> None:
    """Every batch size is right: all to 67, those around powers of two to 1025, and 131073."""
    rank = len(case.batches[0].shape)
    first = 2 if rank == 2 else 1
    _sweep(trial, case, [(n, 2, *_positions(rank)) for n in _SIZES if n >= first])
    _sweep(trial, case, [(_LARGEST[1], 1, *[1] * (rank - 2))])
    _sweep_channels_last(trial, case, ((n, 3) for n in _LAST_SIZES))


@law(("float32",), needs=("small_batches",), **_SWEEP)
def channel_counts(trial: LawTrial, case: Case) -> None:
    """Every number of channels is right: all to 67, those around powers of two to 1025, and 65537.

    Of channels_last, some of them.
    """
    counts = (*_SIZES, 2048, 4097)  # the last stage of a ResNet-50 has 2048
    rank = len(case.batches[0].shape)
    _sweep(trial, case, [(3, c, *_positions(rank)) for c in counts])
    _sweep(trial, case, [(2, _LARGEST[0], *[1] * (rank - 2))])
    _sweep_channels_last(trial, case, ((3, c) for c in _LAST_SIZES))
    _sweep_channels_last(trial, case, ((265, 65),))


@law(("float32", "float16"), least_rank=3, needs=("small_batches",), **_SWEEP)
def spatial_sizes(trial: LawTrial, case: Case) -> None:
    """Every number of positions is right: all to 67, and those around powers of two to 1025."""
    rank = len(case.batches[0].shape)
    ones = (1,) * (rank - 3)
    shapes = [(2, 2, *ones, length) for length in _SIZES]
    if rank > 3:
        shapes += [(2, 2, *ones[1:], side, side) for side in (5, 7, 8, 14, 28, 33, 70)]
        shapes += [(2, 2, *ones[1:], *sides) for sides in ((2, 9), (3, 64), (33, 4), (128, 2))]
    if rank > 4:
        shapes += [(2, 2, *sides) for sides in ((9, 5, 3), (33, 2, 2), (65, 1, 1))]
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
