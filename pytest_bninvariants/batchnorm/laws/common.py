"""What laws have in common: the steps of a trial beside its twin."""

from __future__ import annotations

from typing import Any

from pytest_bninvariants.batchnorm.expectation import Expected, Twin
from pytest_bninvariants.batchnorm.laws.trial import Trial

STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EVAL: dict[str, Any] = {"modes": (False,), "momentum": False}


def start(trial: Trial, *, training: bool) -> Twin:
    """Build the layer and its twin, in a mode."""
    trial.build()
    twin = trial.twin()
    switch(trial, twin, training=training)
    return twin


def switch(trial: Trial, twin: Twin, *, training: bool) -> None:
    """Put the layer and its twin in a mode."""
    trial.run("layer.train()" if training else "layer.eval()")
    twin.reference.train(training)


def forward(trial: Trial, twin: Twin, index: int = 0, *, grad: bool = False) -> Expected:
    """Run a forward of a batch, giving `y`, and return what must come of it."""
    x = trial.feed(trial.case.batches[index], grad=grad)
    trial.run("y = layer(x)")
    return twin.expect(x)


def hold_training(trial: Trial, twin: Twin, expected: Expected, layer: str = "layer") -> None:
    """Hold what a batch in training gives: `y`, and the running statistics."""
    trial.close("y", expected.output, axis=1)
    trial.close(f"{layer}.running_mean", twin.running_mean)
    trial.close(f"{layer}.running_var", twin.running_var)


KEEP = "kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}"


def unchanged(trial: Trial, what: str) -> None:
    """Hold that the state is what `KEEP` kept."""
    trial.require(
        "layer.state_dict().keys() == kept.keys()", f"{what} changed the keys of state_dict()"
    )
    for name in list(trial["kept"]):
        trial.same(f"layer.state_dict()[{name!r}]", f"kept[{name!r}]", f"{what} changed {name}")


HELD = "held = {k: getattr(layer, k) for k in layer.state_dict()}"


def holds(trial: Trial, call: str) -> None:
    """Hold that the state's tensors are those that `HELD` kept."""
    for name in list(trial["held"]):
        trial.require(
            f"layer.{name} is held[{name!r}]", f"{call} put another tensor in {name}'s place"
        )
