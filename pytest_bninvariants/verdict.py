"""What a guard found around one step, as plain data: no tensors, no pytest, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pytest_bninvariants.drift_history import DriftHistory

ChangeKind = Literal[
    "values",
    "dtype",
    "shape",
    "layout",
    "initialised",
    "gone",
    "new",
    "eps",
    "batch-statistics",
    "update",
    "gradient",
    "still",
    "extra",
]
AUDIT = "--bn-audit"
"""The `guard` of an audit's verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a user's code did something.

    Args:
        file: path as Python knows it.
        line: line number, from 1.
        function: name of the function.
        call: what was called there, e.g. `Net.train(True)`.
        tool: the library function in between, e.g. `lightning.pytorch.loops.fit_loop.advance`.
    """

    file: str
    line: int
    function: str
    call: str
    tool: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One way in which a watched name, or a watched layer, broke the invariant.

    Args:
        name: the tensor's qualified name; for `eps` and `batch-statistics` the layer's.
        layer: qualified name of the module that holds it; empty for the model itself.
        kind: the kind of change.
        text: the change in words, e.g. `0 -> 1`.
        same_object: whether the name still holds the same tensor object.
        exact: whether the snapshot kept its bytes, and not only fingerprints.
        drift: on the first change of a layer's `running_mean` and `running_var`, how far the two
            drifted together, in nats; None on other changes, and where their values are unknown.
    """

    name: str
    layer: str
    kind: ChangeKind
    text: str
    same_object: bool = True
    exact: bool = True
    drift: float | None = None

    @property
    def of_statistics(self) -> bool:
        """Tell whether a tensor changed that normalising with batch statistics updates."""
        return self.name.endswith(("running_mean", "running_var", "num_batches_tracked"))

    @property
    def of_tensor(self) -> bool:
        """Tell whether a tensor changed, rather than how a layer is set or normalises."""
        return self.kind not in ("eps", "batch-statistics", "update", "still", "extra")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why some layers changed, and what to do.

    Args:
        name: its name, as in the docs, e.g. `training-mode`.
        layers: qualified names of the layers that it explains.
        tensors: qualified names of the tensors that it explains.
        why: what was seen, in a sentence or more.
        fix: what to do, in the imperative.
        place: where it happened, if that was seen.
        did: what happened at that place, up to the call, e.g. `put in training mode by`.
    """

    name: str
    layers: tuple[str, ...]
    why: str
    fix: str
    tensors: tuple[str, ...] = ()
    place: Place | None = None
    did: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """Something that may go wrong later with a name, though it broke no invariant."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The first write to a tensor that changed, as tracing saw it.

    Args:
        name: the tensor's qualified name.
        operator: the operator that wrote, e.g. `aten.add_.Tensor`; None if none was seen to write.
        place: the line of the user's own code that ran then.
        in_backward: whether autograd was running a backward pass.
        between: if no operator was seen to write, the places after which the tensor was last seen
            unchanged and first seen changed, as far as they are known.
        replaced: whether another tensor took its place.
    """

    name: str
    operator: str | None = None
    place: Place | None = None
    in_backward: bool = False
    between: tuple[Place | None, Place | None] = (None, None)
    replaced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one guard found around one step.

    A guard that has ended has it as `guard.verdict`, and a `FrozenStateChanged` or
    `InvariantBroken` as `error.verdict`.

    Args:
        guard: the guard as its user wrote it, e.g. `frozen_bn('backbone')`.
        noun: what the guard judges, e.g. `frozen BN layer`.
        broke: the verb for layers that broke the invariant, e.g. `changed`.
        column: the heading above the names of the changes.
        model: class name of the model.
        source: where the model was found, e.g. `fixture 'model'`; empty if it was passed.
        layers: how many layers, or other things that the noun names, were watched.
        tensors: how many tensor names were watched; None if the guard does not judge tensors.
        changes: what broke the invariant; empty when it held.
        causes: why, most specific first.
        hazards: what may go wrong later, though it did not break the invariant.
        writes: the first write to each tensor that changed, if the step was traced; None if a write
            cannot break the invariant.
        notes: what is worth knowing about how it was judged.
        history: how the statistics of its BN layers went in the step; None unless a report wants
            that.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import FrozenStateChanged, frozen_bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).eval()
        >>> with frozen_bn(model) as guard:
        ...     output = model(torch.ones(4, 2))
        >>> guard.verdict.holds, guard.verdict.layers, guard.verdict.tensors
        (True, 1, 5)
        >>> try:
        ...     with frozen_bn(model):
        ...         output = model.train()(torch.ones(4, 2))
        ... except FrozenStateChanged as error:
        ...     verdict = error.verdict
        >>> verdict.changed_tensors
        ('0.running_mean', '0.running_var', '0.num_batches_tracked')
        >>> verdict.causes[0].name
        'mode-flip'
        >>> print(str(verdict).splitlines()[0])
        1 of 1 frozen BN layer changed: 0 (mode-flip)
        >>> verdict.to_dict()["causes"][0]["place"]["call"]
        'Sequential.train(True)'
    """

    guard: str
    noun: str
    model: str
    source: str
    layers: int
    tensors: int | None
    changes: tuple[Change, ...] = ()
    causes: tuple[Cause, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    writes: tuple[Write, ...] | None = None
    notes: tuple[str, ...] = ()
    history: DriftHistory | None = None
    broke: str = "changed"
    column: str = "tensor"

    @property
    def holds(self) -> bool:
        """Tell whether the invariant held."""
        return not self.changes

    @property
    def changed_layers(self) -> tuple[str, ...]:
        """Return the layers with a change, in the model's order."""
        return tuple(dict.fromkeys(change.layer for change in self.changes))

    @property
    def changed_tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors that changed, in the model's order."""
        return tuple(dict.fromkeys(c.name for c in self.changes if c.of_tensor))

    def __str__(self) -> str:
        """Return the text of the failure, or a line that says what was watched if it holds."""
        from pytest_bninvariants.reporting.verdict_text import text_of

        return text_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON types; docs/verdict.md has the schema."""
        from pytest_bninvariants.reporting.verdict_data import as_data

        return as_data(self)

    def _repr_html_(self) -> str:
        """Return the verdict for a notebook, which asks for it under this name."""
        from pytest_bninvariants.reporting.verdict_html import as_html

        return as_html(self)
