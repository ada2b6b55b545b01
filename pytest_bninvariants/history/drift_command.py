"""`python -m pytest_bninvariants drift`: how statistics moved over the checkpoints of a run."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.drift_history import DriftHistory, LayerHistory
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.history.checkpoint_files import read_statistics
from pytest_bninvariants.history.samples import MOST_SAMPLES, Sample, layer_histories, spread_out
from pytest_bninvariants.reporting.page.document import document, history_section
from pytest_bninvariants.reporting.tables import text_table

_HEADINGS = ("layer", "drift", "largest", "between", "mean", "var")
_COLUMNS = (
    "checkpoint",
    "layer",
    "drift",
    "mean_low",
    "mean_middle",
    "mean_high",
    "var_low",
    "var_middle",
    "var_high",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="CKPT",
        help="files of torch.save or safetensors, in the order of training",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a row for each layer in each"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    parser.add_argument(
        "--eps",
        type=float,
        default=1e-5,
        help="what the layers add to a variance, which a checkpoint does not say (default: 1e-5)",
    )


def run(arguments: argparse.Namespace, output: IO[str]) -> int:
    """Run the command; return its exit status.

    Args:
        arguments: the arguments.
        output: where the table goes.
    """
    if not (math.isfinite(arguments.eps) and arguments.eps >= 0):
        raise GateError(f"--eps={arguments.eps} is not a number >= 0")
    history = history_of(arguments.checkpoints, arguments.eps)
    for line in table_lines(history):
        print(line, file=output)
    if arguments.csv is not None:
        _write(arguments.csv, _csv_text(history))
    if arguments.html is not None:
        title = f"Running statistics over {len(history.samples)} checkpoints"
        _write(arguments.html, document(title, history_section(history)))
    return 0


def history_of(files: Sequence[Path], eps: float) -> DriftHistory:
    """Return the history of the statistics in some checkpoints.

    Args:
        files: the files, in the order of training, at least two; of more than 257, so many are
            read, evenly spread.
        eps: what the layers add to a variance.

    Raises:
        GateError: if one cannot be read, or they have no layer in common.
    """
    if len(files) < 2:
        raise GateError("drift is measured between checkpoints: give two or more files")
    chosen = [files[number] for number in spread_out(len(files), MOST_SAMPLES)]
    samples: list[Sample] = [read_statistics(file) for file in chosen]
    layers = layer_histories(samples, {}, default_eps=eps, points=MOST_SAMPLES)
    if not layers:
        raise GateError("no BN layer has the same number of channels in all of these checkpoints")
    return DriftHistory(by="checkpoint", samples=_labels(chosen), layers=layers)


def _labels(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the files' names, with as many of their folders as tell them apart."""
    for parts in range(1, max(len(file.parts) for file in files) + 1):
        labels = tuple("/".join(file.parts[-parts:]) for file in files)
        if len(set(labels)) == len(set(files)):
            return labels
    return tuple(map(str, files))


def table_lines(history: DriftHistory) -> Iterator[str]:
    """Yield a table with a row for each layer: how far it drifted, and where most."""
    first, last = history.samples[0], history.samples[-1]
    layers = counted(len(history.layers), "BN layer")
    yield f"{layers} in {len(history.samples)} checkpoints, {first} to {last}"
    yield "drift: the sum of the divergences from each to the next, in nats"
    yield ""
    yield from text_table(_HEADINGS, [_row(layer, history.samples) for layer in history.layers])


def _row(layer: LayerHistory, samples: Sequence[str]) -> tuple[str, ...]:
    drifts = [drift or 0.0 for drift in layer.drifts]
    name = layer.name or "the model"
    mean, var = ((each.middle[0], each.middle[-1]) for each in (layer.mean, layer.var))
    values = (f"{mean[0]:.3g} -> {mean[1]:.3g}", f"{var[0]:.3g} -> {var[1]:.3g}")
    if all(drift is None for drift in layer.drifts):
        return (name, "same", "-", "-", *values)
    most = max(range(len(drifts)), key=drifts.__getitem__)
    between = f"{samples[most]}, {samples[most + 1]}"
    return (name, f"{sum(drifts):.3g}", f"{drifts[most]:.3g}", between, *values)


def _csv_text(history: DriftHistory) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for layer in history.layers:
        drifts = [None, *(drift or 0.0 for drift in layer.drifts)]
        columns = [
            part for band in (layer.mean, layer.var) for part in (band.low, band.middle, band.high)
        ]
        for label, drift, *values in zip(history.samples, drifts, *columns, strict=True):
            writer.writerow((label, layer.name, drift, *values))
    return text.getvalue()


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GateError(f"{file}: {error.strerror}") from None
