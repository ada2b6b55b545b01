"""Laws of layers that synchronise, on ranks with equally large shards of a batch."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import DENSE, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.batchnorm.laws.across_ranks.sharded_cases import alike
from pytest_bninvariants.batchnorm.laws.across_ranks.steps import (
    GRADIENTS,
    STATISTICS,
    build_in_training,
    check_output_and_input_gradient,
    check_step,
    run_forward,
)
from pytest_bninvariants.batchnorm.laws.registry import rank_law
from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial
from pytest_bninvariants.batchnorm.whole_batch import WholeBatchTwin


@rank_law()
def synced_output(trial: RankTrial, case: Case) -> None:
    """In training each rank normalises its shard with mean and biased var of the whole batch."""
    expected = run_forward(trial, build_in_training(trial))
    trial.gather("y")
    trial.check_close("y", expected.output, axis=1)


def _track(trial: RankTrial, *expressions: str) -> WholeBatchTwin:
    """Run the case's steps, gather expressions, and return the twin."""
    twin = build_in_training(trial)
    for step in range(len(trial.case.batches) // trial.size):
        run_forward(trial, twin, step)
    trial.gather(*expressions)
    return twin


@rank_law(steps=2)
def synced_running_mean(trial: RankTrial, case: Case) -> None:
    """On each rank running_mean becomes (1 - m) old + m mean of the whole batch."""
    twin = _track(trial, "layer.running_mean")
    trial.check_close("layer.running_mean", [twin.running_mean] * trial.size)


@rank_law(steps=2)
def synced_running_var(trial: RankTrial, case: Case) -> None:
    """On each rank running_var becomes (1 - m) old + m var n/(n - 1), n counted over all ranks."""
    twin = _track(trial, "layer.running_var")
    trial.check_close("layer.running_var", [twin.running_var] * trial.size)


@rank_law(steps=3, share=0.1, momentum=False, needs=("momentum", "num_batches_tracked"))
def synced_cumulative_average(trial: RankTrial, case: Case) -> None:
    """With momentum=None the k-th batch of all ranks together weighs 1/k."""
    trial.case = replace(case, momentum=None, count=case.count % 10)
    twin = _track(trial, *STATISTICS)
    trial.check_close("layer.running_mean", [twin.running_mean] * trial.size)
    trial.check_close("layer.running_var", [twin.running_var] * trial.size)


@rank_law(("float32",), steps=3, share=0.1, needs=("num_batches_tracked",))
def synced_counter(trial: RankTrial, case: Case) -> None:
    """num_batches_tracked counts a batch of all ranks together as one, on each rank."""
    _track(trial, "int(layer.num_batches_tracked)")
    right = case.count + 3
    for rank, count in enumerate(trial.got("int(layer.num_batches_tracked)")):
        if count != right:
            news = f"num_batches_tracked is {count} on rank {rank}, expected {right}"
            trial.fail_on(rank, news, f"int(layer.num_batches_tracked) == {right}")


def _gradients(
    trial: RankTrial, index: int, *, grad: bool = False, frozen: str
) -> list[BoundedValue]:
    """Run a step, gather one gradient, and return what it must be on each rank."""
    twin = build_in_training(trial)
    if trial.case.seed is not None and trial.case.seed % 2:
        trial.run(f"{frozen}.requires_grad_(False)")
    expected = run_forward(trial, twin, grad=grad)
    grads = trial.run_backward()
    trial.gather(GRADIENTS[index])
    return expected.gradients(grads, trial.shares)[index]


@rank_law()
def synced_input_gradient(trial: RankTrial, case: Case) -> None:
    """In training d x is that of the whole batch: mean(g) and mean(g xh) are over all ranks."""
    gradient = _gradients(trial, 0, grad=True, frozen="layer")
    trial.check_close("x.grad", gradient, axis=1)


@rank_law()
def synced_weight_gradient(trial: RankTrial, case: Case) -> None:
    """On each rank d weight is the sum of g xh over its own samples, for DDP to reduce."""
    gradient = _gradients(trial, 1, frozen="layer.bias")
    trial.check_close("layer.weight.grad", gradient)


@rank_law()
def synced_bias_gradient(trial: RankTrial, case: Case) -> None:
    """On each rank d bias is the sum of g over its own samples, for DDP to reduce."""
    gradient = _gradients(trial, 2, frozen="layer.weight")
    trial.check_close("layer.bias.grad", gradient)


@rank_law(("float32",), share=0.1, affine=False)
def synced_affine_off(trial: RankTrial, case: Case) -> None:
    """With affine=False output and the input's gradient are the same without weight and bias."""
    check_output_and_input_gradient(trial, build_in_training(trial))


@rank_law(shaped=alike, most_kappa=1e6)
def synced_offsets(trial: RankTrial, case: Case) -> None:
    """A mean that is large beside the deviation costs no more digits than on one process.

    avg(x^2) - mean^2 of exchanged sums loses them; deviations from the mean do not.
    """
    twin = build_in_training(trial, squares=False)
    expected = run_forward(trial, twin)
    trial.gather("y", *STATISTICS)
    trial.check_close("y", expected.output, axis=1)
    trial.check_close("layer.running_mean", [twin.running_mean] * trial.size)
    trial.check_close("layer.running_var", [twin.running_var] * trial.size)


@rank_law(("bfloat16", "float16"), state_dtype="float32", layouts=DENSE)
def synced_half_input(trial: RankTrial, case: Case) -> None:
    """Of half inputs a float32 layer exchanges float32: all it gives is as exact as alone."""
    check_step(trial, build_in_training(trial))


@rank_law(("float32",), steps=3)
def synced_bit_for_bit(trial: RankTrial, case: Case) -> None:
    """All ranks have the same running statistics, to the last bit, so that any may be saved."""
    _track(trial, *STATISTICS)
    for name in STATISTICS:
        values = trial.got(name)
        for rank, value in enumerate(values):
            if not bool((value == values[0]).all()):
                trial.run(
                    f"all_ranks = [None] * {trial.size}",
                    f"distributed.all_gather_object(all_ranks, {name}.cpu())",
                )
                trial.fail_on_all(
                    f"{name} is {values[0].tolist()} on rank 0 and {value.tolist()} on rank {rank}",
                    "all(torch.equal(each, all_ranks[0]) for each in all_ranks)",
                )
