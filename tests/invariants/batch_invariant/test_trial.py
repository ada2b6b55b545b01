"""Batches are compared with the whole batch: those that hypothesis draws, and a few large ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, Verdict, batch_invariant
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.batch_invariant.precision_levels import tolerated_level
from pytest_bninvariants.invariants.batch_invariant.sample_batch import Order, SampleBatch
from pytest_bninvariants.invariants.batch_invariant.shrinking import smallest_differing_batch
from pytest_bninvariants.invariants.batch_invariant.trial import BatchTrial
from pytest_bninvariants.invariants.batch_invariant.whole_output import WholeOutput
from pytest_bninvariants.verdict import Change


def broken(module: nn.Module, batch: Tensor, **options: float) -> Verdict:
    with pytest.raises(InvariantBroken) as caught:
        batch_invariant(module, batch, examples=1, **options)
    return caught.value.verdict


class WrongFor(nn.Module):
    """A kernel that goes wrong for one batch size, by a sample's place in the batch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(len(x))[:, None] if len(x) == self.size else x


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (64, "the batch of 64 in reverse has"),
        (63, "a batch of 63 (samples 1, 2, 3, 4, ...) has"),
        (32, "a batch of 32 (samples 0, 1, 2, 3, ...) has"),
    ],
)
def test_batches_that_hypothesis_seldom_draws_are_tried(size: int, words: str) -> None:
    batch = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    (change,) = broken(WrongFor(size), batch).changes
    assert change.text.startswith(words)


def trial(module: nn.Module, x: Tensor, tolerance: float = 1.0) -> BatchTrial:
    batch = SampleBatch.read(x)
    whole = WholeOutput.run(module, "y", batch)
    level = tolerated_level(module, whole.rows, Tolerance(atol=tolerance))
    return BatchTrial(batch, "y", [level])


class Alone(nn.Module):
    """Move a sample that is alone by half of its value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5 if len(x) == 1 else x


def test_the_largest_error_within_its_bound_is_kept() -> None:
    compared = trial(Alone(), torch.tensor([[1.0], [-1.5], [0.5]]))
    assert [compared.compare((number,)) for number in range(3)] == [[], [], []]
    assert compared.batches == 3
    assert compared.largest_errors == {"float32": 0.75}


def test_an_error_beyond_its_bound_is_a_change_and_counts_for_nothing_else() -> None:
    compared = trial(Alone(), torch.tensor([[1.0], [4.0]]))
    assert [change.name for change in compared.compare((1,))] == ["y"]
    assert compared.largest_errors == {}


def test_the_same_batches_are_drawn_each_time() -> None:
    drawn: list[Order] = []

    def compare(order: Order) -> list[Change]:
        drawn.append(order)
        return []

    assert smallest_differing_batch(compare, 9, 10) is None
    first = [*drawn]
    assert smallest_differing_batch(compare, 9, 10) is None
    assert drawn == first * 2
    assert len(set(first)) > 5


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * x.mean(0)


def test_the_place_is_found_below_the_rounding_of_the_modules_dtype_with_a_tolerance() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Mixing(), nn.ReLU())
    batch = torch.randn(8, 4) + 1
    assert broken(model, batch, atol=1e-8).notes[0].endswith("first mixed in 1 (Mixing)")


class Counting(nn.Module):
    def __init__(self, step: float) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.step * self.calls


@pytest.mark.parametrize(("step", "path"), [(0.1, None), (0.9, "y")])
def test_an_output_that_moves_from_run_to_run_is_found(step: float, path: str | None) -> None:
    # it runs on the whole batch, on a smaller one, and on the whole batch again: two steps apart
    assert trial(Counting(step), torch.randn(3, 2)).unrepeatable_output() == path


class RaisesBelow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 3:
            raise ValueError("too few samples")
        return x


@pytest.mark.parametrize(
    ("layers", "mixed_in"),
    [([RaisesBelow()], "something else mixes samples"), ([Alone(), RaisesBelow()], "0 (Alone)")],
)
def test_a_smaller_batch_that_raises_is_a_finding(layers: list[nn.Module], mixed_in: str) -> None:
    verdict = broken(nn.Sequential(*layers), torch.randn(3, 2))
    assert verdict.changes[0].text == "sample 0 alone: ValueError: too few samples"
    assert verdict.notes[0].endswith(mixed_in)


class Summary(nn.Module):
    """Return rows, and tensors that have as many rows only by chance."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"rows": x, "columns": x.sum(0), "sum": x.sum(), "few": x[:2]}


def test_only_outputs_that_follow_the_number_of_samples_have_rows() -> None:
    whole = WholeOutput.run(Summary(), "y", SampleBatch.read(torch.randn(3, 3)))
    assert list(whole.rows) == ["y['rows']"]
    assert whole.left_out == ["y['columns']", "y['sum']", "y['few']"]


class Counts(nn.Module):
    def forward(self, x: Tensor) -> int:
        return len(x)


@pytest.mark.parametrize(
    ("module", "returned"), [(nn.Flatten(0), r"y \(9,\)"), (Counts(), "no tensor")]
)
def test_a_module_without_rows_is_told_what_it_returned(module: nn.Module, returned: str) -> None:
    batch = SampleBatch.read(torch.randn(3, 3))
    with pytest.raises(Refusal, match=f"each of the 3 samples; the module returned {returned}$"):
        WholeOutput.run(module, "y", batch)


class WholeOnly(nn.Module):
    """Return a second output for the whole batch alone."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x] if len(x) == 3 else [x]


def test_an_output_that_only_the_whole_batch_has_is_a_finding() -> None:
    changes = broken(WholeOnly(), torch.randn(3, 2)).changes
    assert [change.name for change in changes] == ["output[1]"]
    assert changes[0].text == "sample 0 alone: shape none, expected (1, 2)"


@pytest.mark.parametrize(("rows", "differ"), [([1.0, 1.0], False), ([1.0, 2.0], True)])
def test_rows_differ_if_one_is_unlike_the_first(rows: list[float], differ: bool) -> None:
    whole = {"y": torch.tensor(rows)[:, None], "z": torch.ones(2)}
    assert WholeOutput(whole, []).rows_differ == differ
