"""Laws of a call: it gives an output, and changes nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import BatchExpectation, ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import FEW_CASES, FLOAT32_ONLY, law
from pytest_bninvariants.batchnorm.laws.steps import build_in_mode, check_training_results
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

_WAYS = tuple(product(("train", "eval"), ("enable_grad", "no_grad")))


class _ProcessSetting(NamedTuple):
    """A setting of the process that a layer must leave alone.

    Args:
        name: its name in a report.
        read: the code with which a trial reads it.
        write: the function that sets it.
        switch: returns the code with which a trial gives it another value than the one it has:
            a layer that sets it to the value that it has shows nothing. None: it stays.
    """

    name: str
    read: str
    write: Callable[[Any], None]
    switch: Callable[[Any], str] | None = None


def _cudnn_flag(name: str) -> _ProcessSetting:
    flag = f"torch.backends.cudnn.{name}"
    write = partial(setattr, torch.backends.cudnn, name)
    return _ProcessSetting(flag, flag, write, lambda value: f"{flag} = {not value}")


_OTHER_PRECISION = {"highest": "medium", "high": "medium", "medium": "highest"}
_PROCESS_SETTINGS = (
    _ProcessSetting("the default dtype", "torch.get_default_dtype()", torch.set_default_dtype),
    _ProcessSetting(
        "the number of threads",
        "torch.get_num_threads()",
        torch.set_num_threads,
        lambda value: f"torch.set_num_threads({value + 1})",
    ),
    _ProcessSetting("the state of `random`", "random.getstate()", random.setstate),
    _ProcessSetting(
        "whether algorithms are deterministic",
        "torch.are_deterministic_algorithms_enabled()",
        torch.use_deterministic_algorithms,
        lambda value: f"torch.use_deterministic_algorithms({not value})",
    ),
    _ProcessSetting(
        "the precision of float32 products",
        "torch.get_float32_matmul_precision()",
        torch.set_float32_matmul_precision,
        lambda value: f"torch.set_float32_matmul_precision({_OTHER_PRECISION[value]!r})",
    ),
    *map(_cudnn_flag, ("enabled", "benchmark", "deterministic")),
)
_WAYS_TO_CALL = (  # the last of each: whether settings are given another value before
    *((mode, grad, False) for mode, grad in _WAYS),
    ("train", "enable_grad", True),
    ("eval", "no_grad", True),
)
_FLAGS = "[layer.training, *(p.requires_grad for p in layer.parameters())]"


@law(FLOAT32_ONLY, frozen=True, share=0.3, momentum=False, max_values=512)
def input_unmodified(trial: LawTrial, case: Case) -> None:
    """The input stays as it is, and the output has its own memory, also between calls.

    The gradient that backward is given stays as it is, too.
    """
    for mode, grad in _WAYS:
        build_in_mode(trial, training=mode == "train")
        trial.bind_batch(case.batches[0])
        trial.run(
            "before = x.clone()", _in_gradient_mode("y = layer(x)", grad), "first = y.clone()"
        )
        trial.check_same("x", "before", f"the input changed in {mode}")
        trial.require("not x.requires_grad", f"in {mode} the input now requires a gradient")
        trial.require(
            "y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()",
            f"in {mode} the output is the input's memory",
        )
        trial.run(_in_gradient_mode("again = layer(x.flip(0) + 1)", grad))
        trial.check_same("y", "first", f"another call in {mode} changed an earlier output")
    for mode in ("train", "eval"):
        build_in_mode(trial, training=mode == "train")
        trial.bind_batch(case.batches[0], grad=True)
        trial.bind_gradient()
        trial.run("before = g.clone()", "layer(x).backward(g)")
        trial.check_same(
            "g", "before", f"backward in {mode} changed the gradient that it was given"
        )


def _in_gradient_mode(code: str, grad: str) -> str:
    """Return code that runs under a gradient mode."""
    within = code.replace("\n", "\n    ")
    return code if grad == "enable_grad" else f"with torch.{grad}():\n    {within}"


@law(
    ("float32", "float64"), frozen=True, needs=("small_batches",), **FEW_CASES | {"momentum": False}
)
def no_side_effects(trial: LawTrial, case: Case) -> None:
    """A call touches neither random states, nor grad mode, nor flags, nor .grad, nor settings.

    Nor does one that raises. Nor does the constructor change settings of the process.
    """
    for mode, grad, switched in _WAYS_TO_CALL:
        one = trial.for_case(case)
        one.run("import random")
        with _restore_process_settings(one) as before:
            if switched:
                settings = zip(_PROCESS_SETTINGS, before, strict=True)
                one.run(*(each.switch(value) for each, value in settings if each.switch))
            _check_no_side_effects(one, case, mode, grad)


@contextmanager
def _restore_process_settings(trial: LawTrial) -> Iterator[list[Any]]:
    """Put settings of the process back, so that the next case does not begin with changed ones."""
    before = [trial.evaluate(setting.read) for setting in _PROCESS_SETTINGS]
    try:
        yield before
    finally:
        for setting, value in zip(_PROCESS_SETTINGS, before, strict=True):
            setting.write(value)


def _check_no_side_effects(trial: LawTrial, case: Case, mode: str, grad: str) -> None:
    trial.run(f"process = [{', '.join(setting.read for setting in _PROCESS_SETTINGS)}]")
    build_in_mode(trial, training=mode == "train")
    _check_settings(trial, "the constructor")
    trial.run("[p.requires_grad_(i == 0) for i, p in enumerate(layer.parameters())]")
    trial.bind_batch(case.batches[0], grad=True)
    trial.run(f"flags, rng = {_FLAGS}, torch.get_rng_state()")
    _check_call(trial, grad, "a call")
    trial.require("x.grad is None and x.requires_grad", "a call changed the input's gradient")
    trial.run("y, z = layer(x), layer(x)")
    if mode == "eval":
        trial.check_same("y", "z", "in eval the same input gives another output")
    c, ones = case.channels, [1] * (len(case.batches[0].shape) - 2)
    for shape in ((1, c, *ones), (4, c + 1, *ones)):
        trial.run(f"x = torch.ones({shape}, device={case.device!r})")
        _check_call(trial, grad, f"a call with an input of shape {shape}", may_raise=True)


def _check_settings(trial: LawTrial, what: str) -> None:
    """Check that settings of the process are what `process` has."""
    for index, setting in enumerate(_PROCESS_SETTINGS):
        trial.require(f"{setting.read} == process[{index}]", f"{what} changed {setting.name}")


def _check_call(trial: LawTrial, grad: str, what: str, *, may_raise: bool = False) -> None:
    """Call the layer under a gradient mode, and check that the call changed nothing else."""
    call = "try:\n    layer(x)\nexcept Exception:\n    pass" if may_raise else "layer(x)"
    trial.run(
        "enabled = None", _in_gradient_mode(f"{call}\nenabled = torch.is_grad_enabled()", grad)
    )
    trial.require("torch.equal(torch.get_rng_state(), rng)", f"{what} used the random state")
    _check_settings(trial, what)
    trial.require(f"enabled is {grad == 'enable_grad'}", f"{what} switched the gradient mode")
    trial.require(
        f"{_FLAGS} == flags",
        f"{what} changed a training or requires_grad flag, which were {{flags}}",
    )


@law(FLOAT32_ONLY, frozen=True, **FEW_CASES | {"momentum": False})
def nothing_kept(trial: LawTrial, case: Case) -> None:
    """After a call the layer holds neither its input nor the graph, in training and in eval."""
    trial.run("import gc, weakref")
    for training in (True, False):
        build_in_mode(trial, training=training)
        trial.bind_batch(case.batches[0], grad=True)
        trial.run("y = layer(x)", "held = weakref.ref(x)", "del x, y")
        trial.run("held() is None or gc.collect()")
        trial.require("held() is None", "the layer keeps its input alive, or a graph that has it")


@law(FLOAT32_ONLY, frozen=True, **FEW_CASES | {"momentum": False})
def hooks(trial: LawTrial, case: Case) -> None:
    """Hooks run on it as on any module: before forward, after it, and in backward, once a call."""
    trial.build_layer()
    trial.bind_batch(case.batches[0], grad=True)
    trial.run(
        "calls = []",
        "layer.register_forward_pre_hook(lambda *_: calls.append('before'))",
        "layer.register_forward_hook(lambda *_: calls.append('after'))",
        "layer.register_full_backward_hook(lambda *_: calls.append('backward'))",
        "layer(x).sum().backward()",
    )
    trial.require("calls == ['before', 'after', 'backward']", "the hooks that ran are {calls}")
    for mode in ("train", "eval"):
        trial.run(f"layer.{mode}()", "calls.clear()", "with torch.no_grad():\n    layer(x)")
        trial.require(
            "calls == ['before', 'after']",
            f"without gradients, the hooks that ran in {mode} are {{calls}}",
        )


_DETERMINISTIC = "torch.use_deterministic_algorithms({})"
_SURROUNDINGS = {  # how a call is made, by what surrounds it
    "inference_mode()": "with torch.inference_mode():\n    y = layer(x)",
    "no_grad()": "with torch.no_grad():\n    y = layer(x)",
    "the default device 'meta'": "with torch.device('meta'):\n    y = layer(x)",
    "save_on_cpu()": "with torch.autograd.graph.save_on_cpu():\n    y = layer(x)",
    "another thread": "with ThreadPoolExecutor(1) as pool:\n    y = pool.submit(layer, x).result()",
    "the default dtype float64": (
        "torch.set_default_dtype(torch.float64)\n"
        "try:\n    y = layer(x)\nfinally:\n    torch.set_default_dtype(default)"
    ),
    "deterministic algorithms": (
        f"{_DETERMINISTIC.format(True)}\n"
        f"try:\n    y = layer(x)\nfinally:\n    {_DETERMINISTIC.format('deterministic')}"
    ),
    "a checkpoint": "y = checkpoint(layer, x, use_reentrant=False)",
    "an outer no_grad() that enable_grad() ends": (
        "with torch.no_grad(), torch.enable_grad():\n    y = layer(x)"
    ),
}
_WITHOUT_GRAPH = ("inference_mode()", "no_grad()")


@law(("float32", "bfloat16"), share=0.05, frozen=True, momentum=False, layouts=CONTIGUOUS)
def surroundings(trial: LawTrial, case: Case) -> None:
    """In eval what surrounds a call changes neither output nor gradients.

    Tried are gradient modes, default dtype and device, deterministic algorithms, threads,
    checkpoints, and hooks of saved tensors.
    """
    for name in _SURROUNDINGS:
        one = trial.for_case(case)
        twin = build_in_mode(one, training=False)
        expected = _call_within(one, twin, name)
        one.check_close("y", expected.output, axis=1)
        if name in _WITHOUT_GRAPH:  # what is kept from such a call may be of no use for a graph
            one.run("x = x.clone().requires_grad_()", "y = layer(x)")
            expected = twin.expect(one.evaluate("x.detach()"))
        one.check_close("x.grad", expected.gradients(one.run_backward(0))[0], axis=1)


@law(FLOAT32_ONLY, share=0.05, layouts=CONTIGUOUS)
def training_surroundings(trial: LawTrial, case: Case) -> None:
    """In training what surrounds a call changes neither output, statistics nor gradients."""
    for name in _SURROUNDINGS:
        if name == "a checkpoint":  # it runs forward twice
            continue
        one = trial.for_case(case)
        twin = build_in_mode(one, training=True)
        expected = _call_within(one, twin, name)
        check_training_results(one, twin, expected)
        if name in _WITHOUT_GRAPH:
            one.run("x = x.clone().requires_grad_()", "y = layer(x)")
            expected = twin.expect(one.evaluate("x.detach()"))
        gradients = expected.gradients(one.run_backward(0))
        one.check_close("x.grad", gradients[0], axis=1)
        one.check_close("layer.weight.grad", gradients[1])


def _call_within(trial: LawTrial, twin: ReferenceTwin, name: str) -> BatchExpectation:
    """Call the layer within what surrounds it, as `y`, and return what it must give."""
    trial.run(
        "from concurrent.futures import ThreadPoolExecutor",
        "from torch.utils.checkpoint import checkpoint",
        "default = torch.get_default_dtype()",
        "deterministic = torch.are_deterministic_algorithms_enabled()",
    )
    x = trial.bind_batch(trial.case.batches[0], grad=name not in _WITHOUT_GRAPH)
    trial.run(_SURROUNDINGS[name])
    trial.require(
        "(y.dtype, y.device) == (x.dtype, x.device)",
        f"under {name} the output is {{y.dtype}} on {{y.device}}",
    )
    if name in _WITHOUT_GRAPH:
        trial.require("not y.requires_grad", f"under {name} the output requires a gradient")
    return twin.expect(x)
