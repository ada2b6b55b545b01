"""A guard changes nothing: guarded and bare runs are bit-identical."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import pickle
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frozen, frozen_bn
from pytest_bninvariants.audit.auditor import Auditor

Guard = Callable[..., Any]


@contextlib.contextmanager
def audit(model: nn.Module) -> Iterator[None]:
    auditor = Auditor()
    auditor.start()
    try:
        yield
    finally:
        auditor.stop()


GUARDS = pytest.mark.parametrize("guard", [frozen, frozen_bn, audit])


def bare(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def around(guard: Guard, model: nn.Module) -> Iterator[None]:
    """Guard a step that may well break the invariant."""
    with contextlib.suppress(FrozenStateChanged), guard(model):
        yield


def in_bytes(value: object) -> object:
    """Return a value as something that compares bit for bit."""
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: in_bytes(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [in_bytes(part) for part in value]
    return value


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def everything(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, object]:
    """Return all that a step may leave: state, gradients, randomness, hooks, modes."""
    found: dict[str, object] = {
        "rng": in_bytes(torch.get_rng_state()),
        "python rng": random.getstate(),
        "numpy rng": pickle.dumps(np.random.get_state()),
        "grad enabled": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled(),
        "optimizers": [in_bytes(optimizer.state_dict()) for optimizer in optimizers],
        "hooks of optimizers": [
            [len(getattr(o, name)) for name in vars(o) if name.endswith("_hooks")]
            for o in optimizers
        ],
    }
    for name, module in model.named_modules():
        found[f"{name} keys"] = sorted(vars(module))
        found[f"{name} training"] = module.training
        found[f"{name} hooks"] = [len(getattr(module, hooks)) for hooks in HOOKS]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = in_bytes(tensor)
        found[f"{name} grad"] = in_bytes(tensor.grad)
        found[f"{name} flags"] = tensor.requires_grad, tensor.is_leaf, tensor._version
        found[f"{name} strides"] = tensor.stride(), tensor.storage_offset()
    return found


class Small(nn.Module):
    """Convolutions with BN and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.norm = nn.Dropout(0.3), nn.InstanceNorm2d(8, track_running_stats=True)
        self.head = nn.Linear(8, 4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(F.relu(self.bn(self.conv(batch))))).mean((2, 3)))


def small_and_leaking() -> nn.Module:
    model = Small()
    model.bn.requires_grad_(False)
    model.norm.requires_grad_(False)
    return model


class Attention(nn.Module):
    """A transformer's layer over tokens that a BN has normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, batch: Tensor) -> Tensor:
        tokens = self.bn(self.embed(batch).transpose(1, 2)).transpose(1, 2)
        return self.head(self.layer(tokens).mean(1))


def images() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield torch.randn(4, 3, 8, 8), torch.randint(4, (4,))


def tokens() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield torch.randn(4, 5, 6), torch.randint(4, (4,))


def with_momentum(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for batch, label in images():
        optimizer.zero_grad()
        F.cross_entropy(model(batch), label).backward()
        optimizer.step()
    return [optimizer]


def with_a_scaler(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    for batch, label in tokens():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(batch), label)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    return [optimizer]


def between_modes(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)
    for batch, label in images():
        model.train()
        F.cross_entropy(model(batch), label).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(batch)
    return [optimizer]


def with_a_closure(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    batch, label = next(images())

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), label)
        loss.backward()
        return float(loss)

    optimizer.step(closure)  # type: ignore[arg-type]
    return [optimizer]


LOOPS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "momentum": (Small, with_momentum),
    "scaler": (Attention, with_a_scaler),
    "modes": (Small, between_modes),
    "leak": (small_and_leaking, between_modes),
    "closure": (Small, with_a_closure),
}


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def trained(
    guard: Guard, build: Callable[[], nn.Module], loop: Callable[[Any], Any]
) -> dict[str, object]:
    seed()
    model = build()
    with around(guard, model) if guard is not bare else bare(model):
        optimizers = loop(model)
    return everything(model, optimizers)


@GUARDS
@pytest.mark.parametrize(("build", "loop"), LOOPS.values(), ids=LOOPS)
def test_training_is_bit_identical(
    guard: Guard, build: Callable[[], nn.Module], loop: Callable[[Any], Any]
) -> None:
    assert trained(guard, build, loop) == trained(bare, build, loop)


def test_the_comparison_itself_can_fail() -> None:
    def off(model: nn.Module) -> list[torch.optim.Optimizer]:
        optimizers = with_momentum(model)
        torch.rand(1)
        return optimizers

    assert trained(bare, Small, off) != trained(bare, Small, with_momentum)


@GUARDS
def test_a_guard_draws_no_random_numbers_and_touches_no_tensor(guard: Guard) -> None:
    seed()
    model = Small().eval()
    batch = torch.randn(2, 3, 8, 8)
    objects = [id(t) for t in [*model.parameters(), *model.buffers()]]
    memory = [t.data_ptr() for t in [*model.parameters(), *model.buffers()]]
    before = everything(model, [])
    with guard(model):
        assert everything(model, []) == before
        model(batch)
    after = everything(model, [])
    assert {key for key in after if after[key] != before[key]} <= {  # which torch 2.4 touches
        "norm.running_mean flags",
        "norm.running_var flags",
    }
    assert [id(t) for t in [*model.parameters(), *model.buffers()]] == objects
    assert [t.data_ptr() for t in [*model.parameters(), *model.buffers()]] == memory


@GUARDS
def test_a_users_own_modes_do_not_see_the_guard(guard: Guard) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    model = small_and_leaking() if guard is audit else Small().eval()
    batch = torch.randn(2, 3, 8, 8)

    def recorded(guard: Guard) -> list[str]:
        seen.clear()
        with Functions(), Dispatch(), guard(model):
            model(batch)
        return list(seen)

    assert recorded(guard) == recorded(bare)


@GUARDS
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_guard_can_be_put_around_and_inside_of_gradient_modes(
    guard: Guard, mode: Callable[[], Any]
) -> None:
    model, batch = Small().eval(), torch.randn(2, 3, 8, 8)
    with mode(), guard(model):
        model(batch)
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    with guard(model), mode():
        model(batch)
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())


# Compiled code.


class OwnForward(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(
            batch,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class SetsAttributes(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0)
        return super().forward(batch)


class ByItsBuffers(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch - self.running_mean) * self.running_var.rsqrt()


class Compiled(nn.Module):
    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Linear(4, 3), bn, nn.Linear(3, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.last(F.relu(self.bn(self.first(batch))))


class Graphs:
    """A backend that keeps what it is given to compile."""

    def __init__(self) -> None:
        self.code: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.code.append(graph.print_readable(print_output=False))
        return graph.forward


def as_module(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def in_place(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    model.compile(backend=backend)
    return model


def as_a_function(model: nn.Module, backend: Graphs) -> Callable[[Tensor], Tensor]:
    def forward(batch: Tensor) -> Tensor:
        return 2 * model(batch)

    return torch.compile(forward, backend=backend)  # type: ignore[return-value]


def a_part(model: Any, backend: Graphs) -> Callable[[Tensor], Tensor]:
    model.bn.compile(backend=backend)
    return model  # type: ignore[no-any-return]


COMPILE = {"module": as_module, "in place": in_place, "function": as_a_function, "part": a_part}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "torch's": nn.BatchNorm1d,
    "own forward": OwnForward,
    "sets attributes": SetsAttributes,
    "by its buffers": ByItsBuffers,
}


def steps(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[object]:
    """Train a little, switch modes and the size of the batch, and give what came out."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    out = []
    for size, training in ((4, True), (4, True), (4, False), (6, False), (4, True)):
        model.train(training)
        y = forward(torch.randn(size, 4))
        out.append(in_bytes(y))
        if training:
            optimizer.zero_grad()
            y.sum().backward()
            optimizer.step()
    return [*out, everything(model, [optimizer])]


def compiled_run(
    guard: Guard,
    compiling: Callable[[nn.Module, Graphs], Callable[[Tensor], Tensor]],
    layer: Callable[[int], nn.Module],
    when: str,
) -> tuple[list[str], dict[str, dict[str, int]], list[object]]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seed()
    model, backend = Compiled(layer(3)), Graphs()
    forward = compiling(model, backend) if when != "inside" else model
    if when == "warm":
        forward(torch.randn(4, 4))
    out: list[object] = []
    with around(guard, model) if guard is not bare else bare(model):
        if when == "inside":
            forward = compiling(model, backend)
        out = steps(model, forward)
    out.append(in_bytes(forward(torch.randn(4, 4))))
    counters = torch._dynamo.utils.counters
    counted = {name: dict(counters[name]) for name in ("stats", "graph_break", "unimplemented")}
    return backend.code, counted, out


RUNS = [
    *itertools.product(COMPILE, ["torch's", "own forward"], ["cold", "warm", "inside"]),
    *itertools.product(["module"], ["sets attributes", "by its buffers"], ["cold", "inside"]),
]


@pytest.mark.parametrize(("how", "layer", "when"), RUNS)
def test_guarded_and_bare_runs_compile_the_same_graphs(how: str, layer: str, when: str) -> None:
    expected = compiled_run(bare, COMPILE[how], LAYERS[layer], when)
    graphs, counters, out = compiled_run(frozen_bn, COMPILE[how], LAYERS[layer], when)
    assert len(graphs) == len(expected[0])
    assert graphs or how == "part"  # a torch layer alone is not compiled by every torch
    assert graphs == expected[0]
    assert counters == expected[1]
    assert out == expected[2]


@pytest.mark.parametrize("when", ["cold", "warm", "inside"])
@pytest.mark.parametrize("how", COMPILE)
def test_audited_and_bare_runs_of_a_leak_compile_the_same_graphs(how: str, when: str) -> None:
    def leaking(features: int) -> nn.Module:
        return nn.BatchNorm1d(features).requires_grad_(False)

    expected = compiled_run(bare, COMPILE[how], leaking, when)
    assert compiled_run(audit, COMPILE[how], leaking, when) == expected


def test_a_second_guard_compiles_nothing_again() -> None:
    torch._dynamo.reset()
    seed()
    model, backend = Compiled(nn.BatchNorm1d(3)).eval(), Graphs()
    forward = as_module(model, backend)
    forward(torch.randn(4, 4))
    once = len(backend.code)
    for _ in range(3):
        with frozen_bn(model):
            forward(torch.randn(4, 4))
        forward(torch.randn(4, 4))
    assert len(backend.code) == once


def test_a_module_that_is_compiled_inside_a_guard_keeps_nothing_of_it() -> None:
    model = Compiled(nn.BatchNorm1d(3)).eval()
    with frozen_bn(model):
        compiled: Any = torch.compile(model, backend="eager")
        compiled(torch.randn(4, 4))
    assert torch._dynamo.eval_frame.innermost_fn(compiled.forward) == model.__call__


def test_a_module_that_is_compiled_in_place_inside_a_guard_keeps_nothing_of_it() -> None:
    model = Compiled(nn.BatchNorm1d(3)).eval()
    with frozen_bn(model):
        model.compile(backend="eager")
        model(torch.randn(4, 4))
    compiled: Any = model._compiled_call_impl
    assert torch._dynamo.eval_frame.innermost_fn(compiled) == model._call_impl


# Other things that users do with a model inside a step.


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
