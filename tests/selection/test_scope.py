"""Which names a guard watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from pytest_bninvariants import FrozenStateChanged, GateError, frozen, frozen_bn, run_config
from pytest_bninvariants.invariants.signature import option_names
from pytest_bninvariants.run_config import replaced
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.model_names import ModelNames, covers
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select

STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def deep() -> nn.Module:
    """A model with the names that patterns confuse: layer1 and layer10, bn and bn1."""
    model = nn.Module()
    for path, layer in {
        "stem.conv": nn.Conv1d(1, 2, 1),
        "stem.bn": nn.BatchNorm1d(2),
        "layer1.0.bn1": nn.BatchNorm1d(2),
        "layer1.1.bn1": nn.BatchNorm1d(2),
        "layer10.0.bn1": nn.BatchNorm1d(2),
        "head.bn": nn.BatchNorm1d(2),
        "head.fc": nn.Linear(2, 1),
    }.items():
        parent = model
        *parents, name = path.split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, layer)
    return model


BN = {"stem.bn", "layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1", "head.bn"}


def tensors(model: nn.Module, *modules: str, **options: object) -> set[str]:
    selection = select(model, Scope(modules=modules, **options))  # type: ignore[arg-type]
    return {watched.name for watched in selection.tensors.values()}


def layers(model: nn.Module, *modules: str, **options: object) -> set[str]:
    return {name.rpartition(".")[0] for name in tensors(model, *modules, **options)}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), BN),
        (("",), BN),
        (("*",), BN),
        (("layer1",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer1.*",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer1*",), {"layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"}),
        (("layer?",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer??",), {"layer10.0.bn1"}),
        (("layer1.0",), {"layer1.0.bn1"}),
        (("layer1.0.bn1",), {"layer1.0.bn1"}),
        (("*bn",), {"stem.bn", "head.bn"}),
        (("*.bn",), {"stem.bn", "head.bn"}),
        (("*.0",), {"layer1.0.bn1", "layer10.0.bn1"}),
        (("stem", "head"), {"stem.bn", "head.bn"}),
        (("stem", "stem.bn"), {"stem.bn"}),
    ],
)
def test_a_pattern_covers_the_bn_layers_of_the_modules_it_matches(
    patterns: tuple[str, ...], expected: set[str]
) -> None:
    selection = select(deep(), Scope(modules=patterns, bn_only=True))
    assert layers(deep(), *patterns, bn_only=True) == expected
    assert set(selection.bn_layers) == expected
    assert set(selection.tensors) == {f"{layer}.{name}" for layer in expected for name in STATE}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("stem.bn.running_mean",), {"stem.bn.running_mean"}),
        (("head.fc.weight", "head.fc.bias"), {"head.fc.weight", "head.fc.bias"}),
        (("head.*.weight",), {"head.bn.weight", "head.fc.weight"}),
        (("stem.*.running_*",), {"stem.bn.running_mean", "stem.bn.running_var"}),
        (("stem.conv",), {"stem.conv.weight", "stem.conv.bias"}),
    ],
)
def test_a_pattern_may_name_tensors(patterns: tuple[str, ...], expected: set[str]) -> None:
    assert tensors(deep(), *patterns) == expected


def test_brackets_are_letters_of_a_name() -> None:
    model = nn.ModuleDict({"block[0]": nn.BatchNorm1d(2), "block0": nn.BatchNorm1d(2)})
    assert layers(model, "block[0]") == {"block[0]"}
    with pytest.raises(GateError, match="matches nothing"):
        layers(model, "block[01]")


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("layer1", BN - {"layer1.0.bn1", "layer1.1.bn1"}),
        (["layer1", "layer10"], {"stem.bn", "head.bn"}),
        ({"*.bn"}, {"layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"}),
        (("stem.bn",), BN - {"stem.bn"}),
    ],
)
def test_exclude_takes_a_name_or_several(exclude: object, left: set[str]) -> None:
    scope = Scope(exclude=option_names(exclude), bn_only=True)
    selection = select(deep(), scope)
    assert {watched.layer for watched in selection.tensors.values()} == left
    assert set(selection.bn_layers) == left


def test_excluding_a_tensor_leaves_its_layer_watched() -> None:
    scope = Scope(modules=("stem.bn",), exclude=("*.num_batches_tracked",), bn_only=True)
    selection = select(deep(), scope)
    left = {f"stem.bn.{name}" for name in STATE - {"num_batches_tracked"}}
    assert set(selection.tensors) == left
    assert set(selection.bn_layers) == {"stem.bn"}


NAMES = [*ModelNames.from_model(deep()).tensors]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A name of the model, or of one of its parents, with some letters made wild."""
    parts = draw(st.sampled_from(NAMES)).split(".")
    name = ".".join(parts[: draw(st.integers(1, len(parts)))])
    wild = draw(st.lists(st.sampled_from(["", "?", "*"]), min_size=len(name), max_size=len(name)))
    return "".join(w or letter for letter, w in zip(name, wild, strict=True))


@settings(deadline=None)
@given(patterns())
def test_what_a_pattern_watches_is_what_the_shell_would_match(pattern: str) -> None:
    expected = set()
    for name in NAMES:
        parts = name.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if any(fnmatchcase(candidate, pattern) for candidate in above):
            expected.add(name)
    assert tensors(deep(), pattern) == expected


def test_a_pattern_of_many_stars_does_not_take_forever() -> None:
    began = time.perf_counter()
    assert not covers("*x" * 8 + "!", "x" * 42)
    assert time.perf_counter() - began < 0.5


@settings(deadline=None)
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.sets(st.sampled_from(NAMES)))
def test_modules_and_exclude_together_are_a_difference(
    chosen: set[str], left_out: set[str]
) -> None:
    exclude = tuple(left_out & chosen)
    if chosen == set(exclude):
        with pytest.raises(GateError, match="leaves nothing to watch"):
            tensors(deep(), *chosen, exclude=exclude)
    else:
        assert tensors(deep(), *chosen, exclude=exclude) == chosen - left_out


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"parameters": False}, {"running_mean", "running_var", "num_batches_tracked"}),
        ({"buffers": False}, {"weight", "bias"}),
    ],
)
def test_parameters_and_buffers_can_be_left_out(options: dict[str, bool], kinds: set[str]) -> None:
    expected = {f"stem.bn.{name}" for name in kinds}
    assert tensors(deep(), "stem.bn", bn_only=True, **options) == expected


def test_buffers_that_are_not_saved_are_watched_too() -> None:
    model = nn.Module()
    model.register_buffer("cache", torch.zeros(2), persistent=False)
    assert tensors(model) == {"cache"}


class Fsdp(nn.Module):
    """Name its child as FullyShardedDataParallel does, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda module: torch.compile(module, backend="eager"),  # type: ignore[return-value]
    "checkpoint": checkpoint_wrapper,
    "FSDP": Fsdp,
    "DataParallel of compile": lambda m: nn.DataParallel(
        torch.compile(m, backend="eager")  # type: ignore[arg-type]
    ),
    "compile of FSDP": lambda m: torch.compile(Fsdp(m), backend="eager"),  # type: ignore[return-value]
}
PREFIXES = ("", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), AveragedModel], ids=[*WRAPPERS, "Averaged"])
@pytest.mark.parametrize("prefix", [*PREFIXES, "module._orig_mod."])
def test_wrapper_prefixes_match_with_and_without(
    wrap: Callable[[nn.Module], nn.Module], prefix: str
) -> None:
    selection = select(wrap(deep()), Scope(modules=(f"{prefix}layer1",), bn_only=True))
    assert set(selection.bn_layers) == {"layer1.0.bn1", "layer1.1.bn1"}
    assert all(watched.name.endswith(key) for key, watched in selection.tensors.items())
    assert len(selection.tensors) == 2 * len(STATE)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapper_prefix_may_be_written_where_there_is_no_wrapper(prefix: str) -> None:
    assert layers(deep(), f"{prefix}stem.bn") == {"stem.bn"}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("inside", ["", "_fsdp_wrapped_module.", "module."])
def test_a_wrapper_deep_in_the_model_does_not_change_its_names(
    wrap: Callable[[nn.Module], nn.Module], inside: str
) -> None:
    model = deep()
    model.layer1 = wrap(model.layer1)
    selection = select(model, Scope(modules=(f"layer1.{inside}0",), bn_only=True))
    assert set(selection.bn_layers) == {"layer1.0.bn1"}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_step_that_wraps_a_part_of_the_model_changes_nothing(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = deep().eval()
    with frozen_bn(model, "layer1"):
        model.layer1 = wrap(model.layer1)


def test_a_wrappers_own_buffer_is_watched_beside_its_models_of_that_name() -> None:
    model = nn.Module()
    model.register_buffer("n_averaged", torch.zeros(3))
    average = AveragedModel(model)
    selection = select(average, Scope())
    assert [watched.name for watched in selection.tensors.values()] == [
        "n_averaged",
        "module.n_averaged",
    ]
    with pytest.raises(FrozenStateChanged) as caught, frozen(average):
        average.module.n_averaged += 1
    assert caught.value.verdict.changed_tensors == ("module.n_averaged",)


class OwnChildCalledModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = deep().get_submodule("stem")
        self.other = deep().get_submodule("stem")


def test_a_users_own_child_called_module_is_no_wrapper() -> None:
    model = OwnChildCalledModule()
    assert layers(model, bn_only=True) == {"module.bn", "other.bn"}
    assert layers(model, "module", bn_only=True) == {"module.bn"}
    assert layers(model, "other", bn_only=True) == {"other.bn"}
    with pytest.raises(GateError, match="'bn' matches nothing"):
        layers(model, "bn")


def test_tied_modules_are_watched_under_every_name() -> None:
    model = nn.Module()
    model.first = nn.BatchNorm1d(2)
    model.second = model.first
    assert layers(model) == {"first", "second"}
    assert set(select(model, Scope(bn_only=True)).bn_layers) == {"first", "second"}


def test_tied_tensors_are_watched_under_every_name() -> None:
    model = nn.Module()
    model.embed, model.out = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    model.out.weight = model.embed.weight
    assert tensors(model) == {"embed.weight", "out.weight"}
    assert tensors(model, "out") == {"out.weight"}
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        model.embed.weight.data.add_(1)
    assert caught.value.verdict.changed_tensors == ("embed.weight", "out.weight")


class ByItsBuffers(nn.Module):
    """Look like FrozenBatchNorm2d: no base class of torch's, four buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(2))


class ByBuffersThatAreNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2),
        nn.BatchNorm2d(2),
        nn.BatchNorm3d(2),
        nn.SyncBatchNorm(2),
        nn.LazyBatchNorm1d(),
        nn.LazyBatchNorm2d(),
        nn.LazyBatchNorm3d(),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm2d(2, affine=False),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.InstanceNorm3d(2, track_running_stats=True),
        nn.LazyInstanceNorm1d(track_running_stats=True),
        type("Own", (nn.BatchNorm2d,), {})(2),
        ByItsBuffers(),
        ByBuffersThatAreNone(),
    ],
    ids=lambda layer: repr(layer).replace("\n", "")[:60],
)
def test_bn_layers_are_known_by_family_or_by_their_buffers(layer: nn.Module) -> None:
    assert is_bn_layer(layer)


class Whitening(nn.Module):
    """Keep its statistics under names that only its author knows, and in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("covariance", torch.eye(2))
        self.gain = nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.gain(batch @ self.covariance)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2),
        nn.InstanceNorm2d(2, affine=True),
        nn.LazyInstanceNorm2d(track_running_stats=False),
        nn.Linear(2, 2),
        nn.Sequential(nn.BatchNorm1d(2)),
        Whitening(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_no_bn_layers(layer: nn.Module) -> None:
    assert not is_bn_layer(layer)
    with pytest.raises(GateError):
        select(nn.Sequential(layer), Scope(modules=("0.weight",), bn_only=True))


class SpecialWhitening(Whitening):
    pass


@pytest.fixture
def named_types() -> Iterator[Callable[[list[str]], None]]:
    with ExitStack() as stack:
        yield lambda names: stack.enter_context(replaced(bn_layer_types=tuple(names)))
    assert not run_config.current.bn_layer_types


@pytest.mark.parametrize(
    "name", ["Whitening", f"{__name__}.Whitening", f"{__name__}:Whitening", "SpecialWhitening"]
)
def test_bn_layer_types_names_a_type_or_a_base_of_it(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    model = nn.Sequential(SpecialWhitening(), nn.Linear(2, 2))
    named_types(["Other", name])
    expected = {"0.covariance", "0.gain.weight", "0.gain.bias"}
    assert tensors(model, bn_only=True) == expected
    named_types([])
    assert not is_bn_layer(model[0])


@pytest.mark.parametrize("name", ["whitening", "White*", "torch.nn.BatchNorm1d", "Special"])
def test_bn_layer_types_takes_no_near_misses(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    named_types([name])
    assert not is_bn_layer(Whitening())


@pytest.mark.parametrize(
    "name", ["elsewhere.Whitening", "torch.nn:Whitening", "torch.nn.Whitening"]
)
def test_a_named_type_that_is_not_there_is_a_gate_error(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    named_types([name])
    with pytest.raises(GateError, match=f"{name!r} cannot be imported"):
        is_bn_layer(Whitening())


def test_parameters_of_bn_layers_that_have_none_are_nothing_to_watch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False))
    with (
        pytest.raises(GateError, match="BN layers have no such tensors"),
        frozen_bn(model, buffers=False),
    ):
        pass


def test_what_a_named_type_keeps_is_held_frozen(named_types: Callable[[list[str]], None]) -> None:
    named_types(["Whitening"])
    model = nn.Sequential(Whitening(), nn.Linear(2, 2))
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[0].covariance[0, 1] = 1e-20
    assert caught.value.verdict.changed_tensors == ("0.covariance",)
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[0].gain.weight.data[0, 1] += 1
    assert caught.value.verdict.changed_tensors == ("0.gain.weight",)


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_parametrized_bn_layers_state_is_watched_where_parametrize_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    parametrize.register_parametrization(model[1], "weight", Double())
    original = "1.parametrizations.weight.original"
    expected = {f"1.{name}" for name in STATE - {"weight"}} | {original}
    assert tensors(model, bn_only=True) == expected
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[1].parametrizations.weight.original.data.add_(1)
    assert caught.value.verdict.changed_tensors == (original,)


def test_a_parametrized_bn_layer_counts_as_one_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    parametrize.register_parametrization(model[1], "weight", Double())
    with (
        pytest.raises(FrozenStateChanged, match="1 of 1 frozen BN layer changed"),
        frozen_bn(model),
    ):
        model[1].running_mean += 1


@pytest.mark.parametrize(
    ("guard", "pattern", "there"),
    [
        (frozen_bn, "layer2", ["stem.bn", "layer1.0.bn1", "head.bn"]),
        (frozen_bn, "layer1.0.bn2", ["layer1.0.bn1"]),
        (frozen_bn, "STEM", ["stem.bn"]),
        (frozen_bn, "stem.b", ["stem.bn"]),
        (frozen_bn, "stem.bn.running_men", ["stem.bn"]),
        (frozen_bn, "bn1", ["layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"]),
        (frozen, "layer2", ["stem", "layer1", "layer10", "head"]),
        (frozen, "fc", ["head.fc"]),
        (frozen, "stem..bn", ["stem"]),
        (frozen, " stem", ["stem"]),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_with_what_there_is(
    guard: Callable[..., object], pattern: str, there: list[str]
) -> None:
    with pytest.raises(GateError) as caught, guard(deep(), "stem", pattern):  # type: ignore[attr-defined]
        raise AssertionError("the guard must not be entered")
    message = str(caught.value)
    assert f"{pattern!r} matches nothing in the model" in message
    assert all(repr(name) in message for name in there)


@pytest.mark.parametrize(
    ("guard", "pattern", "meant"),
    [
        (frozen_bn, "stem.bn.runing_var", "did you mean 'stem.bn.running_var' or"),
        (frozen, "head.fc.wieght", "did you mean 'head.fc.weight'? the"),
        (frozen_bn, "stem,layer1", "names are given one by one: 'stem', 'layer1'; the model's BN"),
        (frozen, "stem  head.fc.bias", "names are given one by one: 'stem', 'head.fc.bias'; the"),
        (frozen, "stem; layer*", "names are given one by one: 'stem', 'layer*'; the model's"),
        (frozen, "net.stem", "did you mean 'stem'"),
        (frozen, "net.head.fc", "did you mean 'head.fc'"),
    ],
)
def test_a_name_is_suggested_as_it_is_to_be_written(
    guard: Callable[..., object], pattern: str, meant: str
) -> None:
    with pytest.raises(GateError) as caught, guard(deep(), pattern):  # type: ignore[attr-defined]
        raise AssertionError("the guard must not be entered")
    assert f"{pattern!r} matches nothing in the model; {meant}" in str(caught.value)


def test_an_exclude_is_suggested_as_it_is_to_be_written() -> None:
    with pytest.raises(GateError, match=r"watched; did you mean 'stem\.bn\.running_var' or"):
        tensors(deep(), exclude=("stem.bn.runing_var",))
    with pytest.raises(GateError, match=r"watched; names are given one by one: 'stem', 'head'$"):
        tensors(deep(), exclude=("stem, head",))


@pytest.mark.parametrize(
    ("guard", "pattern", "problem"),
    [
        (frozen_bn, "stem.conv", "'stem.conv' holds no BN layer"),
        (frozen_bn, "head.fc.weight", "'head.fc.weight' holds no BN layer"),
    ],
)
def test_a_module_without_a_bn_layer_is_said_to_have_none(
    guard: Callable[..., object], pattern: str, problem: str
) -> None:
    with pytest.raises(GateError, match=problem), guard(deep(), pattern):  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"parameters": False}, "the model has no buffer"),
        ({}, "the model has no BN layer"),
        ({"buffers": False}, "the model has no BN layer"),
    ],
)
def test_a_model_with_nothing_to_watch_is_a_gate_error(
    options: dict[str, bool], problem: str
) -> None:
    guard = frozen if options == {"parameters": False} else frozen_bn
    with pytest.raises(GateError, match=problem), guard(nn.Linear(2, 2), **options):
        pass


def test_a_typo_is_named_also_where_the_bn_layers_hold_no_tensors() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False))
    with pytest.raises(GateError, match="'typo' matches nothing"), frozen_bn(model, "typo"):
        pass


def test_bn_layers_that_hold_no_tensors_are_not_said_to_be_missing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False))
    with pytest.raises(GateError) as caught, frozen_bn(model, allow_batch_stats=True):
        pass
    assert "the model has no BN layer" not in str(caught.value)


@pytest.mark.parametrize("exclude", ["layer2", "stem.conv", ["stem", "layer2"], ""])
def test_an_exclude_that_leaves_nothing_out_or_nothing_in_is_a_gate_error(exclude: object) -> None:
    scope = {"exclude": option_names(exclude), "bn_only": True}
    problem = "leaves nothing" if exclude == "" else "matches nothing that is watched"
    with pytest.raises(GateError, match=problem):
        tensors(deep(), **scope)


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize(
    ("modules", "options", "told"),
    [
        ((3,), {}, "got 3 (int)"),
        ((None,), {}, "got None (NoneType)"),
        ((nn.Linear(1, 1),), {}, "(Linear)"),
        ((["stem", "head"],), {}, "(list)"),
        ((b"stem",), {}, "(bytes)"),
        ((), {"exclude": 3}, "exclude= takes a name or several names; got 3 (int)"),
        ((), {"exclude": iter(["stem"])}, "exclude= takes a name or several names"),
        ((), {"exclude": None}, "exclude= takes a name or several names; got None"),
        ((), {"exclude": [3]}, "exclude= takes a name or several names; got 3"),
        ((), {"exclude": b"stem"}, "exclude= takes a name or several names"),
        ((), {"exclude": [["stem"]]}, "exclude= takes a name or several names"),
        ((), {"parameters": 1}, "parameters= takes True or False; got 1 (int)"),
        ((), {"buffers": None}, "buffers= takes True or False; got None"),
        ((), {"allow_batch_stats": "yes"}, "allow_batch_stats= takes True or False; got 'yes'"),
        ((), {"parameters": torch.tensor(True)}, "parameters= takes True or False"),
        ((), {"parameters": False, "buffers": False}, "leave nothing to watch"),
    ],
)
def test_an_option_of_the_wrong_type_is_a_gate_error(
    guard: Callable[..., object],
    modules: tuple[object, ...],
    options: dict[str, object],
    told: str,
) -> None:
    with pytest.raises(GateError) as caught:
        guard(deep(), *modules, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "net", [nn.Linear(1, 1)], nn.Linear, {"a": 1}])
@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_what_is_no_model_is_a_gate_error(guard: Callable[..., object], model: object) -> None:
    with pytest.raises(GateError, match="takes the model") as caught:
        guard(model, "stem")
    assert f"({type(model).__name__})" in str(caught.value)


def test_an_unknown_option_is_an_error_of_the_gate() -> None:
    with pytest.raises(GateError):
        frozen(deep(), excluded="stem")  # type: ignore[call-arg]


def test_a_module_that_is_below_itself_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)))
    model[0].parent = model
    with pytest.raises(GateError, match=r"'0.parent' \(Sequential\) holds itself"):
        select(model, Scope())


def test_a_model_of_many_modules_is_not_taken_for_one_that_is_below_itself() -> None:
    shared = nn.Sequential(*[nn.Identity()] * 200)
    model = nn.Sequential(*[shared] * 200, nn.BatchNorm1d(2))
    assert len(select(model, Scope()).names.modules) == 1 + 200 * 201 + 1
