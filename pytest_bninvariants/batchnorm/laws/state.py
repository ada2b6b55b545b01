"""Laws of a BatchNorm's state: how it is made, updated and reset."""

from __future__ import annotations

from dataclasses import replace

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import ALL_DTYPES, FEW_CASES, FLOAT32_ONLY, law
from pytest_bninvariants.batchnorm.laws.steps import (
    EVAL_CASES,
    KEEP_TENSORS,
    KEEP_VALUES,
    build_in_mode,
    check_same_tensors,
    check_state_unchanged,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.declaration import SETTING_NAMES, STATE_NAMES
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

_GIVEN = (
    "given = {k: v.detach().flip(0) + 0.5 if v.dim() else v + 3 "
    "for k, v in layer.state_dict().items()}"
)
_SOFTPLUS = (
    "from torch.nn.utils.parametrize import register_parametrization",
    "register_parametrization(layer, 'weight', torch.nn.Softplus())",
)


@law(FLOAT32_ONLY, needs=(*SETTING_NAMES, "num_batches_tracked"), **FEW_CASES)
def construction(trial: LawTrial, case: Case) -> None:
    """The constructor is nn.BatchNorm's: order, defaults, attributes, dtype and initial state.

    `device`, `dtype` and `bias`, which not every torch has, are tried where it takes them.
    """
    call, c = trial.subject.call, case.channels
    trial.run("random = torch.get_rng_state()", f"layer = {call(c)}")
    trial.require(
        "torch.equal(random, torch.get_rng_state())", "a new layer draws from torch's generator"
    )
    defaults = trial.subject.declaration.defaults
    _is_made(trial, f"{c}", *(repr(defaults[name]) for name in SETTING_NAMES))
    trial.run(f"layer = {call(c, 0.25, 0.5, True, True)}")
    _is_made(trial, f"{c}", "0.25", "0.5", "True", "True")
    trial.run(f"layer = {call(c, 0.25, None, False, False)}")
    _is_made(trial, f"{c}", "0.25", "None", "False", "False")
    if trial.subject.takes("dtype"):
        trial.run(f"layer = {call(c, dtype=torch.float64)}")
        trial.require(
            "layer.weight.dtype == layer.running_mean.dtype == torch.float64",
            "dtype=torch.float64 gives a weight in {layer.weight.dtype}",
        )
    _follows_default_dtype(trial)
    if trial.subject.takes("device"):
        trial.run(f"layer = {call(c, device='meta')}", "state = layer.state_dict()")
        trial.require(
            "all(value.is_meta for value in state.values())",
            "device='meta' gives state on {[str(value.device) for value in state.values()]}",
        )
    if trial.subject.takes("bias"):
        trial.run(f"layer = {call(c, bias=False)}")
        trial.require(
            "layer.bias is None and layer.weight is not None",
            "bias=False gives the bias {layer.bias} and the weight {layer.weight}",
        )


def _follows_default_dtype(trial: LawTrial) -> None:
    """Check that a new layer is in torch's default dtype, when that is not float32."""
    made = f"layer = {trial.subject.call(trial.case.channels)}"
    before = torch.get_default_dtype()
    try:
        trial.run("torch.set_default_dtype(torch.float64)", made)
    finally:
        torch.set_default_dtype(before)
    trial.run(f"torch.set_default_dtype({before})")
    trial.run("dtypes = {v.dtype for v in layer.state_dict().values() if v.is_floating_point()}")
    trial.require(
        "dtypes == {torch.float64}",
        "under set_default_dtype(torch.float64) a new layer has state in {dtypes}",
    )


def _is_made(trial: LawTrial, *values: str) -> None:
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    for name, value in zip(names, values, strict=True):
        trial.require(f"layer.{name} == {value}", f"{name} is {{layer.{name}}}, expected {value}")
    affine, tracked = values[3] == "True", values[4] == "True"
    for name, exists, start_value in zip(
        STATE_NAMES, (affine, affine, tracked, tracked, tracked), (1, 0, 0, 1, 0), strict=True
    ):
        if exists:
            trial.require(
                f"bool((layer.{name} == {start_value}).all())",
                f"{name} starts at {{layer.{name}}}, expected {start_value}",
            )
        else:
            trial.require(f"layer.{name} is None", f"{name} is {{layer.{name}}}, expected None")
    trial.require("layer.training", "a new layer is not in training mode")
    trial.run("repr(layer)")


@law(FLOAT32_ONLY, modes=(True, True), needs=("momentum", "num_batches_tracked"), **FEW_CASES)
def state_in_place(trial: LawTrial, case: Case) -> None:
    """Training updates its buffers in place: they keep identity and memory, and carry no graph."""
    for varied in (case, replace(case, momentum=None, count=case.count % 8)):
        trial.case = varied
        _state_stays(trial, varied)


def _state_stays(trial: LawTrial, case: Case) -> None:
    build_in_mode(trial, training=True)
    names = list(STATE_NAMES[2:])
    trial.run(f"before = {{name: getattr(layer, name) for name in {names}}}")
    trial.run("pointers = {name: value.data_ptr() for name, value in before.items()}")
    for batch in case.batches:
        trial.bind_batch(batch, grad=True)
        trial.run("layer(x).sum().backward()")
        for name in names:
            trial.require(
                f"layer.{name} is before[{name!r}]"
                f" and layer.{name}.data_ptr() == pointers[{name!r}]",
                f"{name} is another tensor after training",
            )
            trial.require(
                f"not layer.{name}.requires_grad and layer.{name}.grad_fn is None",
                f"{name} carries a graph",
            )


@law(FLOAT32_ONLY, needs=("num_batches_tracked",), **FEW_CASES)
def no_grad_updates(trial: LawTrial, case: Case) -> None:
    """Under no_grad and inference_mode training updates its statistics, and makes no graph."""
    varied = [case]
    if "momentum" not in trial.subject.fixed:
        varied.append(replace(case, momentum=None, count=case.count % 8))
    for each in varied:
        _update_without_gradients(trial.for_case(each))


def _update_without_gradients(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    for mode in ("no_grad", "inference_mode"):
        x = trial.bind_batch(trial.case.batches[0])
        trial.run(f"with torch.{mode}():\n    y = layer(x)")
        trial.require("not y.requires_grad", f"under {mode} the output requires a gradient")
        check_training_results(trial, twin, twin.expect(x))
    count = trial.case.count + 2
    trial.require(
        f"int(layer.num_batches_tracked) == {count}",
        f"num_batches_tracked is {{layer.num_batches_tracked}}, expected {count}",
    )


@law(FLOAT32_ONLY, **FEW_CASES)
def instances_are_independent(trial: LawTrial, case: Case) -> None:
    """Training one layer leaves another one alone."""
    trial.build_layer()
    trial.run("other, layer = layer, None")
    trial.build_layer()
    trial.require(
        "not {v.data_ptr() for v in layer.state_dict().values()}"
        " & {v.data_ptr() for v in other.state_dict().values()}",
        "two layers share memory",
    )
    trial.run(KEEP_VALUES.replace("layer", "other"))
    trial.bind_batch(case.batches[0], grad=True)
    trial.run("layer.train()(x).sum().backward()", "layer = other")
    check_state_unchanged(trial, "training another layer")
    trial.require("layer.weight.grad is None", "training another layer gave this one a gradient")


@law(FLOAT32_ONLY, needs=("num_batches_tracked", "state_names"), **FEW_CASES)
def reset(trial: LawTrial, case: Case) -> None:
    """reset_running_stats() makes mean 0, var 1, count 0; reset_parameters() weight 1, bias 0."""
    trial.build_layer()
    trial.bind_batch(case.batches[0])
    trial.run("layer.train()(x)", "weight = layer.weight.detach().clone()")
    trial.run("layer.eval()(x)", KEEP_TENSORS, "layer.reset_running_stats()")
    _starts(trial, "reset_running_stats()", STATE_NAMES[2:], (0, 1, 0))
    check_same_tensors(trial, "reset_running_stats()")
    twin = trial.make_twin()
    twin.reference.eval()
    for name, value in zip(STATE_NAMES[2:4], (0.0, 1.0), strict=True):
        getattr(twin.reference, name).fill_(value)
    trial.check_close("layer(x)", twin.expect(trial.evaluate("x")).output, axis=1)
    trial.run("layer.train()")
    trial.check_same("layer.weight.detach()", "weight", "reset_running_stats() changed weight")
    trial.run("layer(x)", "layer.reset_parameters()")
    _starts(trial, "reset_parameters()", STATE_NAMES, (1, 0, 0, 1, 0))
    check_same_tensors(trial, "reset_parameters()")


def _starts(trial: LawTrial, call: str, names: tuple[str, ...], values: tuple[int, ...]) -> None:
    for name, value in zip(names, values, strict=True):
        trial.require(
            f"bool((layer.{name} == {value}).all())",
            f"{call} leaves {name} at {{layer.{name}}}, expected {value}",
        )


@law(ALL_DTYPES, share=0.3, layouts=CONTIGUOUS, needs=("num_batches_tracked", "state_names"))
def state_dtype(trial: LawTrial, case: Case) -> None:
    """Training leaves dtype, shape and device of the state as they were; the counter is int64."""
    build_in_mode(trial, training=True)
    shapes = "{k: (v.dtype, v.shape, v.device) for k, v in layer.state_dict().items()}"
    trial.run(f"before = {shapes}")
    trial.bind_batch(case.batches[0], grad=True)
    trial.run("layer(x).sum().backward()")
    trial.require(
        f"{shapes} == before",
        "training changed a dtype, shape or device of the state, which was {before}",
    )
    trial.require("before['num_batches_tracked'][0] == torch.int64", "the counter is not int64")
    trial.require(
        f"all(v.dtype == torch.{case.state_dtype} for k, v in layer.state_dict().items()"
        " if k != 'num_batches_tracked')",
        f"the layer was cast to {case.state_dtype}, its state was not",
    )


@law(FLOAT32_ONLY, frozen=True, needs=("state_names",), **FEW_CASES | EVAL_CASES)
def eval_follows_state(trial: LawTrial, case: Case) -> None:
    """In eval the output follows changes of the state, a cast too: nothing is cached."""
    for mode in ("enable_grad", "no_grad"):
        _follow(trial, case, mode)
    trial.run("layer.to(torch.float16)(x.half())", "layer.to(torch.bfloat16)")
    trial.run("y = layer(x.bfloat16())", "values = layer.state_dict()")
    trial.make_layer()
    trial.run("layer.eval().to(torch.bfloat16).load_state_dict(values)")
    trial.check_same(
        "y", "layer(x.bfloat16())", "a cast layer gives another output than one loaded in bfloat16"
    )


def _follow(trial: LawTrial, case: Case, mode: str) -> None:
    twin = build_in_mode(trial, training=False)
    run_forward(trial, twin)
    trial.run(f"torch.set_grad_enabled({mode == 'enable_grad'})")
    try:
        _follow_changes(trial, twin)
    finally:
        torch.set_grad_enabled(True)
    trial.run("torch.set_grad_enabled(True)")


def _follow_changes(trial: LawTrial, twin: ReferenceTwin) -> None:
    trial.run("layer(x)")
    for name, change in (
        ("running_mean", 1.0),
        ("running_var", 2.0),
        ("weight", 0.5),
        ("bias", 3.0),
    ):
        trial.run(f"layer.{name}.data.add_({change})")
        getattr(twin.reference, name).data.add_(change)
        trial.check_close("layer(x)", twin.expect(trial.evaluate("x")).output, axis=1)
    trial.run("changed = {k: v * 2 for k, v in layer.state_dict().items()}")
    trial.run("called = torch.func.functional_call(layer, changed, (x,))")
    trial.run("layer.load_state_dict(changed)")
    twin.reference.load_state_dict(
        {k: v.double() for k, v in trial.evaluate("changed").items()}, strict=False
    )
    trial.check_close("called", twin.expect(trial.evaluate("x")).output, axis=1)
    trial.check_close("layer(x)", twin.expect(trial.evaluate("x")).output, axis=1)


@law(FLOAT32_ONLY, **FEW_CASES | {"share": 0.1})
def optimizer_steps(trial: LawTrial, case: Case) -> None:
    """After a step of an optimizer a layer goes on from the new parameters, in both modes."""
    for options in ("", ", foreach=True"):
        for training in (True, False):
            _step(trial.for_case(case), options, training=training)


def _step(trial: LawTrial, options: str, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    trial.run(f"optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9{options})")
    for _ in range(2):
        expected = run_forward(trial, twin, grad=True)
        trial.check_close("y", expected.output, axis=1)
        gradients = expected.gradients(trial.run_backward(0))
        trial.check_close("x.grad", gradients[0], axis=1)
        trial.run("optimizer.step()", "optimizer.zero_grad()")
        for name in ("weight", "bias"):
            tensor = getattr(twin.reference, name)
            tensor.data.copy_(trial.evaluate(f"layer.{name}"))
    trial.run("with torch.no_grad():\n    y = layer(x)")
    trial.check_close("y", twin.expect(trial.evaluate("x")).output, axis=1)


@law(FLOAT32_ONLY, needs=("num_batches_tracked", "state_names"), **FEW_CASES | {"share": 0.1})
def functional_call(trial: LawTrial, case: Case) -> None:
    """torch.func.functional_call uses the state that it is given, and in training updates that one.

    A parametrization of the weight is used, too.
    """
    case = replace(case, count=case.count % 8)
    for training in (True, False):
        one = trial.for_case(case)
        twin = build_in_mode(one, training=training)
        run_forward(one, twin)
        one.run(_GIVEN, KEEP_VALUES)
        given = {k: v.double().cpu() for k, v in one.evaluate("given").items()}
        twin.reference.load_state_dict(given, strict=False)
        twin = ReferenceTwin(twin.reference, twin.arithmetic)  # what is given is exact
        one.run("y = torch.func.functional_call(layer, given, (x,))")
        one.check_close("y", twin.expect(one.evaluate("x")).output, axis=1)
        for name in ("running_mean", "running_var"):
            one.check_close(f"given[{name!r}]", getattr(twin, name))
        counted = int(twin.reference.num_batches_tracked or 0)
        one.require(
            f"int(given['num_batches_tracked']) == {counted}",
            f"num_batches_tracked is {{given['num_batches_tracked']}}, expected {counted}",
        )
        check_state_unchanged(one, "functional_call() with another state")
    _parametrized(trial.for_case(case))


def _parametrized(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    trial.run(*_SOFTPLUS)
    weight = twin.reference.weight
    assert weight is not None
    weight.data.copy_(trial.evaluate("layer.weight"))
    for training in (True, False):
        set_mode(trial, twin, training=training)
        expected = run_forward(trial, twin, grad=True)
        check_training_results(trial, twin, expected)
        trial.check_close("x.grad", expected.gradients(trial.run_backward(0))[0], axis=1)
