"""Laws of a BatchNorm's inputs: errors, corner cases, layouts, dtypes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from pytest_bninvariants.batchnorm.arguments import layouts_for_rank
from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, DENSE, LAYOUTS, Batch, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import ALL_DTYPES, FEW_CASES, FLOAT32_ONLY, law
from pytest_bninvariants.batchnorm.laws.steps import (
    EVAL_CASES,
    KEEP_VALUES,
    build_in_mode,
    check_state_unchanged,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.declaration import STATE_NAMES
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.option_values import HALF

_KEEP_STATISTICS = "kept = [layer.running_mean.clone(), layer.running_var.clone()]"
_GRADIENTS = (  # as indexing, splitting and global pooling behind the layer leave them
    "torch.stack((g, torch.zeros_like(g)), -1)[..., 0]",
    "torch.cat((g.new_zeros(3), g.flatten()))[3:].view(g.shape)",
    "g[..., :1].expand(g.shape)",
)
_OTHER_FORMATS = (  # of gradients for batches with memory formats
    "g.contiguous(memory_format=torch.{})",
    "torch.cat((g[:1], g)).contiguous(memory_format=torch.{})[1:]",
    "g.contiguous()",
)
# torch itself refuses with any of these, by layer and version
_REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, AssertionError)


@law(FLOAT32_ONLY, needs=("track_running_stats", "small_batches"), **FEW_CASES)
def one_value_per_channel(trial: LawTrial, case: Case) -> None:
    """In training one value per channel raises ValueError, and statistics stay; eval takes it."""
    shape = (1, case.channels, *[1] * (len(case.batches[0].shape) - 2))
    trial.case = replace(case, batches=(replace(case.batches[0], shape=shape),))
    twin = build_in_mode(trial, training=True)
    trial.bind_batch(trial.case.batches[0])
    trial.run(_KEEP_STATISTICS)
    trial.check_raises("layer(x)", ValueError)
    _statistics_stay(trial, "one value per channel")
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
    off = trial.for_case(replace(trial.case, seed=None))
    off.build_layer(track_running_stats=False)
    off.bind_batch(trial.case.batches[0])
    off.run("layer.eval()")
    off.check_raises("layer(x)", ValueError)


def _statistics_stay(trial: LawTrial, what: str) -> None:
    """Check that the running statistics are what `_KEEP_STATISTICS` kept; the counter may move."""
    trial.check_same("layer.running_mean", "kept[0]", f"{what} changed running_mean")
    trial.check_same("layer.running_var", "kept[1]", f"{what} changed running_var")


@law(FLOAT32_ONLY, needs=("num_batches_tracked", "small_batches"), **FEW_CASES)
def empty_batch(trial: LawTrial, case: Case) -> None:
    """An empty batch is counted, leaves statistics and gradients, and gives an empty output."""
    _, c, *positions = case.batches[0].shape
    shapes = [(0, c, *positions)]
    if positions:
        shapes.append((2, c, *positions[:-1], 0))
    for shape in shapes:
        trial.case = replace(case, batches=(Batch(shape=shape),))
        build_in_mode(trial, training=True)
        trial.run(_KEEP_STATISTICS)
        trial.bind_batch(trial.case.batches[0], grad=True)
        trial.run("y = layer(x)", "y.sum().backward()")
        trial.require(f"y.shape == {shape}", f"the output of {shape} has shape {{tuple(y.shape)}}")
        trial.require("y is not x", f"an input of {shape} is returned itself")
        _statistics_stay(trial, "an empty batch")
        trial.require(
            f"int(layer.num_batches_tracked) == {case.count + 1}",
            f"num_batches_tracked is {{layer.num_batches_tracked}}, expected {case.count + 1}",
        )
        for name in ("weight", "bias"):
            trial.require(
                f"layer.{name}.grad is None or not layer.{name}.grad.any()",
                f"an empty batch gave {name} the gradient {{layer.{name}.grad}}",
            )
        trial.run("layer.eval()", "y = layer(x)")
        trial.require(f"y.shape == {shape}", f"in eval {shape} comes out as {{tuple(y.shape)}}")


@law(FLOAT32_ONLY, frozen=True, **FEW_CASES | {"momentum": False})
def empty_batch_in_eval(trial: LawTrial, case: Case) -> None:
    """In eval an empty batch gives an empty output of its shape."""
    shape = (0, *case.batches[0].shape[1:])
    build_in_mode(trial, training=False)
    trial.bind_batch(Batch(shape=shape))
    trial.run("y = layer(x)")
    trial.require(f"y.shape == {shape}", f"{shape} comes out as {{tuple(y.shape)}}")


@law(FLOAT32_ONLY, **FEW_CASES)
def wrong_rank(trial: LawTrial, case: Case) -> None:
    """An input of a rank that the layer does not take raises, in training and in eval."""
    taken = trial.subject.dims
    every = (1, 2, 3, 4, 5, 6) if len(taken) < 4 else (1,)
    build_in_mode(trial, training=True)
    trial.run(KEEP_VALUES)
    for rank in every:
        if rank not in taken:
            shape = (4, case.channels, *[2] * (rank - 2)) if rank > 1 else (case.channels,)
            _refused(trial, shape)
    unbatched = case.batches[0].shape[1:]
    if len(taken) == 1 and len(unbatched) > 2:  # one of fewer dimensions may be a batch itself
        _refused(trial, unbatched)
    check_state_unchanged(trial, "a refused input")


@law(FLOAT32_ONLY, **FEW_CASES)
def wrong_channel_count(trial: LawTrial, case: Case) -> None:
    """An input with another number of channels raises, in training and in eval."""
    c, positions = case.channels, case.batches[0].shape[2:]
    build_in_mode(trial, training=True)
    for other in (c + 1, c - 1, 2 * c, 1 if c > 1 else 3):
        if other > 0:
            _refused(trial, (4, other, *positions))


def _refused(trial: LawTrial, shape: tuple[int, ...]) -> None:
    trial.run(f"x = torch.ones({shape}, device={trial.case.device!r})")
    for mode in ("eval", "train"):
        trial.run(f"layer.{mode}()")
        trial.check_raises("layer(x)", *_REFUSALS)


@law(("float32", "float64"), share=0.4, layouts=CONTIGUOUS, max_values=512)
def nonfinite_input(trial: LawTrial, case: Case) -> None:
    """In training NaN and Inf reach output and statistics of their channel, and no other.

    So does NaN in the gradient of the output.
    """
    for bad in ("nan", "inf", "-inf"):
        twin = build_in_mode(trial, training=True)
        clean = trial.bind_batch(case.batches[0])
        expected = twin.expect(clean)
        trial.run("x = x.clone()", f"x[0, 0] = float('{bad}')", "y = layer(x.requires_grad_())")
        if case.channels > 1:
            trial.check_close("y[:, 1:]", _after_first(expected.output, 1), axis=1)
            trial.check_close("layer.running_mean[1:]", _after_first(twin.running_mean, 0))
            trial.check_close("layer.running_var[1:]", _after_first(twin.running_var, 0))
        trial.require("y[:, 0].isnan().all()", f"{bad} in a channel does not make its output NaN")
        if case.channels > 1:
            trial.bind_gradient()
            trial.run("(of_input,) = torch.autograd.grad(y, x, g)")
            of_input = expected.gradients(case.gradient(0))[0]
            trial.check_close("of_input[:, 1:]", _after_first(of_input, 1), axis=1)
            _nonfinite_gradient(trial.for_case(case))
        if case.momentum != 0:
            for name in ("running_mean", "running_var"):
                trial.require(
                    f"not layer.{name}[0].isfinite()",
                    f"{bad} does not reach {name}: {{layer.{name}[0]}}",
                )


def _nonfinite_gradient(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    expected = run_forward(trial, twin, grad=True)
    gradients = expected.gradients(trial.bind_gradient())
    trial.run("g[0, 0] = float('nan')", "y.backward(g)")
    for index, name in enumerate(("x", "layer.weight", "layer.bias")):
        rest = _after_first(gradients[index], int(index == 0))
        channels = "[:, 1:]" if index == 0 else "[1:]"
        trial.check_close(f"{name}.grad{channels}", rest, axis=int(index == 0))
        trial.require(
            f"bool({name}.grad.transpose(0, {int(index == 0)})[0].isnan().any())",
            f"NaN in a channel's gradient does not reach {name}.grad",
        )


@law(
    ("float32", "float64"), share=0.4, frozen=True, max_values=512, layouts=CONTIGUOUS, **EVAL_CASES
)
def eval_nonfinite_input(trial: LawTrial, case: Case) -> None:
    """In eval NaN and Inf reach their own place of the output, and no other.

    NaN in the state reaches the output of its channel, and no other.
    """
    twin = build_in_mode(trial, training=False)
    clean = trial.bind_batch(case.batches[0])
    expected = twin.expect(clean).output
    for bad in ("nan", "inf"):
        trial.run("z = x.clone()", f"z.view(-1)[0] = float('{bad}')", "y = layer(z)")
        trial.require("not y.reshape(-1)[0].isfinite()", f"{bad} comes out as {{y.reshape(-1)[0]}}")
        rest = BoundedValue(*(each.reshape(-1)[1:] for each in expected))
        trial.check_close("y.reshape(-1)[1:]", rest)
    for name in STATE_NAMES[:4] if case.channels > 1 else ():
        trial.run(f"value = layer.{name}.data[0].item()", f"layer.{name}.data[0] = float('nan')")
        trial.run("y = layer(x)", f"layer.{name}.data[0] = value")
        trial.check_close("y[:, 1:]", _after_first(expected, 1), axis=1)
        trial.require("y[:, 0].isnan().all()", f"NaN in {name} does not reach the output")


def _after_first(each: BoundedValue, axis: int) -> BoundedValue:
    return BoundedValue(*(t.narrow(axis, 1, t.shape[axis] - 1) for t in each))


@law(("float64", "float32", "bfloat16"), share=0.3)
def layouts(trial: LawTrial, case: Case) -> None:
    """Layout and strides of input and gradient change only rounding; channels_last stays so."""
    for index, layout in enumerate(_possible_layouts(case)):
        batch = replace(case.batches[0], layout=layout)
        one = trial.for_case(replace(case, batches=(batch,), plain_gradient=False))
        for gradient in _gradient_layouts(batch, index):
            _check_layout(one, gradient)
        _keeps_format(one, _memory_format(batch))


def _gradient_layouts(batch: Batch, index: int) -> tuple[str, ...]:
    """Return code of layouts of the gradient for a batch; those of a memory format are all tried.

    Where an axis of length 1 leaves open which format it is, torch itself takes one for the other.
    """
    n, _, *positions = batch.shape
    clear = len(positions) > 1 and min(n, *positions) > 1
    last = "channels_last" if len(positions) == 2 else "channels_last_3d"
    formats = tuple(each.format(last) for each in _OTHER_FORMATS)
    if _memory_format(batch):
        return formats if clear else formats[:1]
    other = (_GRADIENTS[(index + batch.seed) % len(_GRADIENTS)],)
    return (*other, *formats[:2]) if clear and batch.layout in DENSE else other


def _check_layout(trial: LawTrial, gradient: str) -> None:
    """Check training on the case's batch, with a gradient of this layout."""
    twin = build_in_mode(trial, training=True)
    expected = run_forward(trial, twin, grad=True)
    check_training_results(trial, twin, expected)
    trial.bind_gradient()
    trial.run(f"g = {gradient}", "y.backward(g)")
    of_input, of_weight, of_bias = expected.gradients(trial.evaluate("g"))
    trial.check_close("x.grad", of_input, axis=1)
    trial.check_close("layer.weight.grad", of_weight)
    trial.check_close("layer.bias.grad", of_bias)


def _memory_format(batch: Batch) -> str | None:
    """Return the memory format of a batch that is dense in channels_last; None for others."""
    if len(batch.shape) < 4 or batch.layout not in ("channels_last", "later"):
        return None
    return "channels_last" if len(batch.shape) == 4 else "channels_last_3d"


@law(("float64", "float32", "bfloat16"), share=0.3, frozen=True, **EVAL_CASES)
def eval_layouts(trial: LawTrial, case: Case) -> None:
    """In eval layout and strides of the input change only rounding; channels_last stays so."""
    for layout in _possible_layouts(case):
        batch = replace(case.batches[0], layout=layout)
        one = trial.for_case(replace(case, batches=(batch,)))
        twin = build_in_mode(one, training=False)
        expected = run_forward(one, twin, grad=True)
        one.check_close("y", expected.output, axis=1)
        gradients = expected.gradients(one.run_backward(0))
        one.check_close("x.grad", gradients[0], axis=1)
        one.run("with torch.no_grad():\n    y = layer(x)")
        one.check_close("y", expected.output, axis=1)
        _keeps_format(one, _memory_format(batch))


def _keeps_format(trial: LawTrial, memory_format: str | None) -> None:
    """Require that an output has the memory format that the layer's input came in."""
    if memory_format is not None:
        trial.require(
            f"y.is_contiguous(memory_format=torch.{memory_format})",
            f"an input in {memory_format} gives an output of strides {{y.stride()}}",
        )


def _possible_layouts(case: Case) -> tuple[str, ...]:
    return layouts_for_rank(len(case.batches[0].shape), LAYOUTS)


@law(ALL_DTYPES, share=0.3, frozen=True, momentum=False, max_values=256)
def output_dtype(trial: LawTrial, case: Case) -> None:
    """The output has dtype, shape and device of the input, and so has its gradient.

    A float64 input to a float32 layer raises, or in eval it is as exact as a float32 one.
    """
    for mode in ("train", "eval"):
        build_in_mode(trial, training=mode == "train")
        trial.bind_batch(case.batches[0], grad=True)
        trial.run("y = layer(x)", "y.sum().backward()")
        for name in ("y", "x.grad"):
            trial.require(
                f"({name}.dtype, {name}.shape, {name}.device) == (x.dtype, x.shape, x.device)",
                f"{name} is {{{name}.dtype}}, {{tuple({name}.shape)}}, the input {{x.dtype}}",
            )
    if case.dtype == "float32":
        for training in (True, False):
            _takes_or_refuses_float64(trial.for_case(case), training=training)


def _takes_or_refuses_float64(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    trial.bind_batch(trial.case.batches[0])
    trial.run("x = x.double()", "try:\n    y = layer(x)\nexcept Exception:\n    y = None")
    told = "a float64 input to a float32 layer comes out in {y.dtype}"
    trial.require("y is None or y.dtype == x.dtype", told)
    if trial.evaluate("y is not None") and not training:  # a frozen layer trains as in eval
        trial.check_close("y", twin.expect(trial.evaluate("x")).output, axis=1)


@law(HALF, state_dtype="float32", layouts=DENSE)
def mixed_precision(trial: LawTrial, case: Case) -> None:
    """Half inputs with a float32 layer: all in float32 but the output, Inf beyond its range."""
    twin = build_in_mode(trial, training=True)
    expected = run_forward(trial, twin, grad=True)
    trial.require("y.dtype == x.dtype", "the output is {y.dtype}, the input {x.dtype}")
    check_training_results(trial, twin, expected)
    g = trial.bind_gradient()
    trial.run("y.backward(torch.empty_like(y).copy_(g))")  # laid out as the output is
    of_input, of_weight, of_bias = expected.gradients(g)
    trial.check_close("x.grad", of_input, axis=1)
    trial.check_close("layer.weight.grad", of_weight)
    trial.check_close("layer.bias.grad", of_bias)
    set_mode(trial, twin, training=False)
    expected = run_forward(trial, twin, grad=True)
    trial.require("y.dtype == x.dtype", "in eval the output is {y.dtype}, the input {x.dtype}")
    trial.check_close("y", expected.output, axis=1)
    trial.run("layer.zero_grad()", "y.backward(torch.empty_like(y).copy_(g))")
    of_input, of_weight, _ = expected.gradients(g)
    trial.check_close("x.grad", of_input, axis=1)
    trial.check_close("layer.weight.grad", of_weight)
    if case.dtype == "float16":
        trial.run("layer.bias.data.fill_(1e10)", "y = layer(x)")
        trial.require("y.isinf().all()", "1e10 comes out as {y.min()}, float16 ends at 65504")


@law(("float32", "bfloat16"), share=0.3, state_dtype="float32", layouts=CONTIGUOUS)
def autocast(trial: LawTrial, case: Case) -> None:
    """Under autocast the output has the input's dtype, and all is as right as without.

    So it is in eval with frozen parameters, and under no_grad.
    """
    trial.case = replace(case, plain_gradient=False)
    twin = build_in_mode(trial, training=True)
    for training in (True, False):
        set_mode(trial, twin, training=training)
        _check_autocast(trial, twin, "bfloat16")
    for dtype, grad in product(HALF, (True, False)):
        frozen = trial.for_case(trial.case)
        twin = build_in_mode(frozen, training=False)
        frozen.run("layer.requires_grad_(False)")
        _check_autocast(frozen, twin, dtype, grad=grad)


def _check_autocast(trial: LawTrial, twin: ReferenceTwin, dtype: str, *, grad: bool = True) -> None:
    """Check a batch under autocast to a dtype."""
    x = trial.bind_batch(trial.case.batches[0], grad=grad)
    kind = torch.device(trial.case.device).type
    within = f"torch.autocast({kind!r}, dtype=torch.{dtype}), torch.set_grad_enabled({grad})"
    trial.run(f"with {within}:\n    y = layer(x)")
    expected = twin.expect(x)
    trial.require("y.dtype == x.dtype", "the output is {y.dtype}, the input {x.dtype}")
    check_training_results(trial, twin, expected)
    if grad:
        trial.check_close("x.grad", expected.gradients(trial.run_backward(0))[0], axis=1)
