"""What users do with a model inside a step works as without a guard."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import frozen, frozen_bn
from tests.invariants.neutral_runs import Compiled, OwnForward, in_bytes, seed


def copied(model: Any, batch: Tensor) -> Any:
    return copy.deepcopy(model)(batch)


def pickled(model: Any, batch: Tensor) -> Any:
    raw = pickle.dumps(model)
    return raw, pickle.loads(raw)(batch)


def saved(model: Any, batch: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)(batch)


def state_saved(model: Any, batch: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue()), list(model.state_dict())


def scripted(model: Any, batch: Tensor) -> Any:
    script = torch.jit.script(model)
    return str(script.graph), script(batch)


def traced(model: Any, batch: Tensor) -> Any:
    trace = torch.jit.trace(model, (batch,))
    return re.sub(r"___torch_mangle_\d+", "", trace.code), trace(batch)


def symbolic(model: Any, batch: Tensor) -> Any:
    graph = torch.fx.symbolic_trace(model)
    return graph.code, graph(batch)


def exported(model: Any, batch: Tensor) -> Any:
    program = torch.export.export(model, (batch,))
    return program.graph_module.code, program.module()(batch)


def exported_strictly(model: Any, batch: Tensor) -> Any:
    program = torch.export.export(model, (batch,), strict=True)
    return program.graph_module.code, program.module()(batch)


def called_functionally(model: Any, batch: Tensor) -> Any:
    return torch.func.functional_call(model, dict(model.named_parameters()), (batch,))


def vectorised(model: Any, batch: Tensor) -> Any:
    return torch.func.vmap(model)(batch[None])


def fused(model: Any, batch: Tensor) -> Any:
    return nn.utils.fuse_linear_bn_eval(model.first, model.bn)(batch)


def checkpointed(model: Any, batch: Tensor) -> Any:
    x = batch.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return grads


def converted(model: Any, batch: Tensor) -> Any:
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))(batch)


def on_meta(model: Any, batch: Tensor) -> Any:
    return copy.deepcopy(model).to("meta")(batch.to("meta")).shape


DOINGS = [
    copied,
    pickled,
    saved,
    state_saved,
    scripted,
    traced,
    symbolic,
    exported,
    exported_strictly,
    called_functionally,
    vectorised,
    fused,
    checkpointed,
    converted,
    on_meta,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, OwnForward])
@pytest.mark.parametrize("do", DOINGS)
def test_what_users_do_with_a_model_inside_a_step_works_as_without_a_guard(
    do: Callable[[Any, Tensor], Any], layer: Callable[[int], nn.Module]
) -> None:
    seed()
    model = Compiled(layer(3)).eval()
    batch = torch.randn(4, 4)
    with frozen_bn(model):
        model(batch)
        guarded = do(model, batch)
    assert in_bytes(guarded) == in_bytes(do(model, batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("do", [copied, pickled, scripted, traced])
def test_what_is_made_inside_a_step_works_after_it(do: Callable[[Any, Tensor], Any]) -> None:
    model, batch = Compiled(nn.BatchNorm1d(3)).eval(), torch.randn(4, 4)
    makers: dict[Any, Callable[[Any], Any]] = {
        copied: copy.deepcopy,
        pickled: lambda m: pickle.loads(pickle.dumps(m)),
        scripted: torch.jit.script,
        traced: lambda m: torch.jit.trace(m, (batch,)),
    }
    with frozen_bn(model):
        model(batch)
        made = makers[do](model)
    assert torch.equal(made(batch), model(batch))


@pytest.mark.parametrize(
    "name",
    ["load_state_dict", "__setattr__", "__call__", "_call_impl", "compile", "register_buffer"],
)
def test_a_wrapped_method_has_the_signature_and_source_of_torchs(net: Any, name: str) -> None:
    def shown() -> tuple[inspect.Signature, str]:
        method = getattr(nn.Module, name)
        return inspect.signature(method), inspect.getsource(method)

    before = shown()
    with frozen(net.eval()):
        assert shown() == before
        net.head(torch.randn(1, 3))
    assert shown() == before
    assert "__wrapped__" not in vars(getattr(nn.Module, name))
