"""One law's run on one layer on several ranks, each of which gets its shard of a batch.

All ranks run the same lines, in which `rank` is their number. What they computed is compared in the
process that started them, which has the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from hypothesis import reject
from torch import Tensor

from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.batchnorm.trials.comparison import ComparisonTally, TensorComparison
from pytest_bninvariants.batchnorm.trials.law_trial import layer_line, reference_in_state
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.batchnorm.trials.report import brief, describe_ranks, law_report
from pytest_bninvariants.batchnorm.whole_batch import WholeBatchTwin
from pytest_bninvariants.errors import GateError, LawBroken
from pytest_bninvariants.ranks.team import (
    JOB_SECONDS,
    RankAnswer,
    RankJob,
    RankTeam,
    backend_for,
    first_trouble,
)

_NO_CPU_PATH = "SyncBatchNorm expected input tensor to be on"


class LawNotTried(Exception):
    """Raised when nothing can be said of a law here; the message says why, and how it can be."""


def require_importable(subject: LayerUnderTest) -> None:
    """Refuse a layer that other processes cannot import.

    Raises:
        ValueError: if they cannot.
    """
    line = subject.import_line()
    if line.startswith("# ") or line.startswith("from __main__ "):
        raise ValueError(
            f"{subject.label} is tried on {subject.ranks} ranks, which are other processes: define "
            "it at the top level of a module that they can import, not in a function or a script"
        )


class Verbatim(str):
    """An argument that stands in code as it is: a name, say."""

    def __repr__(self) -> str:
        return str(self)


class SparedTeam:
    """A team that runs no further job once one got its ranks into trouble, but answers that again.

    Hypothesis would try smaller cases, for each of which the ranks would have to start anew.

    Args:
        team: the ranks.
    """

    def __init__(self, team: RankTeam) -> None:
        self.size = team.size
        self._team = team
        self._troubled: tuple[RankJob, list[RankAnswer]] | None = None

    def run(self, job: RankJob) -> list[RankAnswer]:
        """Return what each rank makes of a job."""
        if self._troubled is not None:
            before, answers = self._troubled
            if job == before:
                return answers
            reject()
        answers = self._team.run(job)
        if first_trouble(answers) is not None:
            self._troubled = job, answers
        return answers


class RankTrial:
    """Run a law's lines on the ranks of a team.

    Args:
        law: the law's name.
        statement: the law's statement.
        subject: the layer under test.
        case: how to make the layer, and its batches: for each step one for each rank.
        tally: the tally that counts comparisons.
        team: the ranks.
    """

    def __init__(
        self,
        law: str,
        statement: str,
        subject: LayerUnderTest,
        case: Case,
        tally: ComparisonTally,
        team: SparedTeam,
    ) -> None:
        self.law, self.statement, self.subject, self.case = law, statement, subject, case
        self.tally, self.size = tally, team.size
        self._team = team
        self._setup = [subject.import_line()]
        self._lines: list[str] = []
        self._got: dict[str, list[Any]] = {}

    @property
    def shares(self) -> str:
        """Return what weight and bias get on each rank, as is declared."""
        return self.subject.declaration.parameter_gradients

    def set_up(self, line: str) -> None:
        """Add a line that each rank runs once, for all trials."""
        self._setup.append(line)

    def run(self, *lines: str) -> None:
        """Add lines, which run on all ranks when their results are gathered."""
        self._lines += lines

    def run_on(self, rank: int, *lines: str) -> None:
        """Add lines that run on one rank."""
        indented = "\n".join(lines).replace("\n", "\n    ")
        self.run(f"if rank == {rank}:\n    {indented}")

    def build_layer(self, **arguments: Any) -> None:
        """Make the layer of the case in its state, as `layer`, on all ranks.

        Args:
            arguments: arguments of the constructor, in place of the case's.
        """
        case = self.case
        self.run(layer_line(self.subject, case, arguments))
        for name, value in case.state().items():
            self.run(*case.state_source(name, value), f"layer.{name}.data.copy_(value)")
        if case.count and case.track_running_stats and self.subject.counts:
            self.run(f"layer.num_batches_tracked.fill_({case.count})")

    def make_twin(self, *, squares: bool = True) -> WholeBatchTwin:
        """Return the reference in the case's state, in training, with the bounds of its state."""
        return WholeBatchTwin(*reference_in_state(self.case, {}), squares=squares)

    def bind_shards(self, step: int = 0, *, grad: bool = False) -> list[Tensor]:
        """Bind `x` on each rank to its shard of a step's batch, and return the shards."""
        batches = [self.case.batches[index] for index in self._indices(step)]
        for rank, batch in enumerate(batches):
            self.run_on(rank, *batch.source(self.case.device))
        if grad:
            self.run("x = x.detach().requires_grad_()")
        return [batch.tensor() for batch in batches]

    def run_backward(self, step: int = 0) -> list[Tensor]:
        """Run the backward of the case's loss, and return the gradients of the ranks' outputs."""
        if self.case.plain_gradient:
            self.run("y.sum().backward()")
            return [torch.ones(self.case.batches[each].shape) for each in self._indices(step)]
        grads = self.bind_gradients(step)
        self.run("y.backward(g)")
        return grads

    def bind_gradients(self, step: int = 0, name: str = "g") -> list[Tensor]:
        """Bind a name on each rank to a random gradient of its output, and return these."""
        for rank, index in enumerate(self._indices(step)):
            self.run_on(rank, f"{name} = {self.case.gradient_source(index)}")
        return [self.case.gradient(index).cpu() for index in self._indices(step)]

    def _indices(self, step: int) -> range:
        """Return the places of a step's batches among the case's."""
        return range(step * self.size, (step + 1) * self.size)

    def gather(self, *expressions: str) -> None:
        """Run the lines so far on all ranks, and keep what expressions give on each.

        Raises:
            LawBroken: if a rank does not come through them.
            LawNotTried: if the layer cannot compute on this device.
            GateError: if a rank cannot import the layer.
        """
        job = RankJob(setup=(*self._setup,), lines=(*self._lines,), results=expressions)
        answers = self._team.run(job)
        trouble = first_trouble(answers)
        if trouble is not None:
            self._fail_in_trouble(trouble, answers)
        for index, expression in enumerate(expressions):
            self._got[expression] = [answer.values[index] for answer in answers]

    def got(self, expression: str) -> list[Any]:
        """Return what an expression that was gathered gave on each rank."""
        return self._got[expression]

    def check_close(
        self,
        expression: str,
        expected: Sequence[BoundedValue],
        *,
        axis: int = 0,
        ranks: Sequence[int] | None = None,
    ) -> None:
        """Check that a tensor that was gathered is as near to its true value as rounding allows.

        Args:
            expression: the tensor.
            expected: the true value and the bound on each of the ranks.
            axis: the axis of channels.
            ranks: the ranks; None: all.
        """
        wrong = {}
        every = range(self.size) if ranks is None else ranks
        for rank, bounded in zip(every, expected, strict=True):
            comparison = self._compare(expression, rank, bounded, axis)
            if bool(comparison.wrong().any()):
                wrong[rank] = comparison
        if wrong:
            rank, comparison = next(iter(wrong.items()))
            self._fail_far_off(expression, rank, comparison, [*wrong])

    def _compare(
        self, expression: str, rank: int, bounded: BoundedValue, axis: int
    ) -> TensorComparison:
        got, shape = self._got[expression][rank], tuple(bounded.value.shape)
        if not isinstance(got, Tensor) or got.shape != shape:
            news = f"is {brief(got)}, expected a tensor of shape {shape}"
            check = f"tuple({expression}.shape) == {shape}"
            self.fail_on(rank, f"{expression} {news} on rank {rank}", check)
        comparison = TensorComparison.from_tensors(got, bounded, axis)
        if got.numel():
            self.tally.add_comparison(comparison, self.law)
        return comparison

    def _fail_far_off(
        self, expression: str, rank: int, comparison: TensorComparison, ranks: Sequence[int]
    ) -> NoReturn:
        wrong = comparison.wrong()
        count, table = comparison.table(wrong)
        check = comparison.check(expression, wrong)
        also = [f"  on rank {rank}; it is off on rank {', '.join(map(str, ranks[1:]))}, too"]
        table = [*table, *(also if len(ranks) > 1 else [])]
        self.run_on(rank, *comparison.source(wrong), f"assert {check}")
        self._fail(f"{expression} is off in {count} on rank {rank}", table)

    def fail_on(self, rank: int, news: str, check: str) -> NoReturn:
        """Raise that the law is broken, by what a rank has.

        Args:
            rank: the rank.
            news: what is wrong, one line.
            check: an expression that the snippet asserts on this rank.
        """
        self.run_on(rank, f"assert {check}")
        self._fail(news)

    def fail_on_all(self, news: str, check: str) -> NoReturn:
        """Raise that the law is broken; as `fail_on`, with an expression for all ranks."""
        self.run(f"assert {check}")
        self._fail(news)

    def _fail(self, news: str, table: Sequence[str] = ()) -> NoReturn:
        headline = f"{self.subject.label} breaks the law {self.law}: {news}"
        snippet = self._snippet()
        described = describe_ranks(self.case, self.size)
        report = law_report(headline, self.statement, described, [*table], snippet)
        raise LawBroken(report, self.law, "\n".join(snippet))

    def _fail_in_trouble(self, trouble: RankAnswer, answers: Sequence[RankAnswer]) -> NoReturn:
        if self.case.device == "cpu" and _NO_CPU_PATH in trouble.trouble:
            raise LawNotTried(
                "torch.nn.SyncBatchNorm has no CPU path, so this law was not tried on ranks: give "
                "--bn-device=cuda on a machine with a GPU"
            )
        if trouble.line and trouble.line in self._setup[0].splitlines():
            raise GateError(f"`{trouble.line}` on rank {trouble.rank} {trouble.trouble}")
        line = f"`{trouble.line}` on " if trouble.line else ""
        news = f"{line}rank {trouble.rank} {trouble.trouble}"
        others = [f"  rank {a.rank}: {a.trouble or 'came through'}" for a in answers]
        others = [text for text, a in zip(others, answers, strict=True) if a is not trouble]
        self._fail(news, others)

    def _snippet(self) -> list[str]:
        """Return a script for torchrun: what the ranks ran."""
        backend = backend_for(self.case.device, self.size)
        of_device = ["torch.cuda.set_device(rank)"] if backend == "nccl" else []
        lines = [
            f"# torchrun --nproc-per-node {self.size} THIS_FILE",
            "from datetime import timedelta",
            "import torch",
            "from torch import distributed",
            *self._setup[:1],
            "",
            f"limit = timedelta(seconds={JOB_SECONDS:.0f})",
            f"distributed.init_process_group({backend!r}, timeout=limit)",
            "rank = distributed.get_rank()",
            *of_device,
            *self._setup[1:],
            *self._lines,
        ]
        return [part for line in lines for part in line.split("\n")]
