"""Laws of layers that synchronise: with whom, and when they do not."""

from __future__ import annotations

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.laws.across_ranks.steps import STEP_RESULTS, check_step_results
from pytest_bninvariants.batchnorm.laws.registry import rank_law
from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial, Verbatim


@rank_law(("float32",), share=0.1, momentum=False, layouts=CONTIGUOUS)
def synced_eval_alone(trial: RankTrial, case: Case) -> None:
    """In eval a rank needs no other: forward and backward on one rank alone do not wait."""
    trial.build_layer()
    twin = trial.make_twin()
    twin.reference.eval()
    trial.run("layer.eval()", "y = None")
    alone = trial.size - 1
    x = trial.bind_shards(grad=True)[alone]
    trial.run_on(alone, "y = layer(x)", "y.sum().backward()")
    trial.gather("y")
    trial.check_close("y", [twin.expect(x).output], axis=1, ranks=[alone])


@rank_law(("float32",), needs=("process_group",))
def synced_process_group(trial: RankTrial, case: Case) -> None:
    """With a process group the whole batch is that of the group's ranks, and of no others."""
    half = trial.size // 2
    groups = [[*range(half)], [*range(half, trial.size)]]
    trial.set_up(f"groups = [distributed.new_group(ranks) for ranks in {groups}]")
    group = Verbatim(f"groups[rank >= {half}]")
    trial.build_layer(**{trial.subject.declaration.process_group: group})
    trial.run("layer.train()")
    shards = trial.bind_shards(grad=True)
    trial.run("y = layer(x)")
    grads = trial.run_backward()
    trial.gather(*STEP_RESULTS)
    for ranks in groups:
        twin = trial.make_twin()
        expected = twin.expect_shards([shards[rank] for rank in ranks])
        check_step_results(trial, twin, expected, [grads[rank] for rank in ranks], ranks)
