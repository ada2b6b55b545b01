"""Steps that laws of several ranks share: they drive a layer on all ranks and its twin together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial
from pytest_bninvariants.batchnorm.whole_batch import ShardedExpectation, WholeBatchTwin

STATISTICS = ("layer.running_mean", "layer.running_var")
GRADIENTS = ("x.grad", "layer.weight.grad", "layer.bias.grad")
STEP_RESULTS = ("y", *STATISTICS, *GRADIENTS)


def build_in_training(trial: RankTrial, *, squares: bool = True) -> WholeBatchTwin:
    """Build the layer in training on all ranks, and return its twin."""
    trial.build_layer()
    trial.run("layer.train()")
    return trial.make_twin(squares=squares)


def run_forward(
    trial: RankTrial, twin: WholeBatchTwin, step: int = 0, *, grad: bool = False
) -> ShardedExpectation:
    """Run a forward on each rank's shard, as `y`, and return what it must give."""
    shards = trial.bind_shards(step, grad=grad)
    trial.run("y = layer(x)")
    return twin.expect_shards(shards)


def check_output_and_input_gradient(trial: RankTrial, twin: WholeBatchTwin) -> None:
    """Run a step in training, and check what a layer without parameters or statistics has of it."""
    expected = run_forward(trial, twin, grad=True)
    grads = trial.run_backward()
    trial.gather("y", "x.grad")
    trial.check_close("y", expected.output, axis=1)
    trial.check_close("x.grad", expected.gradients(grads, trial.shares)[0], axis=1)


def check_step(trial: RankTrial, twin: WholeBatchTwin) -> None:
    """Run a step in training, and check output, running statistics and gradients."""
    expected = run_forward(trial, twin, grad=True)
    grads = trial.run_backward()
    trial.gather(*STEP_RESULTS)
    check_step_results(trial, twin, expected, grads, range(trial.size))


def check_step_results(
    trial: RankTrial,
    twin: WholeBatchTwin,
    expected: ShardedExpectation,
    grads: Sequence[Tensor],
    ranks: Sequence[int],
) -> None:
    """Check what was gathered of a step on some ranks.

    Args:
        trial: the trial.
        twin: the twin of the layer on these ranks.
        expected: what the layer must make of their shards.
        grads: the gradients of their outputs.
        ranks: these ranks.
    """
    of_input, of_weight, of_bias = expected.gradients(grads, trial.shares)
    trial.check_close("y", expected.output, axis=1, ranks=ranks)
    trial.check_close("layer.running_mean", [twin.running_mean] * len(ranks), ranks=ranks)
    trial.check_close("layer.running_var", [twin.running_var] * len(ranks), ranks=ranks)
    trial.check_close("x.grad", of_input, axis=1, ranks=ranks)
    trial.check_close("layer.weight.grad", of_weight, ranks=ranks)
    trial.check_close("layer.bias.grad", of_bias, ranks=ranks)
