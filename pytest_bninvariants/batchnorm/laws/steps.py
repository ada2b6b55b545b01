"""Steps that many laws share: they drive a layer and its twin together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_bninvariants.batchnorm.expectation import BatchExpectation, ReferenceTwin
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

EVAL_CASES: dict[str, Any] = {"modes": (False,), "momentum": False}


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch: small tensors are slow with more."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def build_in_mode(trial: LawTrial, *, training: bool) -> ReferenceTwin:
    """Build the layer in a mode, and return its twin in the same mode."""
    trial.build_layer()
    twin = trial.make_twin()
    set_mode(trial, twin, training=training)
    return twin


def set_mode(trial: LawTrial, twin: ReferenceTwin, *, training: bool) -> None:
    """Put the layer and its twin in a mode."""
    trial.run("layer.train()" if training else "layer.eval()")
    twin.reference.train(training)


def run_forward(
    trial: LawTrial, twin: ReferenceTwin, index: int = 0, *, grad: bool = False
) -> BatchExpectation:
    """Run a forward on a batch, as `y`, and return what it must give."""
    x = trial.bind_batch(trial.case.batches[index], grad=grad)
    trial.run("y = layer(x)")
    return twin.expect(x)


def check_training_results(
    trial: LawTrial, twin: ReferenceTwin, expected: BatchExpectation, layer: str = "layer"
) -> None:
    """Check the results of a batch in training: `y`, and the running statistics."""
    trial.check_close("y", expected.output, axis=1)
    trial.check_close(f"{layer}.running_mean", twin.running_mean)
    trial.check_close(f"{layer}.running_var", twin.running_var)


KEEP_VALUES = "kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}"


def check_state_unchanged(trial: LawTrial, what: str) -> None:
    """Check that the state is what `KEEP_VALUES` kept."""
    trial.require(
        "layer.state_dict().keys() == kept.keys()", f"{what} changed the keys of state_dict()"
    )
    for name in list(trial.evaluate("kept")):
        trial.check_same(
            f"layer.state_dict()[{name!r}]", f"kept[{name!r}]", f"{what} changed {name}"
        )


KEEP_TENSORS = "held = dict(layer.state_dict(keep_vars=True))"


def check_same_tensors(trial: LawTrial, call: str) -> None:
    """Check that the state's tensors are those that `KEEP_TENSORS` kept."""
    for name in list(trial.evaluate("held")):
        trial.require(
            f"layer.state_dict(keep_vars=True)[{name!r}] is held[{name!r}]",
            f"{call} put another tensor in {name}'s place",
        )
