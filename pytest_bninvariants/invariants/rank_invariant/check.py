"""The invariant `rank_invariant`: ranks on shards of a batch train as one process on all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants.errors import GateError, InvariantBroken, describe
from pytest_bninvariants.evaluation.gradient_pass import Wrapper
from pytest_bninvariants.evaluation.rank_exchange import Ranks, is_distributed
from pytest_bninvariants.guard_registry import add_verdict
from pytest_bninvariants.invariants.rank_invariant.judgement import RankJudgement
from pytest_bninvariants.invariants.rank_invariant.shard_pass import CALLER
from pytest_bninvariants.invariants.signature import refuse_wrong_calls
from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.torch_internals.sharding import shard_of, shards_by_id
from pytest_bninvariants.verdict import Verdict


@refuse_wrong_calls()
def rank_invariant(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[nn.Module, Any], Tensor],
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Verdict:
    """Check that ranks on shards of a batch train as one process does on the whole batch.

    Each rank of a distributed run calls it with the same model and the same whole batch, and takes
    its own shard. Only copies of the model run, in float64 and in the modes that it is in; the
    model, its gradients and the random generators stay as they are. Compared are the gradients that
    the wrapper leaves, and all buffers after the forward.

    Args:
        model: the model, without its wrapper, and in the modes in which it trains.
        batch: a tensor, or a nest of tensors in tuples, lists and mappings, with samples in
            dimension 0, at least one for each rank; numbers, strings and tensors without a
            dimension go to each rank. Shards are consecutive, and their sizes differ by at most 1.
        loss: `loss(model, batch)`, the scalar whose gradients are compared; it must call the model
            that it is given, which is a wrapped copy where ranks compute together.
        wrap: `wrap(model)`, which returns a copy as it is trained on ranks; None:
            DistributedDataParallel with its defaults.
        group: the process group whose ranks share the batch; None: all ranks.

    Returns:
        The verdict, which holds; the same on each rank.

    Raises:
        InvariantBroken: if a gradient or a buffer differs.
        GateError: if there is no distributed run, an argument is wrong, or a rank cannot judge:
            its model or batch is another than that of the other ranks, nothing is trainable, the
            model draws random numbers or does not run in float64. Then all ranks raise it.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import GateError, rank_invariant
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> try:  # under torchrun --nproc-per-node 2 it holds; here there are no ranks
        ...     rank_invariant(net, torch.randn(8, 3), loss=loss)
        ... except GateError as error:
        ...     print(error)
        rank_invariant compares the ranks of a distributed run, and there is none: ...
    """
    _check_arguments(model, loss=loss, wrap=wrap)
    ranks = _ranks_of(group)
    wrap = wrap or _data_parallel(group)
    verdict = RankJudgement(ranks, model, batch, loss, wrap).verdict()
    add_verdict(verdict)
    if not verdict.holds:
        raise InvariantBroken(verdict)
    return verdict


def _ranks_of(group: distributed.ProcessGroup | None) -> Ranks:
    if not is_distributed() or len(Ranks(group).numbers) < 2:
        raise GateError(
            f"{CALLER} compares the ranks of a distributed run, and there is none: call it on each "
            "of two or more ranks, after torch.distributed.init_process_group()"
        )
    return Ranks(group)


def _data_parallel(group: distributed.ProcessGroup | None) -> Wrapper:
    return lambda model: DistributedDataParallel(model, process_group=group)


def _check_arguments(model: nn.Module, *, loss: object, wrap: object) -> None:
    modules = [module for _, module in named_modules(model)]
    is_sharded = shards_by_id(modules) or any(map(shard_of, all_tensors(model)))
    if is_sharded or any(isinstance(module, DistributedDataParallel) for module in modules):
        raise GateError(
            f"{CALLER} wraps a copy of the model itself, and this one is wrapped or sharded "
            "already: pass the model as it is before that, and how you wrap it as "
            "wrap=lambda model: ..."
        )
    if not callable(loss):
        raise GateError(f"{CALLER}(loss=...) takes a function; got {describe(loss)}")
    if not (wrap is None or callable(wrap)):
        raise GateError(f"{CALLER}(wrap=...) takes a function; got {describe(wrap)}")
