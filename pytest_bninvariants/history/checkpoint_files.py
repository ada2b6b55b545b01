"""Read the running statistics of BN layers from checkpoint files; nothing in them is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.history.samples import LayerStatistics, Sample
from pytest_bninvariants.selection.bn_layers import STATISTICS

_NESTED = 4  # {"ema": {"state_dict": {...}}} and the like
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

_FOLDER = (
    "it is a folder: give files written by torch.save or safetensors; dcp_to_torch_save of "
    "torch.distributed.checkpoint.format_utils makes one of a distributed checkpoint"
)


def read_statistics(file: Path) -> Sample:
    """Return the statistics of each BN layer in a checkpoint, by name without wrapper prefixes.

    Args:
        file: a file of `torch.save`, or of safetensors.

    Raises:
        GateError: if it cannot be read, or has no running statistics, or not their values.
    """
    tensors = _read(file)
    sample = {
        name: LayerStatistics(tensors[f"{key}running_mean"], tensors[f"{key}running_var"])
        for name, key in _layers(tensors).items()
    }
    if not sample:
        raise GateError(f"{file}: no BN layer has running_mean and running_var in it")
    for name, statistics in sample.items():
        if any(each.is_meta for each in statistics):
            where = f"the statistics of {name or 'the model'} are on the meta device"
            raise GateError(f"{file}: {where}, and have no values")
    return sample


def _read(file: Path) -> dict[str, Tensor]:
    is_safe = file.suffix == ".safetensors"
    try:
        return _read_safetensors(file) if is_safe else _read_torch(file)
    except GateError:
        raise
    except IsADirectoryError:
        raise GateError(f"{file}: {_FOLDER}") from None
    except OSError as error:
        raise GateError(f"{file}: {error.strerror or error}") from None
    except UnpicklingError as error:
        raise GateError(f"{file}: {_refusal(str(error))}") from None
    except Exception as error:  # bytes that are no pickle make torch's reader fail in any way
        raise GateError(f"{file}: it cannot be read as a checkpoint{_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, if it has words."""
    sentence = re.split(r"\n|\. ", str(error))[0]
    return f": {sentence}" if sentence and not isinstance(error, LookupError) else ""


def _refusal(error: str) -> str:
    """Return why torch refuses a file with weights_only, from its message."""
    named = re.search(r"GLOBAL (\S+)", error)
    if named is None:
        return "it cannot be read as a checkpoint"
    return (
        f"to read it would run code of {named[1]}, since it holds more than tensors and plain "
        "values: save a state_dict"
    )


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the prefix of the keys of each layer that has both statistics, by its name."""
    prefixes = [key.removesuffix("running_mean") for key in tensors if _is_mean(key)]
    both = [prefix for prefix in prefixes if f"{prefix}running_var" in tensors]
    return {_bare(prefix): prefix for prefix in both}


def _is_mean(key: str) -> bool:
    return key.rpartition(".")[2] == STATISTICS[0]


def _bare(prefix: str) -> str:
    return ".".join(part for part in prefix.strip(".").split(".") if part not in _WRAPPERS)


def _read_torch(file: Path) -> dict[str, Tensor]:
    """Read a file of torch.save; the pages of its tensors are read when they are used."""
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # files from before torch 1.6 are no archives, which alone can be mapped
        content = torch.load(file, map_location="cpu", weights_only=True)
    found = dict(_state_dicts_in(content, "", _NESTED))
    if len(found) == 1:  # so that "state_dict." is no part of the names
        return next(iter(found.values()))
    return {f"{path}{key}": each for path, state in found.items() for key, each in state.items()}


def _state_dicts_in(content: Any, path: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the statistics in each of nested dicts, by the keys that lead to it."""
    if not isinstance(content, Mapping) or not depth:
        return
    own = {str(key): each for key, each in content.items() if isinstance(each, Tensor)}
    statistics = {key: each for key, each in own.items() if key.endswith(STATISTICS)}
    if statistics:
        yield path, statistics
    for key, value in content.items():
        yield from _state_dicts_in(value, f"{path}{key}.", depth - 1)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise GateError(
            f"{file}: reading it needs the package safetensors: pip install "
            "'pytest-bninvariants[safetensors]'"
        ) from None
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            keys = [key for key in opened.keys() if key.endswith(STATISTICS)]  # noqa: SIM118
            return {key: opened.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(error) from None
