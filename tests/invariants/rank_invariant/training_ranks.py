"""What rank_invariant says on each rank of a run, of models and losses that hold or do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants import rank_invariant
from tests.ranks.checks import Checks

checks = Checks()
rank = checks.rank
IMAGES = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, -1, -1, -1, 1, 0, 0, 1, 1, -1, 0])


def around(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.ReLU(), nn.Linear(4, 2))


def norm() -> nn.Sequential:
    return around(nn.BatchNorm1d(4))


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def sums(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum()


def unsynchronised(model: nn.Module, batch: Tensor) -> Tensor:
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            return squares(model, batch)
    return squares(model, batch)


def ignoring(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=-1)


def raising(model: nn.Module, batch: Tensor) -> Tensor:
    if rank == 1 and len(batch) < len(IMAGES):
        raise ValueError("a bad shard")
    return squares(model, batch)


def hooked(hook: Callable[..., Any]) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, hook)
        return wrapped

    return wrap


def adding(_, bucket):  # type: ignore[no-untyped-def]  # torch checks annotations, as types
    future = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


class Centre(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch - batch.mean(0)


class Spare(nn.Module):
    """A model with a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.used(batch)


class ExchangingNorm(nn.BatchNorm1d):
    """Normalise with the statistics of all ranks' samples, as SyncBatchNorm does on a GPU."""

    def forward(self, batch: Tensor) -> Tensor:
        if not self.training:
            return super().forward(batch)
        count = torch.full((1, batch.shape[1]), float(len(batch)), dtype=batch.dtype)
        sums = torch.cat([batch.sum(0, keepdim=True), batch.square().sum(0, keepdim=True), count])
        total, squared, number = all_reduce(sums)
        mean, var = total / number, squared / number - (total / number).square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(
                var, self.momentum
            )  # biased: the whole batch counts on each rank
        return (batch - mean) / (var + self.eps).sqrt() * self.weight + self.bias


def check(
    name: str,
    model: nn.Module,
    batch: Any = IMAGES,
    loss: Callable[..., Tensor] = squares,
    **options: Any,
) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    checks.run(name, lambda: rank_invariant(model, batch, loss=loss, **options))
    left = all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    no_gradient = all(each.grad is None for each in model.parameters())
    same_rng = torch.equal(drawn, torch.get_rng_state())
    checks.told[name]["as it was"] = left and no_gradient and same_rng


frozen_part = norm()
frozen_part[1].eval()
frozen_part[0].requires_grad_(False)
check("frozen BN", frozen_part)
check("all in eval", norm().eval())
check(
    "static graph",
    norm().eval(),
    wrap=lambda model: DistributedDataParallel(
        model, static_graph=True, gradient_as_bucket_view=True
    ),
)
check("BN in training", norm())
check("BN over ranks", around(ExchangingNorm(4)))
check("BN without statistics", around(nn.BatchNorm1d(4, track_running_stats=False)).eval())
check("a layer that mixes", around(Centre()))
check("a sum", norm().eval(), loss=sums)
check("a sum, added up", norm().eval(), loss=sums, wrap=hooked(adding))
check("a mean, added up", norm().eval(), wrap=hooked(adding))
check("unequal shards", norm().eval(), IMAGES[:11])
check("ignored targets", norm().eval(), (IMAGES, LABELS), ignoring)
check("no_sync", norm().eval(), loss=unsynchronised)
check("not wrapped", norm(), wrap=lambda model: model)
check("unused", Spare())
check(
    "unused, found",
    Spare(),
    wrap=lambda model: DistributedDataParallel(model, find_unused_parameters=True),
)
check("compressed", norm().eval(), wrap=hooked(fp16_compress_hook))

check("dropout", around(nn.Dropout()))
check("dropout in eval", around(nn.Dropout()).eval())
check("other batches", norm().eval(), IMAGES + rank)
check("other models", around(nn.BatchNorm1d(4), seed=rank).eval())
check("other modes", norm().train(rank == 0))
check("a shard that raises", norm().eval(), loss=raising)
check("too few samples", norm().eval(), IMAGES[:1])
checks.run(
    "wrapped",
    lambda: rank_invariant(DistributedDataParallel(norm().eval()), IMAGES, loss=squares),
)
pair = distributed.new_group([0, 1])
check("a group", norm().eval(), IMAGES[: 12 if rank < 2 else 0], group=pair)

try:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
except ImportError:  # before torch 2.6
    checks.told["fully_shard"] = checks.told["fully_shard, in training"] = {"kind": "absent"}
else:
    check("fully_shard", norm().eval(), wrap=fully_shard)
    check("fully_shard, in training", norm(), wrap=fully_shard)
    check(
        "flat parameters",
        norm().eval(),
        wrap=lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
    )
    checks.run(
        "sharded already",
        lambda: rank_invariant(fully_shard(norm().eval()), IMAGES, loss=squares),
    )
checks.end()
