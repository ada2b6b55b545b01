"""The invariant `batch_invariant`: in eval, a sample's output does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants.batches import Batch, Order, described
from pytest_bninvariants.invariants.doubling import Cast
from pytest_bninvariants.invariants.guards import Guard, at_once
from pytest_bninvariants.invariants.inference import in_eval
from pytest_bninvariants.invariants.levels import Level, Tensors, measured, run, tolerated
from pytest_bninvariants.invariants.mixing import Normalising, first_apart, recording
from pytest_bninvariants.invariants.outputs import Tolerance
from pytest_bninvariants.invariants.rounding import distances
from pytest_bninvariants.invariants.selection import submodules
from pytest_bninvariants.invariants.spelling import model_of, refusing, spelled
from pytest_bninvariants.invariants.verdict import Cause, Change, Verdict

EXAMPLES = 20


class Trial:
    """Hold batches of some samples against the whole batch, on one module in eval.

    Args:
        module: the module.
        name: what its output is called.
        batch: the whole batch.
        tolerance: how far values may be apart; exact: as far as rounding explains.
        guard: the guard, as its user wrote it.
        stack: keeps copies of the module in eval.

    Raises:
        GateError: nothing can be told from its outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        batch: Batch,
        tolerance: Tolerance,
        guard: str,
        stack: ExitStack,
    ) -> None:
        self._module, self._name, self._batch, self._guard = module, name, batch, guard
        self.batches = 0
        self.worst: dict[str, float] = {}
        whole = self._of_whole_batch()
        self._whole = self._with_rows(whole)
        self.left_out = [path for path in whole if path not in self._whole]
        self._insist_on_rows(whole)
        self._levels: list[Level] = (
            measured(module, self._whole, batch, name, stack)
            if tolerance.exact
            else tolerated(module, self._whole, tolerance)
        )
        self._insist_on_repeatable()

    @property
    def outputs(self) -> int:
        """Return how many outputs are compared."""
        return len(self._whole)

    def _of_whole_batch(self) -> Tensors:
        try:
            return run(self._module, self._batch.call, self._name)
        except Exception as error:  # whatever it raises, there is no output to judge
            raise GateError(
                f"{self._guard}: {type(self._module).__name__} in eval raised on the whole batch: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _with_rows(self, whole: Tensors) -> Tensors:
        """Return the outputs with a row for each sample, in a batch of another size, too."""
        size = self._batch.size
        rows = {path: t for path, t in whole.items() if t.dim() and len(t) == size}
        try:
            fewer = run(self._module, self._batch.part(tuple(range(size - 1))), self._name)
        except Exception:  # a batch that raises is told of when its turn comes
            return rows
        return {
            path: tensor
            for path, tensor in rows.items()
            if path not in fewer or (fewer[path].dim() and len(fewer[path]) == size - 1)
        }

    def _insist_on_rows(self, whole: Tensors) -> None:
        if not self._whole:
            told = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in whole.items())
            raise GateError(
                f"{self._guard}: no output has a row for each of the {self._batch.size} samples; "
                f"there is {told or 'no tensor'}"
            )
        if not any(bool(distances(t, t[:1].expand_as(t)).any()) for t in self._whole.values()):
            raise GateError(
                f"{self._guard} cannot judge: the output is the same for all {self._batch.size} "
                "samples, as with a last layer that begins with zeros"
            )

    def _insist_on_repeatable(self) -> None:
        """Compare two runs of the whole batch, at the finest level: there chance stands out."""
        level, everyone = self._levels[0], tuple(range(self._batch.size))
        again = run(level.module, self._batch.call, self._name)
        for path in self._whole:
            error, _ = level.compare(path, again.get(path), everyone)
            if error > 1:
                raise GateError(
                    f"{self._guard} cannot judge: two runs in eval in a row, on the same batch, "
                    f"differ in {path}: the forward draws random numbers in eval, as F.dropout "
                    "does where it is not told training=self.training, or keeps a state"
                )

    def judge(self, order: Order) -> list[Change]:
        """Tell which outputs of a batch of these samples are not those of the whole one."""
        self.batches += 1
        for level in self._levels:
            try:
                part = run(level.module, self._batch.part(order), self._name)
            except Exception as error:  # whatever the module raises is the finding
                where = described(order, self._batch.size)
                return [_change(p, f"{where}: {_said(error)}") for p in self._whole]
            changes = []
            for path in self._whole:
                error_in_bounds, text = level.compare(path, part.get(path), order)
                if error_in_bounds > 1:
                    changes.append(_change(path, text))
                else:
                    most = max(self.worst.get(level.name, 0.0), error_in_bounds)
                    self.worst[level.name] = most
            if changes:
                return changes
        return []

    def smallest(self, examples: int) -> tuple[Order, list[Change]]:
        """Return the smallest batch that differs, and how.

        Args:
            examples: how many batches hypothesis draws; a few large ones come on top.
        """
        found = _shrunk(self.judge, self._batch.size, examples)
        everyone = tuple(range(self._batch.size))
        for order in (
            () if found else (everyone[::-1], everyone[1:], everyone[: len(everyone) // 2])
        ):
            changes = self.judge(order)
            if changes:
                return order, changes
        return found or ((), [])

    def first_apart(self, order: Order) -> str | None:
        """Return the first part of the module whose samples depend on each other, if known."""
        copy = self._levels[0].module
        if not isinstance(copy, Cast):
            return None
        with recording(copy.twin) as whole:
            run(copy, self._batch.call, self._name)
        with recording(copy.twin) as part:
            run(copy, self._batch.part(order), self._name)
        return first_apart(whole, part, order)


def _change(path: str, text: str) -> Change:
    return Change(name=path, layer=path, kind="values", text=text)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Differs(Exception):
    """Carry what differs out of hypothesis."""

    def __init__(self, order: Order, changes: list[Change]) -> None:
        super().__init__(order)
        self.order, self.changes = order, changes


def _shrunk(
    judge: Callable[[Order], list[Change]], size: int, examples: int
) -> tuple[Order, list[Change]] | None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(range(size)), min_size=1, max_size=size, unique=True))
    def hold(samples: list[int]) -> None:
        changes = judge(tuple(samples))
        if changes:
            raise _Differs(tuple(samples), changes)

    try:
        hold()
    except _Differs as found:
        return found.order, found.changes
    return None


class BatchGuard(Guard):
    """Hold, when a step ends, that samples do not depend on their batch.

    Args:
        model: the model.
        modules: names of the modules in it that are called; none: the model itself.
        batch: the whole batch.
        tolerance: how far values may be apart; exact: as far as rounding explains.
        examples: how many batches are drawn.
        source: where the model was found; empty where it was passed.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: tuple[str, ...],
        batch: Batch,
        tolerance: Tolerance,
        examples: int,
        source: str,
    ) -> None:
        super().__init__(model, spelled("batch_invariant", modules, **tolerance.options))
        self._modules, self._batch, self._tolerance = modules, batch, tolerance
        self._examples, self._source = examples, source

    def _begin(self) -> None:
        """What is judged is the model as the step leaves it."""

    def _judge(self) -> Verdict:
        found = [self._try(*each) for each in submodules(self.model, self._modules).items()]
        changes = tuple(change for each in found for change in each.changes)
        return Verdict(
            guard=self.spelled,
            noun="output",
            broke="depends on the batch" if len(changes) == 1 else "depend on the batch",
            column="output",
            model=type(self.model).__name__,
            source=self._source,
            layers=sum(each.outputs for each in found),
            tensors=None,
            changes=changes,
            causes=tuple(cause for each in found for cause in each.causes),
            notes=tuple(note for each in found for note in each.notes),
        )

    def _try(self, name: str, module: nn.Module) -> _Tried:
        heard = Normalising()
        with ExitStack() as stack:
            stack.enter_context(in_eval(module, heard))
            batch, tolerance = self._batch, self._tolerance
            trial = Trial(module, name or "output", batch, tolerance, self.spelled, stack)
            order, changes = trial.smallest(self._examples)
            causes = heard.causes(module, name) if changes else ()
            notes = [*_left_out(trial)]
            if changes and not causes:
                notes.append(_culprit(module, trial.first_apart(order)))
            elif not changes:
                notes.append(_how_near(trial))
        return _Tried(trial.outputs, changes, causes, notes)


class _Tried(NamedTuple):
    """What was found about one module."""

    outputs: int
    changes: list[Change]
    causes: tuple[Cause, ...]
    notes: list[str]


def _left_out(trial: Trial) -> Iterator[str]:
    if trial.left_out:
        yield f"without a row for each sample, so not compared: {', '.join(trial.left_out)}"


def _how_near(trial: Trial) -> str:
    errors = ", ".join(f"{error:.2g} in {level}" for level, error in trial.worst.items())
    return f"{trial.batches} batches compared; the largest error, in bounds: {errors}"


def _culprit(module: nn.Module, name: str | None) -> str:
    if name is None:
        return "no BN layer normalised with batch statistics: something else mixes samples"
    part = module.get_submodule(name)
    where = f"{name} ({type(part).__name__})" if name else f"{type(part).__name__}'s own forward"
    return f"no BN layer normalised with batch statistics; samples are first mixed in {where}"


@refusing
def batch_invariant(
    module: nn.Module,
    inputs: Any,
    *,
    modules: Iterable[str] | str = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    examples: int = EXAMPLES,
) -> Verdict:
    """Hold that in eval a sample's output does not depend on its batch mates.

    Neither on which they are, nor on their order or number: hypothesis draws batches of some of
    the samples, and each output must be that of the whole batch, up to rounding. How far rounding
    goes is measured: the whole batch is run in float64, too, and a copy of the module in float64
    is what dependence is looked for in first. See `invariants/rounding.py`.

    Args:
        module: the module; it is called in eval, and left as it was.
        inputs: a batch of at least two different samples: a tensor (N, ...), a tuple of what is
            passed by position, or a mapping of what is passed by name.
        modules: names of submodules that are called in its place.
        rtol: how far values may be apart, relative to the whole batch's, in place of bounds.
        atol: how far values may be apart, in place of bounds.
        examples: how many batches are drawn.

    Returns:
        The verdict, which holds; its notes tell how near to the bounds it came.

    Raises:
        GateError: two runs in a row differ; no output has a row a sample; samples are equal; the
            module cannot be run in float64, and no tolerance is given.
        InvariantBroken: a sample's output depends on its batch.
    """
    return at_once(batch_guard(module, inputs, modules, rtol, atol, examples))


def batch_guard(
    module: nn.Module,
    inputs: Any,
    modules: Iterable[str] | str = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    examples: int = EXAMPLES,
    _source: str = "",
) -> BatchGuard:
    """Return a guard that holds it when a step ends; arguments as `batch_invariant`."""
    model = model_of("batch_invariant", module, "(module, inputs)")
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < 1:
        raise GateError(f"examples= takes a number from 1; got {shown(examples)}")
    names = (modules,) if isinstance(modules, str) else tuple(modules)
    batch = Batch.of(inputs, spelled("batch_invariant", names))
    return BatchGuard(model, names, batch, Tolerance(rtol, atol), examples, _source)
