"""Hold batches of some samples against the whole batch, and shrink what differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.evaluation.batches import Batch, Order, described
from pytest_bninvariants.evaluation.precision import Cast
from pytest_bninvariants.evaluation.rounding import Tolerance, distances
from pytest_bninvariants.invariants.batch_invariant.precision_levels import (
    Level,
    Tensors,
    measured,
    run,
    tolerated,
)
from pytest_bninvariants.invariants.batch_invariant.sample_mixing import (
    first_apart,
    recording,
)
from pytest_bninvariants.verdict import Change


class Trial:
    """Hold batches of some samples against the whole batch, on one module in eval.

    Args:
        module: the module.
        name: what its output is called.
        batch: the whole batch.
        tolerance: how far values may be apart; exact: as far as rounding explains.
        stack: keeps copies of the module in eval.

    Raises:
        Refusal: if nothing can be told from its outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        batch: Batch,
        tolerance: Tolerance,
        stack: ExitStack,
    ) -> None:
        self._module, self._name, self._batch = module, name, batch
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
            raise Refusal(
                f"{type(self._module).__name__} in eval raised on the whole batch: "
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
            raise Refusal(
                f"no output has a row for each of the {self._batch.size} samples; "
                f"there is {told or 'no tensor'}"
            )
        if not any(bool(distances(t, t[:1].expand_as(t)).any()) for t in self._whole.values()):
            raise Refusal(
                f"the output is the same for all {self._batch.size} "
                "samples, as with a last layer that begins with zeros",
                verb=" cannot judge",
            )

    def _insist_on_repeatable(self) -> None:
        """Compare two runs of the whole batch, at the finest level: there chance stands out."""
        level, everyone = self._levels[0], tuple(range(self._batch.size))
        again = run(level.module, self._batch.call, self._name)
        for path in self._whole:
            error, _ = level.compare(path, again.get(path), everyone)
            if error > 1:
                raise Refusal(
                    "two runs in eval in a row, on the same batch, "
                    f"differ in {path}: the forward draws random numbers in eval, as F.dropout "
                    "does where it is not told training=self.training, or keeps a state",
                    verb=" cannot judge",
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
