"""Laws of how a BatchNorm is saved, loaded and copied."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.expectation import ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import FEW_CASES, FLOAT32_ONLY, law
from pytest_bninvariants.batchnorm.laws.steps import (
    KEEP_TENSORS,
    KEEP_VALUES,
    build_in_mode,
    check_same_tensors,
    check_state_unchanged,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.declaration import STATE_NAMES
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial, layer_line


@law(
    ("float32", "bfloat16"), frozen=True, needs=("state_names",), **FEW_CASES | {"momentum": False}
)
def state_dict_keys(trial: LawTrial, case: Case) -> None:
    """state_dict() holds weight, bias, running_mean, running_var and the counter, in their dtypes.

    A layer with frozen statistics may do without the counter. Its parameters come in the order
    weight, bias, by which optimizers number what they save. Those of a model carry its prefix.
    """
    trial.build_layer()
    trial.require(
        "[k for k, _ in layer.named_parameters() if k in ('weight', 'bias')] != ['bias', 'weight']",
        "its parameters come in the order {[k for k, _ in layer.named_parameters()]}",
    )
    counted = trial.evaluate("hasattr(layer, 'num_batches_tracked')")
    keys = sorted(STATE_NAMES if counted else STATE_NAMES[:4])
    trial.require(
        f"sorted(layer.state_dict()) == {keys}",
        f"state_dict() has {{sorted(layer.state_dict())}}, expected {keys}",
    )
    for name in STATE_NAMES[:4]:
        trial.require(
            f"layer.state_dict()[{name!r}].dtype == torch.{case.state_dtype}"
            f" and layer.state_dict()[{name!r}].shape == ({case.channels},)",
            f"state_dict() has {name} as {{layer.state_dict()[{name!r}]}}",
        )
    for name in keys:
        trial.require(
            f"layer.state_dict()[{name!r}].data_ptr() == layer.{name}.data_ptr()",
            f"state_dict() has a copy of {name}, not the layer's own memory",
        )
    trial.run("model = torch.nn.Sequential(torch.nn.ModuleDict({'bn': layer}))")
    trial.require(
        f"sorted(model.state_dict()) == {[f'0.bn.{key}' for key in keys]}",
        "state_dict() of a model that has it at '0.bn' has {sorted(model.state_dict())}",
    )


@law(FLOAT32_ONLY, frozen=True, needs=("state_names",), **FEW_CASES | {"momentum": False})
def state_dict_round_trip(trial: LawTrial, case: Case) -> None:
    """A state that is saved and loaded into a new layer is the same state, loaded in place.

    load_state_dict() returns what was missing.
    """
    trial.build_layer()
    trial.run("layer.running_var.mul_(1e-20)", KEEP_VALUES)
    trial.make_layer()
    trial.run("layer.load_state_dict(kept)")
    check_state_unchanged(trial, "the round trip of a tiny variance")
    trial.build_layer()
    trial.bind_batch(case.batches[0])
    trial.run("layer.train()(x)", KEEP_VALUES, "trained = layer")
    trial.make_layer()
    trial.run(KEEP_TENSORS, "layer.train()", "layer.load_state_dict(kept)")
    check_state_unchanged(trial, "the round trip")
    trial.require("layer.training", "load_state_dict() changed the mode")
    check_same_tensors(trial, "load_state_dict()")
    trial.run("y, z = layer.eval()(x), trained.eval()(x)")
    trial.check_same("y", "z", "the loaded layer gives another output in eval")
    trial.require(
        "not {v.data_ptr() for v in kept.values()}"
        " & {v.data_ptr() for v in layer.state_dict().values()}",
        "the loaded layer shares memory with the state that it was given",
    )
    trial.run("part = {k: kept[k] for k in ('weight', 'bias')}")
    trial.run("told = layer.load_state_dict(part, strict=False)")
    trial.require(
        "set(told.missing_keys) >= {'running_mean', 'running_var'} and not told.unexpected_keys",
        "load_state_dict() of a weight and a bias alone returned {told}",
    )
    check_state_unchanged(trial, "loading a weight and a bias alone, with strict=False,")
    trial.run("layer.running_mean.add_(1)")
    trial.run("wide = {k: v.double() if v.is_floating_point() else v for k, v in kept.items()}")
    trial.run("layer.load_state_dict(wide)")
    check_state_unchanged(trial, "a state in float64")
    check_same_tensors(trial, "load_state_dict() of float64")


@law(FLOAT32_ONLY, needs=("num_batches_tracked", "state_names"), **FEW_CASES)
def state_dict_versions(trial: LawTrial, case: Case) -> None:
    """A state from before the counter loads, and keeps the counter; a newer one must have it."""
    trial.build_layer()
    trial.run(KEEP_VALUES, "old = {k: v for k, v in kept.items() if k != 'num_batches_tracked'}")
    trial.run("layer.running_mean.add_(1)", "layer.load_state_dict(old)")
    check_state_unchanged(trial, "loading a state without a counter")
    trial.run("old = {f'0.{name}': value for name, value in old.items()}")
    trial.run("layer.running_mean.add_(1)", "torch.nn.Sequential(layer).load_state_dict(old)")
    check_state_unchanged(trial, "loading a state without a counter into a model")
    trial.run("old = {name.removeprefix('0.'): value for name, value in old.items()}")
    trial.run("layer = layer.to('meta')", "layer.load_state_dict(old, assign=True)")
    trial.require(
        "not layer.num_batches_tracked.is_meta",
        "a state without a counter, assigned to a layer on 'meta', leaves the counter there",
    )
    trial.build_layer()
    trial.run("new = layer.state_dict()", "del new['num_batches_tracked']")
    trial.check_raises("layer.load_state_dict(new)", RuntimeError)
    trial.run("new._metadata = {'': {'version': 2}}")
    trial.check_raises("layer.load_state_dict(new)", RuntimeError)


@law(FLOAT32_ONLY, needs=("state_names",), **FEW_CASES)
def state_dict_strictness(trial: LawTrial, case: Case) -> None:
    """A state that lacks a part, has one more, or one of another shape, is refused by name."""
    trial.build_layer()
    for name in STATE_NAMES[:4]:
        trial.run("state = layer.state_dict()", f"del state[{name!r}]")
        trial.check_raises("layer.load_state_dict(state)", RuntimeError)
        trial.run("state = dict(layer.state_dict())")
        trial.run(f"state[{name!r}] = torch.ones({case.channels + 2}, device={case.device!r})")
        trial.check_raises("layer.load_state_dict(state)", RuntimeError)
    trial.run("state = layer.state_dict()", "state['running_std'] = state['running_var'].sqrt()")
    trial.check_raises("layer.load_state_dict(state)", RuntimeError)


_COPIES = {
    "deepcopy": ("import copy", "copied = copy.deepcopy(layer)"),
    "pickle": ("import pickle", "copied = pickle.loads(pickle.dumps(layer))"),
}


def _copy(trial: LawTrial, case: Case, way: str) -> None:
    trial.build_layer()
    trial.bind_batch(case.batches[0], grad=True)
    trial.run("layer.train()(x)", "layer.eval()", "layer.weight.requires_grad_(False)")
    trial.run("layer.eps, layer.momentum = 0.25, 0.75", "layer.note = 'mine'")
    trial.run(KEEP_VALUES, "shares = {k: v.data_ptr() for k, v in layer.state_dict().items()}")
    trial.run(*_COPIES[way], "original, layer = layer, copied")
    trial.require("not layer.training", f"{way} of a layer in eval is in training mode")
    trial.require("not layer.weight.requires_grad", f"{way} thawed the weight")
    check_state_unchanged(trial, way)
    trial.require("getattr(layer, 'note', None) == 'mine'", f"{way} lost an attribute")
    trial.require("type(layer) is type(original)", f"{way} gives another type")
    for name in ("eps", "momentum", "num_features", "track_running_stats"):
        if trial.evaluate(f"hasattr(original, {name!r})"):
            trial.require(f"layer.{name} == original.{name}", f"{way} lost {name}")
    trial.require(
        "not set(shares.values()) & {v.data_ptr() for v in layer.state_dict().values()}",
        f"{way} shares memory with the original",
    )
    trial.run("y, z = layer.train()(x), original.train()(x)")
    trial.check_same("y", "z", f"after {way} training gives another output")
    trial.run("first = {k: v.clone() for k, v in layer.state_dict().items()}")
    for name in list(trial.evaluate("first")):
        trial.check_same(
            f"first[{name!r}]",
            f"original.state_dict()[{name!r}]",
            f"after {way} training makes {name}",
        )
    trial.run("layer.train()(x + 1)", "layer = original", "kept = first")
    check_state_unchanged(trial, f"training the {way}")


@law(FLOAT32_ONLY, frozen=True, **FEW_CASES | {"momentum": False})
def deepcopy(trial: LawTrial, case: Case) -> None:
    """A deep copy has the same state and settings, and none of the original's memory."""
    _copy(trial, case, "deepcopy")
    trial.run("calls = []", "layer.register_forward_hook(lambda *_: calls.append('after'))")
    trial.run("layer = copy.deepcopy(layer)", "layer.eval()(x)")
    trial.require("calls == ['after']", "deepcopy lost a forward hook")


@law(FLOAT32_ONLY, frozen=True, **FEW_CASES | {"momentum": False})
def pickle(trial: LawTrial, case: Case) -> None:
    """A pickled layer comes back with the same state and settings."""
    _copy(trial, case, "pickle" if can_be_pickled(trial) else "deepcopy")


def can_be_pickled(trial: LawTrial) -> bool:
    """Tell whether pickle's rules allow it: a local class cannot be."""
    factory = trial.subject.factory
    return isinstance(factory, type) and "<locals>" not in factory.__qualname__


@law(FLOAT32_ONLY, modes=(True, True), momentum=True, average=True, **FEW_CASES)
def copies_keep_momentum(trial: LawTrial, case: Case) -> None:
    """A copy goes on with the same momentum, None too, and the same count."""
    trial.case = replace(case, count=case.count % 8)
    twin = build_in_mode(trial, training=True)
    run_forward(trial, twin)
    trial.run("import copy", "layer = copy.deepcopy(layer)")
    if can_be_pickled(trial):
        trial.run("import pickle", "layer = pickle.loads(pickle.dumps(layer))")
    run_forward(trial, twin, 1)
    trial.check_close("layer.running_mean", twin.running_mean)
    trial.check_close("layer.running_var", twin.running_var)


_VALUES = "new = {k: v.detach().flip(0) + 0.5 for k, v in layer.state_dict().items() if v.dim()}"
_COUNTED = "new |= {k: v for k, v in layer.state_dict().items() if not v.dim()}"
_ARRIVALS = {  # lines by which the values in `new` become those of `layer`
    "load_state_dict(assign=True)": "layer.load_state_dict(new, assign=True)",
    "load_state_dict() of a model": (
        "model = torch.nn.Sequential(torch.nn.ModuleDict({'bn': layer}))\n"
        "model.load_state_dict({f'0.bn.{k}': v for k, v in new.items()})"
    ),
    "other tensors put in their place": (
        "for k in new:\n"
        "    parameter = isinstance(getattr(layer, k), torch.nn.Parameter)\n"
        "    setattr(layer, k, torch.nn.Parameter(new[k]) if parameter else new[k])"
    ),
    "statistics that are columns of a matrix": (  # parameters that are so torch itself misreads
        "layer.load_state_dict(new)\n"
        "matrix = torch.stack((new['running_mean'], new['running_var']), 1).float()\n"
        "layer.running_mean.data, layer.running_var.data = matrix[:, 0], matrix[:, 1]"
    ),
    "writing into .data": "for k in new:\n    getattr(layer, k).data.copy_(new[k])",
    "views of one flat tensor": (
        "flat = torch.cat([torch.zeros(1), *(new[k].flatten().float() for k in new)])\n"
        "at = 1\n"
        "for k in new:\n"
        "    if new[k].dim():\n"
        "        getattr(layer, k).data = flat[at : at + len(new[k])]\n"
        "    at += new[k].numel()"
    ),
    "a deep copy of a model that has it": (
        "import copy\n"
        "layer.load_state_dict(new)\n"
        "layer = copy.deepcopy(torch.nn.Sequential(layer, torch.nn.ReLU()))[0]"
    ),
    "a cast and back": "layer.load_state_dict(new)\nlayer = layer.double()\nlayer = layer.float()",
    "to_empty()": (
        "layer = layer.to('meta').to_empty(device={device!r})\nlayer.load_state_dict(new)"
    ),
    "to_empty() of a layer that was made on 'meta'": (
        "with torch.device('meta'):\n    {made}\n"
        "layer = layer.to_empty(device={device!r})\n"
        "layer.load_state_dict(new)"
    ),
    "parameters that another layer has, too": (
        "import copy\n"
        "layer.load_state_dict(new)\n"
        "other, layer = layer, copy.deepcopy(layer)\n"
        "layer.weight, layer.bias = other.weight, other.bias"
    ),
}


@law(FLOAT32_ONLY, needs=("state_names",), **FEW_CASES | {"share": 0.04, "average": True})
def state_arrives(trial: LawTrial, case: Case) -> None:
    """However its state arrives, a layer goes on from it: in eval, in training and in backward.

    Tried are assigning loads, other tensors, views of a flat one, statistics with strides, casts,
    copies, layers made on 'meta', and parameters that are shared.
    """
    case = replace(case, count=case.count % 8)
    for name, lines in _ARRIVALS.items():
        one = trial.for_case(case)
        twin = build_in_mode(one, training=False)
        run_forward(one, twin)
        one.run("layer.train()", _VALUES, _COUNTED)
        made = layer_line(one.subject, case, {})
        one.run(lines.replace("{device!r}", repr(case.device)).replace("{made}", made))
        _goes_on(one, twin, name)


def _goes_on(trial: LawTrial, twin: ReferenceTwin, way: str) -> None:
    values = {k: v.detach().double().cpu() for k, v in trial.evaluate("new").items()}
    twin.reference.load_state_dict(values, strict=False)
    trial.require("layer.training", f"after {way} the layer is not in training mode")
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
    set_mode(trial, twin, training=True)
    expected = run_forward(trial, twin, grad=True)
    check_training_results(trial, twin, expected)
    of_input, of_weight, of_bias = expected.gradients(trial.run_backward(0))
    trial.check_close("x.grad", of_input, axis=1)
    trial.check_close("layer.weight.grad", of_weight)
    trial.check_close("layer.bias.grad", of_bias)
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
