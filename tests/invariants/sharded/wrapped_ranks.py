"""What guards say on each rank of steps on a wrapped model, one wrapper after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pytest_bninvariants import (
    InvariantBroken,
    bn_updates,
    frozen,
    frozen_bn,
    same_output,
    trains,
)
from tests.invariants.sharded.models import (
    Wrap,
    evaluate,
    local,
    optimizer_of,
    pair,
    run_backward_only,
    train,
    train_with_eval_forgotten,
)
from tests.ranks.checks import Checks

checks = Checks()
torch.manual_seed(checks.rank)
Act = Callable[[nn.Module, Optimizer], None]
PROBE = torch.ones(4, 3)


def guarded(wrap: Wrap, guard: Callable[[nn.Module], Any], act: Act, steps: int) -> None:
    """Take some steps, and then one inside a guard."""
    model = wrap(pair())
    optimizer = optimizer_of(model)
    for _ in range(steps):
        train(model, optimizer)
    with guard(model):
        act(model, optimizer)


def runs_as_without_a_guard(wrap: Wrap, steps: int) -> None:
    """Compare what a model learns after a guard with what it learns without one."""
    learnt = []
    for is_guarded in (True, False):
        model = wrap(pair())
        optimizer = optimizer_of(model)
        torch.manual_seed(checks.rank + 5)
        for _ in range(steps):
            train(model, optimizer)
        if is_guarded:
            with suppress(InvariantBroken), same_output(model, PROBE), frozen(model, "teacher"):
                evaluate(model, optimizer)
        else:
            evaluate(model, optimizer)
        torch.manual_seed(checks.rank + 6)
        model.train()
        train(model, optimizer)
        learnt.append([local(each) for each in model.state_dict().values()])
    assert all(map(torch.equal, *learnt))


STEPS: dict[str, tuple[Callable[[nn.Module], Any], Act]] = {
    "frozen": (lambda model: frozen(model, "teacher"), train),
    "frozen_bn": (lambda model: frozen_bn(model, "teacher", parameters=False), train),
    "trains": (lambda model: trains(model, "student"), train),
    "bn_updates": (lambda model: bn_updates(model, "student"), train),
    "frozen and trains": (lambda model: frozen(model, "teacher", trains="student"), train),
    "only a forward": (frozen, evaluate),
    "same_output": (lambda model: same_output(model, PROBE), evaluate),
    "eval forgotten": (lambda model: frozen(model, "teacher"), train_with_eval_forgotten),
    "BN eval forgotten": (
        lambda model: frozen_bn(model, "teacher", parameters=False),
        train_with_eval_forgotten,
    ),
    "the student moved": (lambda model: frozen(model, "student"), train),
    "not trained": (lambda model: trains(model, "student", buffers=False), run_backward_only),
    "another output": (lambda model: same_output(model, PROBE), train),
}


def check(name: str, wrap: Wrap) -> None:
    """Check each guard on a fresh model, and on one that has been trained a step."""
    for steps in (0, 1):
        for step, (guard, act) in STEPS.items():
            checks.run(
                f"{name}, {steps}, {step}",
                lambda guard=guard, act=act, steps=steps: guarded(wrap, guard, act, steps),
            )
        checks.run(
            f"{name}, {steps}, as without", lambda steps=steps: runs_as_without_a_guard(wrap, steps)
        )


check("DDP", DistributedDataParallel)
check("DDP, no broadcast", lambda model: DistributedDataParallel(model, broadcast_buffers=False))
check("DDP, static", lambda model: DistributedDataParallel(model, static_graph=True))
check("DDP, unused", lambda model: DistributedDataParallel(model, find_unused_parameters=True))
check("DDP, views", lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True))

try:
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        MixedPrecisionPolicy,
        ShardingStrategy,
        fully_shard,
    )
except ImportError:  # before torch 2.6
    checks.end()


def nested(model: Any) -> nn.Module:
    fully_shard(model.teacher)
    fully_shard(model.student)
    return fully_shard(model)


def mixed(model: Any) -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    for layer in (model.teacher[0], model.student[0], model.student[2]):
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model)


def flat(model: Any, **options: Any) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def nested_flat(model: Any) -> nn.Module:
    model.teacher, model.student = flat(model.teacher), flat(model.student)
    return flat(model)


check("fully_shard", fully_shard)
check("fully_shard, resharded", lambda model: fully_shard(model, reshard_after_forward=True))
check("fully_shard, not resharded", lambda model: fully_shard(model, reshard_after_forward=False))
check("fully_shard, nested", nested)
check("fully_shard, mixed", mixed)
check("FSDP, original", lambda model: flat(model, use_orig_params=True))
check(
    "FSDP, gradients sharded",
    lambda model: flat(
        model, use_orig_params=True, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP
    ),
)
check("FSDP, flat", nested_flat)
checks.end()
