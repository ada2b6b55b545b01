"""What guards say on each rank: tensor parallelism, checkpoints, and other ways to use shards."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import bn_updates, frozen, frozen_bn, in_sync, same_output, trains
from tests.invariants.sharded.models import (
    Pair,
    batch,
    evaluate,
    local,
    optimizer_of,
    pair,
    train,
)
from tests.ranks.checks import Checks

checks = Checks()
torch.manual_seed(checks.rank)
PROBE = torch.ones(6, 4)


def accumulate(guard: Callable[[nn.Module], Any]) -> None:
    model = DistributedDataParallel(pair())
    optimizer = optimizer_of(model)
    with guard(model):
        with model.no_sync():
            model(batch()).mean().backward()
        train(model, optimizer)


checks.run("no_sync, frozen", lambda: accumulate(lambda model: frozen(model, "teacher")))
checks.run("no_sync, trains", lambda: accumulate(lambda model: trains(model, "student")))
checks.run(
    "no_sync, bn_updates", lambda: accumulate(lambda model: bn_updates(model, "student", times=2))
)


def step_with_zero(guard: Callable[[nn.Module], Any]) -> None:
    model = DistributedDataParallel(pair())
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = ZeroRedundancyOptimizer(trained, torch.optim.AdamW, lr=0.01)
    with guard(model):
        train(model, optimizer)


checks.run("ZeRO, frozen", lambda: step_with_zero(lambda model: frozen(model, "teacher")))
checks.run("ZeRO, trains", lambda: step_with_zero(lambda model: trains(model, "student")))
checks.run("ZeRO, moved", lambda: step_with_zero(lambda model: frozen(model, "student.0")))


class Recomputing(Pair):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        taught = checkpoint(self.teacher, images, use_reentrant=False)
        return checkpoint(self.student, taught, use_reentrant=False)


def recompute(wrap: Any, guard: Callable[[nn.Module], Any], *, forgotten: bool = False) -> None:
    model = pair()
    model.__class__ = Recomputing
    wrapped = wrap(model)
    optimizer = optimizer_of(wrapped)
    if forgotten:
        wrapped.train()
    with guard(wrapped):
        train(wrapped, optimizer)


def check_recomputing(name: str, wrap: Any) -> None:
    teacher: Callable[[nn.Module], Any] = lambda model: frozen(model, "teacher")  # noqa: E731
    student: Callable[[nn.Module], Any] = lambda model: trains(  # noqa: E731
        model, "student", buffers=False
    )
    checks.run(f"checkpointing, {name}, frozen", lambda: recompute(wrap, teacher))
    checks.run(f"checkpointing, {name}, trains", lambda: recompute(wrap, student))
    checks.run(
        f"checkpointing, {name}, forgotten", lambda: recompute(wrap, teacher, forgotten=True)
    )


check_recomputing("DDP", DistributedDataParallel)


def broadcast(**options: Any) -> None:
    model = pair()
    wrapped = DistributedDataParallel(model, **options)
    model.teacher[1].running_mean.fill_(checks.rank)
    with frozen(wrapped, "teacher"):
        wrapped(batch()).sum().backward()


KNOWN = inspect.signature(DistributedDataParallel).parameters
OPTION = "forward_sync_buffers" if "forward_sync_buffers" in KNOWN else "broadcast_buffers"
checks.run("buffers sent", broadcast)
checks.run("buffers not sent", lambda: broadcast(**{OPTION: False}))
checks.told["buffers sent"]["option"] = OPTION

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )
except ImportError:  # before torch 2.6
    checks.end()

mesh = init_device_mesh("cpu", (checks.size,))


def tensor_parallel() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(PROBE).square().mean().backward()
    optimizer.step()


def run_tensor_parallel(guard: Callable[[nn.Module], Any], *, moves: bool) -> None:
    model, optimizer = tensor_parallel()
    for _ in range(1 if moves else 8):
        with guard(model):
            step(model, optimizer) if moves else model(PROBE)


def step_on_old_moments() -> None:
    model, optimizer = tensor_parallel()
    step(model, optimizer)
    optimizer.zero_grad(set_to_none=False)
    with frozen(model):
        optimizer.step()


def run_with_sharded_output(*, moves: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4))
    plan = {
        "0": ColwiseParallel(use_local_output=False),
        "2": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    with same_output(model, PROBE, rtol=1e-3):
        model(PROBE)
        local(model[2].bias.data).add_(1.0 if moves else 1e-6)


checks.run("TP, sharded output", lambda: run_with_sharded_output(moves=False))
checks.run("TP, sharded output moved", lambda: run_with_sharded_output(moves=True))
checks.run("TP, frozen", lambda: run_tensor_parallel(frozen, moves=False))
checks.run("TP, moved", lambda: run_tensor_parallel(frozen, moves=True))
checks.run("TP, trains", lambda: run_tensor_parallel(trains, moves=True))
checks.run("TP, momentum", step_on_old_moments)
checks.run(
    "TP, output", lambda: run_tensor_parallel(lambda model: same_output(model, PROBE), moves=False)
)
checks.run(
    "TP, other output",
    lambda: run_tensor_parallel(lambda model: same_output(model, PROBE), moves=True),
)


def distribute(placement: Any, *, moves: bool) -> None:
    model = pair()
    if isinstance(placement, Partial):
        values = DTensor.from_local(torch.ones(3), mesh, [placement], run_check=False)
    else:
        values = distribute_tensor(torch.ones(3, 6), mesh, [placement])
    model.extra = nn.Parameter(values, requires_grad=False)
    with frozen(model, "extra", "teacher"):
        model(batch())
        if moves:
            local(model.extra).add_(1)


for placed in (Replicate(), Shard(1), Partial()):
    kind = type(placed).__name__
    checks.run(f"DTensor, {kind}", lambda placed=placed: distribute(placed, moves=False))
    checks.run(f"DTensor, {kind}, moved", lambda placed=placed: distribute(placed, moves=True))

check_recomputing("fully_shard", fully_shard)


def gathered(act: Callable[[Any], object], guard: Callable[[nn.Module], Any] | None = None) -> None:
    """Enter a guard while the root holds gathered parameters, as it does after a forward."""
    model = fully_shard(pair())
    evaluate(model, optimizer_of(model))
    model.train()
    model.teacher.eval()
    with (guard or (lambda each: frozen(each, "teacher")))(model):
        act(model)
    model(batch()).sum().backward()


def write_to_shard(model: Any) -> None:
    model.reshard()
    with torch.no_grad():
        local(model.teacher[0].weight).add_(1)


def gather_again(model: Any) -> None:
    model(batch()).sum().backward()
    model.unshard()


checks.run("gathered, trained", lambda: gathered(lambda model: train(model, optimizer_of(model))))
checks.run("gathered, resharded", lambda: gathered(lambda model: (model(batch()), model.reshard())))
checks.run("gathered, again", lambda: gathered(gather_again))
checks.run("gathered, written", lambda: gathered(write_to_shard))
checks.run(
    "gathered, output",
    lambda: gathered(
        lambda model: model(batch()), lambda model: same_output(model.eval(), torch.ones(4, 3))
    ),
)


def average(decay: float) -> None:
    model, mean = fully_shard(pair()), fully_shard(pair()).requires_grad_(False)
    optimizer = optimizer_of(model)
    with in_sync(model, mean, decay=0.9), torch.no_grad():
        with torch.enable_grad():
            train(model, optimizer)
        for slow, fast in zip(mean.parameters(), model.parameters(), strict=True):
            local(slow).lerp_(local(fast), 1 - decay)
        for slow, fast in zip(mean.buffers(), model.buffers(), strict=True):
            slow.copy_(fast)


checks.run("average", lambda: average(0.9))
checks.run("average, other decay", lambda: average(0.8))


def run_a_part_first() -> None:
    model: Any = pair()
    fully_shard(model.teacher)
    fully_shard(model)
    with checks_afterwards(model), same_output(model, torch.ones(4, 3), modules="teacher"):
        model(batch())


@contextmanager
def checks_afterwards(model: nn.Module) -> Iterator[None]:
    """Run the model whatever a guard said of it."""
    try:
        yield
    finally:
        model(batch()).sum().backward()


checks.run("a part first", run_a_part_first)


def shard_inside(guard: Callable[[nn.Module], Any]) -> None:
    model = pair()
    with guard(model):
        fully_shard(model)
        train(model, optimizer_of(model))


checks.run("sharded inside", lambda: shard_inside(lambda model: frozen(model, "teacher")))
checks.run("sharded inside, trains", lambda: shard_inside(lambda model: trains(model, "student.0")))


def guard_on_one_rank() -> None:
    model = fully_shard(pair())
    model(batch())
    if checks.rank == 0:  # nothing that a guard does may wait for the others
        with frozen(model, "teacher"), frozen_bn(model, "teacher"):
            model.student[1].running_mean.add_(1)


checks.run("on one rank", guard_on_one_rank)


def flat(model: nn.Module, **options: Any) -> Any:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def summon(original: bool, *, writes: bool, guard_inside: bool = False) -> None:
    model = flat(pair().requires_grad_(False).eval(), use_orig_params=original)
    model(batch())

    def act() -> None:
        with FullyShardedDataParallel.summon_full_params(model), torch.no_grad():
            if writes:
                model.module.student[0].weight.add_(1)

    if guard_inside:
        with FullyShardedDataParallel.summon_full_params(model), frozen(model):
            model.module.student[1](torch.ones(3, 8))
        return
    with frozen(model):
        model(batch())
        act()


for original in (True, False):
    name = "original" if original else "flat"
    checks.run(f"summoned, {name}", lambda each=original: summon(each, writes=False))
    checks.run(f"summoned, {name}, written", lambda each=original: summon(each, writes=True))
    checks.run(
        f"summoned, {name}, inside",
        lambda each=original: summon(each, writes=False, guard_inside=True),
    )


def part(guard: Any) -> None:
    model = flat(pair().requires_grad_(False))
    with guard(model, "teacher"):
        model(batch())


for watch in (frozen_bn, frozen):
    checks.run(f"part of a flat parameter, {watch.__name__}", lambda each=watch: part(each))


import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_model_state_dict,
    set_model_state_dict,
)

folders: list[Any] = [tempfile.mkdtemp() if checks.rank == 0 else None]
distributed.broadcast_object_list(folders)


def save(model: nn.Module, name: str) -> None:
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=f"{folders[0]}/{name}")


def load(model: nn.Module, name: str) -> None:
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=f"{folders[0]}/{name}")
    set_model_state_dict(model, state["model"])


def keep_and_load(wrap: Any, name: str, *, other: bool) -> None:
    """Save a model inside a guard, and load it, or what it was before it was changed."""
    model = wrap(pair())
    save(model, name)
    if other:
        with torch.no_grad():
            for each in model.parameters():
                local(each).add_(1)
    with frozen(model, "teacher"):
        if not other:
            save(model, f"{name}_again")
            model(batch()).sum().backward()
        load(model, name)


for name, wrap in (("DDP", DistributedDataParallel), ("fully_shard", fully_shard)):
    checks.run(f"DCP, {name}", lambda w=wrap, n=name: keep_and_load(w, n, other=False))
    checks.run(f"DCP, {name}, other", lambda w=wrap, n=name: keep_and_load(w, n, other=True))


def differ_in_replicas(*, differ: bool) -> None:
    """Compare ranks that hold the same shard of a two-dimensional mesh."""
    plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = fully_shard(pair(), mesh=plane)
    if differ and checks.rank == 3:
        with torch.no_grad():
            local(model.student[0].weight).add_(1)
    in_sync(model, parameters=True)


checks.run("in_sync, shards", lambda: in_sync(fully_shard(pair()), parameters=True))
checks.run("in_sync, flat", lambda: in_sync(flat(pair().requires_grad_(True)), parameters=True))
checks.run(
    "in_sync, only shards",
    lambda: in_sync(fully_shard(nn.Linear(4, 4)), parameters=True),
)
if checks.size == 4:
    checks.run("in_sync, replicas", lambda: differ_in_replicas(differ=False))
    checks.run("in_sync, replicas differ", lambda: differ_in_replicas(differ=True))
checks.end()
