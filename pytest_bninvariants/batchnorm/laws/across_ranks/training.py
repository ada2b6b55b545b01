"""Laws of layers that synchronise, about how training goes on around a batch."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.laws.across_ranks.steps import (
    STATISTICS,
    build_in_training,
    check_output_and_input_gradient,
    check_step,
    run_forward,
)
from pytest_bninvariants.batchnorm.laws.registry import rank_law
from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial

# N and positions, by rank: odd numbers past 2**11, which half does not hold
_LARGE = {2: (2305,), 3: (9, 257), 4: (9, 17, 17), 5: (9, 17, 5, 3)}
_BUFFERS = (*STATISTICS, "layer.num_batches_tracked")


@rank_law(("float32", "float16"), share=0.1, state_dtype="float32", layouts=("channels_last",))
def synced_large_shards(trial: RankTrial, case: Case) -> None:
    """Thousands of values on each rank are added up and counted as few are, channels_last, too."""
    n, *positions = _LARGE[len(case.batches[0].shape)]
    shape = (n, case.channels, *positions)
    trial.case = replace(case, batches=tuple(replace(b, shape=shape) for b in case.batches))
    check_step(trial, build_in_training(trial))


@rank_law(("float32",), share=0.1, tracking=False)
def synced_tracking_off(trial: RankTrial, case: Case) -> None:
    """With track_running_stats=False training synchronises all the same."""
    check_output_and_input_gradient(trial, build_in_training(trial))


@rank_law(("float32",), share=0.1)
def synced_no_grad(trial: RankTrial, case: Case) -> None:
    """Under no_grad training synchronises all the same, as where statistics are re-estimated."""
    twin = build_in_training(trial)
    shards = trial.bind_shards()
    trial.run("with torch.no_grad():\n    y = layer(x)")
    expected = twin.expect_shards(shards)
    trial.gather("y", *STATISTICS)
    trial.check_close("y", expected.output, axis=1)
    trial.check_close("layer.running_mean", [twin.running_mean] * trial.size)
    trial.check_close("layer.running_var", [twin.running_var] * trial.size)


@rank_law(("float32",), steps=2, share=0.1, layouts=CONTIGUOUS)
def synced_several_calls(trial: RankTrial, case: Case) -> None:
    """Two calls before backward, as in a siamese net, give each input the gradient of its call."""
    twin = build_in_training(trial)
    first = run_forward(trial, twin, grad=True)
    trial.run("first, y_of_first = x, y")
    second = run_forward(trial, twin, 1, grad=True)
    grads = [trial.bind_gradients(step, f"g{step}") for step in (0, 1)]
    trial.run("torch.autograd.backward([y_of_first, y], [g0, g1])")
    trial.gather("first.grad", "x.grad")
    of_first, of_second = (
        each.gradients(g, trial.shares)[0] for each, g in zip((first, second), grads, strict=True)
    )
    trial.check_close("first.grad", of_first, axis=1)
    trial.check_close("x.grad", of_second, axis=1)


@rank_law(("float32", "float16"), share=0.1, steps=2, state_dtype="float32")
def synced_buffers(trial: RankTrial, case: Case) -> None:
    """Training on ranks updates its buffers in place: they keep memory and dtype, and no graph."""
    twin = build_in_training(trial)
    trial.run(f"held = [(each, each.dtype) for each in ({', '.join(_BUFFERS)})]")
    for step in (0, 1):
        run_forward(trial, twin, step, grad=True)
    names = {name: f"held[{index}]" for index, name in enumerate(_BUFFERS)}
    checks = {
        name: f"{name} is {held}[0] and {name}.dtype == {held}[1] and not {name}.requires_grad"
        for name, held in names.items()
    }
    trial.gather(*checks.values())
    for name, check in checks.items():
        for rank, kept in enumerate(trial.got(check)):
            if not kept:
                trial.fail_on(rank, f"{name} is not what it was on rank {rank}", check)
