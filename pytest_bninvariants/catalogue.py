"""The catalogue of invariants: where each is defined, its fixture and its marker.

The package's public names, its fixtures, its markers and `pytest --markers` are made from it, so it
imports neither torch nor pytest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A marker that puts a guard around a test's call.

    Args:
        signature: its arguments, as `pytest --markers` shows them.
        help: what it checks, as `pytest --markers` says it.
        options: the keywords that it passes on to the guard.
        maker: the function in the invariant's module that makes the guard; empty: the invariant
            itself.
        takes: what that function takes before the options: `model`, followed by names of modules;
            `model and arguments`, which the model is called with; `model and batch`; `two models`.
    """

    signature: str
    help: str
    options: tuple[str, ...]
    maker: str = ""
    takes: Literal["model", "model and arguments", "model and batch", "two models"] = "model"

    @property
    def accepted(self) -> tuple[str, ...]:
        """Return all keywords that the marker accepts."""
        return self.options if self.takes == "two models" else (*self.options, "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """One public invariant.

    Args:
        module: the module that defines it, relative to this package.
        fixture: the docstring of its fixture.
        marker: its marker; None if it has none.
    """

    module: str
    fixture: str
    marker: Marker | None = None

    @property
    def usage(self) -> str:
        """Return how a test uses it without its marker: the code in the fixture's docstring."""
        return self.fixture.split("`")[1]


_FREEZING_SIGNATURE = (
    "(*modules, parameters=True, buffers=True, allow_batch_stats=False, exclude=(), trains=None, "
    "model=None)"
)
_FREEZING_OPTIONS = ("parameters", "buffers", "allow_batch_stats", "exclude", "trains")
INVARIANTS = {
    "frozen_bn": Invariant(
        module="invariants.frozen.guard",
        fixture='Guard BN layers: `with frozen_bn(model, "backbone"): train_step(model, batch)`.',
        marker=Marker(
            signature=_FREEZING_SIGNATURE,
            help="fail the test if its call changes a BN layer in these modules (default: in the "
            "whole model), or lets one normalise with batch statistics.",
            options=_FREEZING_OPTIONS,
        ),
    ),
    "frozen": Invariant(
        module="invariants.frozen.guard",
        fixture="Guard parameters and buffers: "
        '`with frozen(model, "backbone"): train_step(model, batch)`.',
        marker=Marker(
            signature=_FREEZING_SIGNATURE,
            help="fail the test if its call changes any parameter or buffer in these modules "
            "(default: the whole model).",
            options=_FREEZING_OPTIONS,
        ),
    ),
    "bn_updates": Invariant(
        module="invariants.bn_updates.guard",
        fixture="Count updates of statistics: "
        "`with bn_updates(model, times=2): train_step(model, batch)`.",
        marker=Marker(
            signature="(*modules, times=1, per='step', exclude=(), model=None)",
            help="fail the test if in its call a BN layer in these modules (default: each that is "
            "in training) updates its running statistics a different number of times, or not as "
            "BatchNorm does.",
            options=("times", "per", "exclude"),
        ),
    ),
    "trains": Invariant(
        module="invariants.trains.guard",
        fixture="Check that parameters move: "
        '`with trains(model, "head"): train_step(model, batch)`.',
        marker=Marker(
            signature="(*modules, buffers=True, exclude=(), model=None)",
            help="fail the test if in its call a parameter in these modules (default: each with "
            "requires_grad=True) does not move, or a BN layer there updates no running statistics.",
            options=("buffers", "exclude"),
        ),
    ),
    "same_output": Invariant(
        module="invariants.same_output.guard",
        fixture="Check that eval outputs stay the same: "
        "`with same_output(model, images): convert(model)`.",
        marker=Marker(
            signature="(*modules, inputs, rtol=0.0, atol=0.0, model=None)",
            help="fail the test if its call changes what these modules (default: the model) return "
            "in eval for the inputs, which are fixtures.",
            options=("inputs", "rtol", "atol"),
            takes="model and arguments",
        ),
    ),
    "batch_invariant": Invariant(
        module="invariants.batch_invariant.guard",
        fixture="Check that samples do not depend on each other in eval: "
        "`batch_invariant(model, images)`.",
        marker=Marker(
            signature="(*modules, inputs, rtol=0.0, atol=0.0, examples=20, model=None)",
            help="fail the test if after its call a sample's output of these modules (default: the "
            "model) in eval depends on the other samples of the inputs, which are fixtures.",
            options=("inputs", "rtol", "atol", "examples"),
            maker="batch_guard",
            takes="model and batch",
        ),
    ),
    "in_sync": Invariant(
        module="invariants.in_sync.guard",
        fixture="Check that two models' buffers agree, or that one averages the other: "
        "`in_sync(model, ema)`.\n\n"
        "An average: `with in_sync(model, ema, decay=0.99): train_step(model, batch)`.",
        marker=Marker(
            signature="(one, other=None, *modules, parameters=False, exclude=(), decay=None, "
            "buffers='copied')",
            help="fail the test if after its call two models, which are fixtures, or one model on "
            "all ranks, have different buffers; with decay=, if the second model is not the moving "
            "average of the first (then parameters=True is the default, and buffers= says how its "
            "buffers follow).",
            options=("parameters", "exclude", "decay", "buffers"),
            maker="sync_guard",
            takes="two models",
        ),
    ),
    "accumulates": Invariant(
        module="invariants.accumulates.check",
        fixture="Check that micro-batches' gradients add up: "
        "`accumulates(model, batch, 4, loss=loss)`.",
    ),
    "rank_invariant": Invariant(
        module="invariants.rank_invariant.check",
        fixture="Check that ranks on shards of a batch train as one process: "
        "`rank_invariant(model, batch, loss=loss)`.",
    ),
}

RANKS = Marker(
    signature="(n, backend=None, timeout=60)",
    help="run the test on n processes of this machine, each a rank of an initialised process "
    "group; backend= (default: gloo on the CPU, nccl on cuda), timeout= in seconds.",
    options=("backend", "timeout"),
)
"""The marker `ranks`, which puts no guard around a test, but says where it runs."""
