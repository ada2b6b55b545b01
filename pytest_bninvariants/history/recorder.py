"""Sample the statistics of BN layers while a step runs, at each optimizer step or forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import run_config
from pytest_bninvariants.checks import is_number
from pytest_bninvariants.drift_history import DriftHistory, Lane, Mark
from pytest_bninvariants.history.samples import (
    MOST_SAMPLES,
    LayerStatistics,
    Sample,
    layer_histories,
    same_statistics,
)
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.call_sites import place_of_mode_call
from pytest_bninvariants.instrumentation.observer_api import AfterCall, ForwardKind, Observer
from pytest_bninvariants.reporting.lines import describe_place
from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.selection.walk import registered
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, dense_values, is_uninitialised
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed
from pytest_bninvariants.torch_internals.private_api import current_graph_task_id

_MOST_EVENTS = 1024
_MOST_MARKS = 4


@dataclass(slots=True)
class _LaneLog:
    """The moments at which a layer updated its statistics."""

    ticks: list[int] = field(default_factory=list)
    in_backward: list[int] = field(default_factory=list)


class StatisticsRecorder(Observer):
    """Sample the statistics of layers, and note when they are updated.

    A sample is taken before each step of an optimizer, and when a layer runs again without one.
    Above 257 samples every second one is dropped, and from then on only every second is taken.

    Args:
        layers: the layers, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._names = {id(layer): name for name, layer in layers.items()}
        self._samples: list[Sample] = []
        self._labels: list[str] = []
        self._marks: list[Mark] = []
        self._lanes = defaultdict[str, _LaneLog](_LaneLog)
        self._steps: list[int] = []
        self._counts = {"step": 0, "forward": 0}
        self._ran: set[int] = set()
        self._has_ended = False
        self._events = self._stride = self._due = 0

    def start(self) -> None:
        """Take the first sample, and start watching."""
        self._stride = 1
        self._take("start")
        installation.add(self)

    def stop(self) -> None:
        """Stop watching, and take the last sample, the first time that it is called."""
        if self._has_ended:
            return
        self._has_ended = True
        installation.discard(self)
        self._due = 0
        self._take("end")
        with undisturbed():
            ended_with_a_step = len(self._samples) > 2 and same_statistics(*self._samples[-2:])
        if ended_with_a_step:
            del self._samples[-1], self._labels[-1]

    def ignores(self, module: nn.Module) -> bool:
        """Ignore what is none of the layers."""
        return id(module) not in self._names

    def observes_layer(self, layer: nn.Module) -> bool:
        """Observe the layers alone."""
        return id(layer) in self._names

    def saw_forward(self, module: nn.Module) -> None:
        """Sample before a layer runs a second time without a step."""
        if id(module) in self._ran and module.training and current_graph_task_id() == -1:
            self._close("forward")

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Note an update."""
        name = self._names.get(id(layer))
        if name is not None:
            self._note(self._lanes[name], backward=current_graph_task_id() != -1)
            self._ran.add(id(layer))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Mark where a layer is put in training mode, each place once."""
        if not training or module.training or id(module) not in self._names:
            return
        place = place_of_mode_call(frame, module, True)
        if place is None or len(self._marks) >= _MOST_MARKS:
            return
        text = f"{place.call} at {describe_place(place)}"
        if all(mark.text != text for mark in self._marks):
            self._marks.append(Mark(len(self._samples) - 1, text))

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Sample before an optimizer steps."""
        if self._events < _MOST_EVENTS:
            self._steps.append(self._events)
            self._events += 1
        self._close("step")
        return None

    def _note(self, lane: _LaneLog, *, backward: bool) -> None:
        if self._events >= _MOST_EVENTS:
            return
        lane.ticks.append(self._events)
        if backward:
            lane.in_backward.append(self._events)
        self._events += 1

    def _close(self, kind: str) -> None:
        """End a column: a step, or a forward without one."""
        self._counts[kind] += 1
        self._ran.clear()
        self._take(f"{kind} {self._counts[kind]}")

    def _take(self, label: str) -> None:
        if self._due > 0:
            self._due -= 1
            return
        self._due = self._stride - 1
        with undisturbed():
            self._samples.append({} if in_transform() else self._sample())
        self._labels.append(label)
        if len(self._samples) > MOST_SAMPLES and label != "end":
            self._samples, self._labels = self._samples[::2], self._labels[::2]
            self._marks = [Mark(mark.column // 2, mark.text) for mark in self._marks]
            self._stride *= 2

    def _sample(self) -> Sample:
        """Copy the statistics of all layers, all of one dtype on one device together."""
        found: dict[Any, list[tuple[str, str, Tensor]]] = defaultdict(list)
        for name, layer in self._layers.items():
            for which in STATISTICS:
                tensor = registered(layer._buffers, which)
                values = None if tensor is None or is_uninitialised(tensor) else _values(tensor)
                if values is not None:
                    found[values.dtype, values.device].append((name, which, values))
        copies: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for entries in found.values():
            flat = torch.cat([values for *_, values in entries])
            parts = torch.split_with_sizes(flat, [values.numel() for *_, values in entries])
            for (name, which, _), part in zip(entries, parts, strict=True):
                copies[name][which] = part
        return {
            name: LayerStatistics(*(both[which] for which in STATISTICS))
            for name, both in copies.items()
            if len(both) == len(STATISTICS)
        }

    def history(self) -> DriftHistory:
        """Return what was recorded, after `stop`."""
        added = ((name, getattr(layer, "eps", None)) for name, layer in self._layers.items())
        eps = {name: float(each) for name, each in added if is_number(each)}
        with undisturbed():
            layers = layer_histories(self._samples, eps)
        kinds = [kind for kind, count in self._counts.items() if count]
        return DriftHistory(
            by={"step": "optimizer step", "forward": "forward"}[kinds[0]]
            if len(kinds) == 1
            else "optimizer step or forward",
            samples=tuple(self._labels),
            layers=layers,
            marks=tuple(self._marks),
            lanes=tuple(
                Lane(name, tuple(lane.ticks), tuple(lane.in_backward))
                for name, lane in ((each, self._lanes[each]) for each in self._layers)
                if lane.ticks
            ),
            steps=tuple(self._steps),
            events=self._events,
        )


def start_recording(layers: Mapping[str, nn.Module]) -> StatisticsRecorder | None:
    """Start to record layers, if this run wants histories and there are any.

    Args:
        layers: BN layers, by name.
    """
    if run_config.current.histories == "none" or not layers:
        return None
    recorder = StatisticsRecorder(layers)
    recorder.start()
    return recorder


def _values(tensor: Tensor) -> Tensor | None:
    try:
        dense = dense_values(tensor)
    except READ_ERRORS:
        return None
    return None if dense is None else dense.detach().flatten()
