"""The invariant `same_output`: in eval, the same inputs give the same outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from pytest_bninvariants.diagnosis.wording import clauses, counted, name_list
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.guard import Guard, at_once
from pytest_bninvariants.invariants.same_output.eval_guard import EvalGuard
from pytest_bninvariants.invariants.same_output.outputs import OutputSnapshot
from pytest_bninvariants.invariants.same_output.surroundings import Surroundings
from pytest_bninvariants.invariants.same_output.twin_guard import TwinGuard
from pytest_bninvariants.invariants.signature import option_names, refuse_wrong_calls, spell
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.submodules import submodules
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.state_change.before_after import StateBefore, read_state_before
from pytest_bninvariants.state_change.compare import StateDifference, compare
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.torch_internals.sharding import awaits_root
from pytest_bninvariants.verdict import Cause, Change, Verdict

_NO_DIFFERENCE = StateDifference(changes=(), causes=(), hazards=(), touched=False)


def _as_told_here(cause: Cause) -> Cause:
    """Return a cause with advice for a step that is meant to replace modules."""
    if cause.name != "replaced":
        return cause
    fix = (
        "if the step is to convert the module, compare what replaced it with what was there: eps, "
        "weight, bias, statistics, dtype; if only rounding differs, give rtol= or atol="
    )
    return replace(cause, fix=fix)


class OutputGuard(EvalGuard):
    """Check that modules give the same outputs before and after a step.

    Args:
        model: the model.
        modules: names of the modules to call in it; empty: the model itself.
        arguments: what to call them with.
        tolerance: how far apart values may be.
    """

    broken_by_writes = True

    def __init__(
        self,
        model: nn.Module,
        modules: tuple[str, ...],
        arguments: CallArguments,
        tolerance: Tolerance,
    ) -> None:
        spelling = spell("same_output", modules, **tolerance.options)
        super().__init__(model, spelling, arguments, tolerance)
        self._modules = modules
        self._before: dict[str, OutputSnapshot] = {}
        self._state: StateBefore | None = None
        self._witness: Witness | None = None
        self._surroundings: Surroundings | None = None
        self._state_changes: tuple[Change, ...] = ()

    def _begin(self) -> None:
        modules = self._called_modules()
        self._refuse_early_roots(modules)
        self._before = {name: self._outputs(module, name) for name, module in modules.items()}
        if any(True for module in modules.values() for _ in all_tensors(module)):
            self._state = read_state_before(self.model, self._scope())
            self._witness = Witness(self.model, self._state.selection)
            self._witness.start()
            self._surroundings = Surroundings(self.model)

    def _end(self) -> None:
        if self._witness is not None:
            self._witness.stop()

    def _traced(self) -> Mapping[str, KeptTensor]:
        return {} if self._state is None else self._state.kept

    def _written(self, verdict: Verdict) -> Iterable[Change]:
        """Return how the state changed: outputs are no tensors that anything writes to."""
        return self._state_changes if verdict.changes else ()

    def _judge(self) -> Verdict:
        changes = self._changes()
        findings = self._findings(has_changes=bool(changes))
        self._state_changes = findings.changes
        return Verdict(
            guard=self.spelling,
            noun="output",
            column="output",
            model=type(self.model).__name__,
            source=self.source,
            layers=sum(len(outputs.paths) for outputs in self._before.values()),
            tensors=None,
            changes=tuple(changes),
            causes=tuple(map(_as_told_here, findings.causes)) if changes else (),
            hazards=findings.hazards if changes else (),
            notes=(self._state_note(findings),) if changes else (),
        )

    def _called_modules(self) -> dict[str, nn.Module]:
        return submodules(self.model, self._modules)

    def _refuse_early_roots(self, modules: Mapping[str, nn.Module]) -> None:
        """Refuse to run a part of a model first that `fully_shard` would take for its root."""
        early = [name for name, each in modules.items() if each is not self.model]
        early = [name for name in early if awaits_root(modules[name])]
        if early:
            raise Refusal(
                f"fully_shard takes the first module that runs for the root, and {early[0]!r} is a "
                "part of the model: run the model once before the guard, or leave out modules="
            )

    def _scope(self) -> Scope:
        return Scope(modules=self._modules, allow_batch_stats=True)

    def _changes(self) -> list[Change]:
        """Return how the outputs differ from those before the step."""
        modules = self._called_modules()
        changes: list[Change] = []
        for name, before in self._before.items():
            if name not in modules:
                raise Refusal(f"{name!r} is no longer a module of the model")
            changes += before.changes_to(self._outputs(modules[name], name), self._tolerance)
        return changes

    def _findings(self, *, has_changes: bool) -> StateDifference:
        """Return how the state of the modules changed.

        Raises:
            GateError: if nothing ran.
        """
        if self._state is None or self._witness is None:
            return _NO_DIFFERENCE
        findings = compare(self._state, self._witness, self._scope())
        ran = findings.touched or self._witness.runs.saw_anything()
        if not (has_changes or ran or self._other_changes()):
            raise GateError(
                f"nothing ran inside {self.spelling}: it saw no forward of the module, no step "
                "of an optimizer that holds its parameters and no change of its state; if the step "
                "makes another module, compare the two: assert_same_output(one, other, *inputs)"
            )
        return findings

    def _other_changes(self) -> list[str]:
        """Return the names of what changed besides parameters and buffers."""
        return [] if self._surroundings is None else self._surroundings.changes()

    def _state_note(self, findings: StateDifference) -> str:
        if findings.changes:
            changes = [change for change in findings.changes if change.of_tensor]
            changes = changes or [*findings.changes]
            listed = clauses([f"{change.name} {change.text}" for change in changes])
            return f"its state differs in {counted(len(changes), 'place')}: {listed}"
        none = "none of its parameters, buffers and eps values changed"
        others = self._other_changes()
        if others:
            return f"{none}, but {name_list(others)} did"
        return f"{none}: its forward reads something else that did, such as a global variable"


@refuse_wrong_calls()
def same_output(
    module: nn.Module,
    /,
    *inputs: Any,
    modules: Iterable[str] | str = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    **named_inputs: Any,
) -> Guard:
    """Check that a module gives the same eval output on these inputs before and after a step.

    The guard calls the module in eval with copies of the inputs, and puts everything back: modes,
    parameters, buffers, gradients and random generators.

    Args:
        module: the module.
        inputs: positional arguments of the call: tensors of any shape and dtype, nested in any way.
        modules: names of submodules to call in its place; they are looked up again after the step.
        rtol: how far values may be apart, relative to their values before.
        atol: how far values may be apart; with both 0, bits, dtypes and shapes must agree.
        named_inputs: keyword arguments of the call.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered or left, if two runs in a row differ or the module raises; when
            left, if nothing ran.
        InvariantBroken: when left, if an output changed.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, same_output
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
        >>> x = torch.randn(4, 3)
        >>> with same_output(net, x) as guard:
        ...     output = net(x)
        >>> guard.verdict.holds
        True
        >>> try:
        ...     with same_output(net, x):
        ...         output = net.train()(x)
        ... except InvariantBroken as failure:
        ...     print(str(failure).splitlines()[0])
        1 of 1 output changed: output (mode-flip)
    """
    names = option_names(modules, "modules")
    _insist_on_inputs("same_output", inputs, named_inputs)
    arguments = CallArguments.copy_of(inputs, named_inputs)
    return OutputGuard(module, names, arguments, Tolerance(rtol, atol))


@refuse_wrong_calls(models=2)
def assert_same_output(
    one: nn.Module,
    other: nn.Module,
    /,
    *inputs: Any,
    rtol: float = 0.0,
    atol: float = 0.0,
    **named_inputs: Any,
) -> Verdict:
    """Check that two modules give the same eval output on these inputs, such as after a conversion.

    Args:
        one: a module.
        other: the module that was made from it.
        inputs: positional arguments of both calls: tensors of any shape and dtype, nested in any
            way.
        rtol: how far values may be apart, relative to those of `one`.
        atol: how far values may be apart; with both 0, bits, dtypes and shapes must agree.
        named_inputs: keyword arguments of both calls.

    Returns:
        The verdict, which holds.

    Raises:
        GateError: if two runs in a row of one module differ, or a module raises.
        InvariantBroken: if an output differs.

    Examples:
        >>> import copy
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, assert_same_output
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> other = copy.deepcopy(norm)
        >>> x = torch.randn(4, 2)
        >>> assert_same_output(norm, other, x).holds
        True
        >>> other.eps = 1e-3
        >>> try:
        ...     assert_same_output(norm, other, x)
        ... except InvariantBroken as failure:
        ...     print(str(failure).splitlines()[0])
        1 of 1 output differs: output
    """
    _insist_on_inputs("assert_same_output", inputs, named_inputs)
    arguments = CallArguments.copy_of(inputs, named_inputs)
    return at_once(TwinGuard(one, other, arguments, Tolerance(rtol, atol)))


def _insist_on_inputs(name: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    if not inputs and not named:
        raise GateError(f"{name} needs the inputs that the module is called with")
