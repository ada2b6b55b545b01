"""Laws of how a BatchNorm is saved, loaded and copied."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.laws.common import (
    HELD,
    KEEP,
    STATE,
    forward,
    holds,
    start,
    unchanged,
)
from pytest_bninvariants.batchnorm.laws.registry import FEW, ONE, law
from pytest_bninvariants.batchnorm.laws.trial import Trial


@law(("float32", "bfloat16"), frozen=True, **FEW | {"momentum": False})
def state_dict_keys(trial: Trial, case: Case) -> None:
    """state_dict() holds weight, bias, running_mean, running_var and the counter, in their dtypes.

    A layer with frozen statistics may do without the counter.
    """
    trial.build()
    counted = trial["hasattr(layer, 'num_batches_tracked')"]
    keys = sorted(STATE if counted else STATE[:4])
    trial.require(
        f"sorted(layer.state_dict()) == {keys}",
        f"state_dict() has {{sorted(layer.state_dict())}}, expected {keys}",
    )
    for name in STATE[:4]:
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


@law(ONE, frozen=True, **FEW | {"momentum": False})
def state_dict_round_trip(trial: Trial, case: Case) -> None:
    """A state that is saved and loaded into a new layer is the same state, loaded in place."""
    trial.build()
    trial.run("layer.running_var.mul_(1e-20)", KEEP)
    trial.make()
    trial.run("layer.load_state_dict(kept)")
    unchanged(trial, "the round trip of a tiny variance")
    trial.build()
    trial.feed(case.batches[0])
    trial.run("layer.train()(x)", KEEP, "trained = layer")
    trial.make()
    trial.run(HELD, "layer.train()", "layer.load_state_dict(kept)")
    unchanged(trial, "the round trip")
    trial.require("layer.training", "load_state_dict() changed the mode")
    holds(trial, "load_state_dict()")
    trial.run("y, z = layer.eval()(x), trained.eval()(x)")
    trial.same("y", "z", "the loaded layer gives another output in eval")
    trial.require(
        "not {v.data_ptr() for v in kept.values()}"
        " & {v.data_ptr() for v in layer.state_dict().values()}",
        "the loaded layer shares memory with the state that it was given",
    )
    trial.run("part = {k: kept[k] for k in ('weight', 'bias')}")
    trial.run("layer.load_state_dict(part, strict=False)")
    unchanged(trial, "loading a weight and a bias alone, with strict=False,")
    trial.run("layer.running_mean.add_(1)")
    trial.run("wide = {k: v.double() if v.is_floating_point() else v for k, v in kept.items()}")
    trial.run("layer.load_state_dict(wide)")
    unchanged(trial, "a state in float64")
    holds(trial, "load_state_dict() of float64")


@law(ONE, **FEW)
def state_dict_versions(trial: Trial, case: Case) -> None:
    """A state from before the counter loads, and keeps the counter; a newer one must have it."""
    trial.build()
    trial.run(KEEP, "old = {k: v for k, v in kept.items() if k != 'num_batches_tracked'}")
    trial.run("layer.running_mean.add_(1)", "layer.load_state_dict(old)")
    unchanged(trial, "loading a state without a counter")
    trial.run("old = {f'0.{name}': value for name, value in old.items()}")
    trial.run("layer.running_mean.add_(1)", "torch.nn.Sequential(layer).load_state_dict(old)")
    unchanged(trial, "loading a state without a counter into a model")
    trial.run("new = layer.state_dict()", "del new['num_batches_tracked']")
    trial.raises("layer.load_state_dict(new)", RuntimeError)
    trial.run("new._metadata = {'': {'version': 2}}")
    trial.raises("layer.load_state_dict(new)", RuntimeError)


_COPIES = {
    "deepcopy": ("import copy", "copied = copy.deepcopy(layer)"),
    "pickle": ("import pickle", "copied = pickle.loads(pickle.dumps(layer))"),
}


def _copy(trial: Trial, case: Case, way: str) -> None:
    trial.build()
    trial.feed(case.batches[0], grad=True)
    trial.run("layer.train()(x)", "layer.eval()", "layer.weight.requires_grad_(False)")
    trial.run("layer.eps, layer.momentum = 0.25, 0.75", "layer.note = 'mine'")
    trial.run(KEEP, "shares = {k: v.data_ptr() for k, v in layer.state_dict().items()}")
    trial.run(*_COPIES[way], "original, layer = layer, copied")
    trial.require("not layer.training", f"{way} of a layer in eval is in training mode")
    trial.require("not layer.weight.requires_grad", f"{way} thawed the weight")
    unchanged(trial, way)
    trial.require("getattr(layer, 'note', None) == 'mine'", f"{way} lost an attribute")
    trial.require("type(layer) is type(original)", f"{way} gives another type")
    for name in ("eps", "momentum", "num_features", "track_running_stats"):
        if trial[f"hasattr(original, {name!r})"]:
            trial.require(f"layer.{name} == original.{name}", f"{way} lost {name}")
    trial.require(
        "not set(shares.values()) & {v.data_ptr() for v in layer.state_dict().values()}",
        f"{way} shares memory with the original",
    )
    trial.run("y, z = layer.train()(x), original.train()(x)")
    trial.same("y", "z", f"after {way} training gives another output")
    trial.run("first = {k: v.clone() for k, v in layer.state_dict().items()}")
    for name in list(trial["first"]):
        trial.same(
            f"first[{name!r}]",
            f"original.state_dict()[{name!r}]",
            f"after {way} training makes {name}",
        )
    trial.run("layer.train()(x + 1)", "layer = original", "kept = first")
    unchanged(trial, f"training the {way}")


@law(ONE, frozen=True, **FEW | {"momentum": False})
def deepcopy(trial: Trial, case: Case) -> None:
    """A deep copy has the same state and settings, and none of the original's memory."""
    _copy(trial, case, "deepcopy")
    trial.run("calls = []", "layer.register_forward_hook(lambda *_: calls.append('after'))")
    trial.run("layer = copy.deepcopy(layer)", "layer.eval()(x)")
    trial.require("calls == ['after']", "deepcopy lost a forward hook")


@law(ONE, frozen=True, **FEW | {"momentum": False})
def pickle(trial: Trial, case: Case) -> None:
    """A pickled layer comes back with the same state and settings."""
    _copy(trial, case, "pickle" if can_be_pickled(trial) else "deepcopy")


def can_be_pickled(trial: Trial) -> bool:
    """Tell whether pickle's rules allow it: a local class cannot be."""
    factory = trial.subject.factory
    return isinstance(factory, type) and "<locals>" not in factory.__qualname__


@law(ONE, modes=(True, True), momentum=True, average=True, **FEW)
def copies_keep_momentum(trial: Trial, case: Case) -> None:
    """A copy goes on with the same momentum, None too, and the same count."""
    trial.case = replace(case, count=case.count % 8)
    twin = start(trial, training=True)
    forward(trial, twin)
    trial.run("import copy", "layer = copy.deepcopy(layer)")
    if can_be_pickled(trial):
        trial.run("import pickle", "layer = pickle.loads(pickle.dumps(layer))")
    forward(trial, twin, 1)
    trial.close("layer.running_mean", twin.running_mean)
    trial.close("layer.running_var", twin.running_var)
