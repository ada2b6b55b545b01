"""The invariant `same_output`: in eval, the same inputs give the same outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from pytest_bninvariants.diagnosis.wording import clauses
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.evaluation.eval_mode import Call
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.guard import Guard, at_once
from pytest_bninvariants.invariants.same_output.module_differences import unlike
from pytest_bninvariants.invariants.same_output.outputs import Outputs
from pytest_bninvariants.invariants.signature import refuse_wrong_calls, spell
from pytest_bninvariants.selection.model_names import all_tensors
from pytest_bninvariants.selection.scope import Scope, submodules
from pytest_bninvariants.state_change.before_after import StateBefore, read_state_before
from pytest_bninvariants.state_change.compare import StateDifference, compare
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Change, Verdict

_NOTHING = StateDifference(changes=(), causes=(), hazards=(), touched=False)


class OutputGuard(Guard):
    """Hold that modules give the same outputs before and after a step.

    Args:
        model: the model.
        modules: names of the modules in it that are called; none: the model itself.
        call: what they are called with.
        tolerance: how far apart values may be.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: tuple[str, ...],
        call: Call,
        tolerance: Tolerance,
    ) -> None:
        super().__init__(model, spell("same_output", modules, **tolerance.options))
        self._modules, self._call = modules, call
        self._tolerance = tolerance
        self._outputs: dict[str, Outputs] = {}
        self._before: StateBefore | None = None
        self._witness: Witness | None = None

    def _begin(self) -> None:
        for name, module in submodules(self.model, self._modules).items():
            self._outputs[name] = self._run(module, name)
        if any(True for module in self._now().values() for _ in all_tensors(module)):
            scope = self._scope()
            self._before = read_state_before(self.model, scope)
            self._witness = Witness(self.model, self._before.selection)
            self._witness.start()

    def _end(self) -> None:
        if self._witness is not None:
            self._witness.stop()

    def _judge(self) -> Verdict:
        changes = [change for name in self._outputs for change in self._changes(name)]
        findings = _NOTHING
        if self._before is not None and self._witness is not None:
            findings = compare(self._before, self._witness, self._scope())
            if not (changes or findings.touched or self._witness.runs.saw_anything()):
                raise GateError(
                    f"nothing ran inside {self.spelled}: it saw no forward of the module, no step "
                    "of an optimizer that holds its parameters and no change of its state"
                )
        return Verdict(
            guard=self.spelled,
            noun="output",
            column="output",
            model=type(self.model).__name__,
            source=self.source,
            layers=sum(len(outputs.paths) for outputs in self._outputs.values()),
            tensors=None,
            changes=tuple(changes),
            causes=findings.causes if changes else (),
            hazards=findings.hazards if changes else (),
            notes=(_state_note(findings),) if changes else (),
        )

    def _now(self) -> dict[str, nn.Module]:
        return submodules(self.model, self._modules)

    def _scope(self) -> Scope:
        return Scope(modules=self._modules, allow_batch_stats=True)

    def _changes(self, name: str) -> list[Change]:
        module = self._now().get(name)
        if module is None:
            raise Refusal(f"{name!r} is no module of the model any more")
        return self._outputs[name].differences(self._run(module, name), self._tolerance)

    def _run(self, module: nn.Module, name: str) -> Outputs:
        return _outputs(module, self._call, name, self._tolerance)


class TwinGuard(Guard):
    """Hold that one module gives the outputs of another.

    Args:
        one: a module.
        other: what was made of it.
        call: what both are called with.
        tolerance: how far apart values may be.
    """

    def __init__(self, one: nn.Module, other: nn.Module, call: Call, tolerance: Tolerance) -> None:
        super().__init__(other, spell("assert_same_output", (), **tolerance.options))
        self._one, self._call, self._tolerance = one, call, tolerance

    def _begin(self) -> None:
        """Both are compared in the end."""

    def _judge(self) -> Verdict:
        first, second = (
            _outputs(module, self._call, "", self._tolerance) for module in (self._one, self.model)
        )
        changes = first.differences(second, self._tolerance)
        return Verdict(
            guard=self.spelled,
            noun="output",
            broke="differ" if len(changes) > 1 else "differs",
            column="output",
            model=f"{type(self._one).__name__} and {type(self.model).__name__}",
            source="",
            layers=len(first.paths),
            tensors=None,
            changes=tuple(changes),
            notes=unlike(self._one, self.model) if changes else (),
        )


def _outputs(module: nn.Module, call: Call, name: str, tolerance: Tolerance) -> Outputs:
    """Return what a module gives in eval, twice in a row."""
    try:
        first, second = call.twice(module, lambda value: Outputs.of(value, name or "output"))
    except GateError:
        raise
    except Exception as error:  # whatever it raises, there is no output to judge
        raise Refusal(
            f"{type(module).__name__} in eval raised on these inputs: "
            f"{type(error).__name__}: {error}"
        ) from error
    differences = first.differences(second, tolerance)
    if differences:
        told = clauses([f"{change.name} {change.text}" for change in differences])
        raise Refusal(
            f"two runs in eval in a row, on the same inputs, differ: {told}; "
            "its forward draws random numbers in eval, as F.dropout does where it is not told "
            "training=self.training, or keeps a state, or its kernels are not deterministic "
            "(then give rtol= or atol=)",
            verb=" cannot judge",
        )
    return first


def _state_note(findings: StateDifference) -> str:
    changes = [change for change in findings.changes if change.of_tensor]
    if not findings.changes:
        return (
            "no parameter, buffer or eps of it changed: its forward reads something else that did, "
            "such as an attribute or a setting of torch, or layers of it are others now"
        )
    told = clauses([f"{change.name} {change.text}" for change in changes or findings.changes])
    return f"of its state {len(changes or findings.changes)} differ: {told}"


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
    """Hold that a module's eval output on these inputs is the same before and after a block.

    The module is called in eval, with copies of the inputs, and everything is put back: modes,
    parameters, buffers, gradients and random generators.

    Args:
        module: the module.
        inputs: what it is called with: tensors of any shape and dtype, nested in any way.
        modules: names of submodules, looked up again after the block, that are called in its place.
        rtol: how far values may be apart, relative to what they were.
        atol: how far values may be apart; with both 0, bits, dtypes and shapes must agree.
        named_inputs: keywords that it is called with.

    Returns:
        A context manager for one block.

    Raises:
        GateError: two runs in a row differ; the module raises; nothing ran in the block.
        InvariantBroken: when left, if an output changed.
    """
    names = (modules,) if isinstance(modules, str) else tuple(modules)
    _insist_on_inputs("same_output", inputs, named_inputs)
    call = Call.of(inputs, named_inputs)
    return OutputGuard(module, names, call, Tolerance(rtol, atol))


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
    """Hold that two modules give the same eval output on these inputs, as around a conversion.

    Args:
        one: a module.
        other: what was made of it.
        inputs: what both are called with: tensors of any shape and dtype, nested in any way.
        rtol: how far values may be apart, relative to those of `one`.
        atol: how far values may be apart; with both 0, bits, dtypes and shapes must agree.
        named_inputs: keywords that both are called with.

    Returns:
        The verdict, which holds.

    Raises:
        GateError: two runs in a row of a module differ, or one raises.
        InvariantBroken: an output differs.
    """
    _insist_on_inputs("assert_same_output", inputs, named_inputs)
    guard = TwinGuard(one, other, Call.of(inputs, named_inputs), Tolerance(rtol, atol))
    return at_once(guard)


def _insist_on_inputs(name: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    if not inputs and not named:
        raise GateError(f"{name} needs the inputs that the module is called with")
