"""How the statistics of BN layers went over the steps of a run, as plain data for pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Band:
    """One kind of statistic of a layer at each sample: over its channels.

    Args:
        low: the smallest value of any channel.
        middle: the mean over the channels.
        high: the largest value of any channel.
    """

    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ChannelHistory:
    """The statistics of one channel at each sample.

    Args:
        number: the channel, from 0.
        mean: its running mean.
        var: its running variance.
    """

    number: int
    mean: tuple[float, ...]
    var: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerHistory:
    """The statistics of one layer.

    Args:
        name: the layer's qualified name.
        drifts: the drift from each sample to the next, in nats; None where the bytes are the same.
        mean: its running mean.
        var: its running variance.
        channels: the channels that moved most.
        count: how many channels it has.
    """

    name: str
    drifts: tuple[float | None, ...]
    mean: Band
    var: Band
    channels: tuple[ChannelHistory, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Mark:
    """An event between two samples, such as a call of `train()`.

    Args:
        column: the number of the sample after which it happened, from 0.
        text: what happened, with file and line.
    """

    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Lane:
    """When one layer updated its statistics.

    Args:
        name: the layer's qualified name.
        ticks: the moments of its updates, counted over all events.
        in_backward: the moments of those among them that ran in a backward pass.
    """

    name: str
    ticks: tuple[int, ...]
    in_backward: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftHistory:
    """The statistics of a model's BN layers over the steps of a run.

    Args:
        by: what one column is, such as `optimizer step`, in the singular.
        samples: a label for each sample, one more than there are columns.
        layers: the layers in the model's order.
        marks: what happened meanwhile.
        lanes: the updates of each layer.
        steps: the moments of optimizer steps, counted as in lanes.
        events: how many moments there are.
    """

    by: str
    samples: tuple[str, ...]
    layers: tuple[LayerHistory, ...]
    marks: tuple[Mark, ...] = ()
    lanes: tuple[Lane, ...] = ()
    steps: tuple[int, ...] = ()
    events: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DriftHistory:
        """Rebuild a history from plain data: lists for tuples, and texts for `inf` and `nan`."""
        return cls(
            by=data["by"],
            samples=tuple(data["samples"]),
            layers=tuple(map(_layer, data["layers"])),
            marks=tuple(Mark(**each) for each in data["marks"]),
            lanes=tuple(
                Lane(each["name"], tuple(each["ticks"]), tuple(each["in_backward"]))
                for each in data["lanes"]
            ),
            steps=tuple(data["steps"]),
            events=data["events"],
        )


def _layer(data: Mapping[str, Any]) -> LayerHistory:
    return LayerHistory(
        name=data["name"],
        drifts=tuple(None if each is None else float(each) for each in data["drifts"]),
        mean=_band(data["mean"]),
        var=_band(data["var"]),
        channels=tuple(
            ChannelHistory(each["number"], _floats(each["mean"]), _floats(each["var"]))
            for each in data["channels"]
        ),
        count=data["count"],
    )


def _band(data: Mapping[str, Any]) -> Band:
    return Band(_floats(data["low"]), _floats(data["middle"]), _floats(data["high"]))


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))
