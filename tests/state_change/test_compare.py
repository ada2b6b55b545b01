"""What is a violation, and what is only worth saying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen, frozen_bn

BATCH = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(3))


class Pair(nn.Module):
    """A BN layer of a test's choice, and something else that can run."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn
        mean = getattr(bn, "running_mean", None)
        if mean is not None and not is_lazy(mean):
            mean.fill_(0.25)  # statistics of a new layer are a hazard of their own
        self.other = nn.Linear(5, 5)

    def forward(self, batch: Tensor) -> Tensor:
        return self.other(self.bn(batch))


def judged(
    model: nn.Module,
    step: Callable[[Any], object],
    *modules: str,
    guard: Any = frozen_bn,
    **options: Any,
) -> Verdict:
    """Return the verdict on a step, whether it holds or not."""
    made = guard(model, *modules, **options)
    raised = False
    try:
        with made:
            step(model)
    except FrozenStateChanged:
        raised = True
    assert made.verdict is not None
    assert made.verdict.holds != raised
    return made.verdict


def run(model: nn.Module) -> None:
    model(BATCH)


def found(verdict: Verdict) -> set[tuple[str, str]]:
    return {(change.name, change.kind) for change in verdict.changes}


def said(verdict: Verdict) -> dict[str, str]:
    return {hazard.name: hazard.text for hazard in verdict.hazards}


FAMILY: dict[str, Callable[..., Any]] = {
    "BatchNorm1d": nn.BatchNorm1d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "InstanceNorm1d": nn.InstanceNorm1d,
    "LazyBatchNorm1d": lambda n, **options: _initialised(nn.LazyBatchNorm1d(**options)),
}


def _initialised(layer: nn.Module) -> nn.Module:
    layer(BATCH)
    return layer


class OwnForward(nn.BatchNorm1d):
    """Do as torch does, in code of its own."""

    def forward(self, batch: Tensor) -> Tensor:
        batch_statistics = self.training or self.running_mean is None
        return F.batch_norm(
            batch,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            batch_statistics,
            self.momentum or 0.0,
            self.eps,
        )


class ByKeyword(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(
            batch, self.running_mean, self.running_var, training=self.training, momentum=0.0
        )


class Frozen(nn.BatchNorm1d):
    """Normalise with stored statistics whatever the mode is."""

    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(batch, self.running_mean, self.running_var, training=False)


class NeverStored(nn.BatchNorm1d):
    """Normalise with batch statistics whatever the mode is."""

    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(batch, None, None, training=True)


class FrozenByBuffers(nn.Module):
    """Normalise in the way of FrozenBatchNorm2d, without a call of torch.batch_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch - self.running_mean[:, None]) * self.running_var[:, None].rsqrt()


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, FAMILY["LazyBatchNorm1d"], OwnForward])
def test_running_in_training_mode_moves_the_statistics(
    layer: Callable[..., Any], guard: Any
) -> None:
    verdict = judged(Pair(layer(2)).train(), run, guard=guard)
    expected = {("bn.running_mean", "values"), ("bn.running_var", "values")}
    if layer is not OwnForward:  # which does not count
        expected.add(("bn.num_batches_tracked", "values"))
    assert found(verdict) == expected


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize(
    "layer", [*FAMILY.values(), OwnForward, Frozen, lambda _: FrozenByBuffers()]
)
def test_running_in_eval_changes_nothing(layer: Callable[..., Any], guard: Any) -> None:
    bn = layer(2, track_running_stats=True) if layer is nn.InstanceNorm1d else layer(2)
    assert not judged(Pair(bn).eval(), run, guard=guard).hazards


@pytest.mark.parametrize("layer", [Frozen(2), FrozenByBuffers()])
def test_a_layer_that_uses_stored_statistics_in_training_mode_is_fine(layer: nn.Module) -> None:
    assert judged(Pair(layer).train(), run).holds


BATCH_STATISTICS = {("bn", "batch-statistics")}


@pytest.mark.parametrize(
    ("bn", "training", "batches"),
    [
        (nn.BatchNorm1d(2, momentum=0.0), True, 2),
        (OwnForward(2, momentum=0.0), True, 2),
        (ByKeyword(2), True, 2),
        (nn.BatchNorm1d(2, track_running_stats=False), True, 2),
        (nn.BatchNorm1d(2, track_running_stats=False), False, 2),
        (nn.BatchNorm1d(2, affine=False, track_running_stats=False), False, 2),
        (NeverStored(2), False, 2),
        (NeverStored(2), True, 2),
        (nn.InstanceNorm1d(2, track_running_stats=True, momentum=0.0), True, 2),
    ],
    ids=repr,
)
def test_batch_statistics_are_a_violation_though_no_bit_changed(
    bn: nn.Module, training: bool, batches: int
) -> None:
    def step(model: nn.Module) -> None:
        for _ in range(batches):
            run(model)

    exclude = [name for name, _ in bn.named_buffers(prefix="bn") if name.endswith("tracked")]
    verdict = judged(Pair(bn).train(training), step, exclude=exclude)
    assert found(verdict) == BATCH_STATISTICS
    assert verdict.changes[0].text == f"normalised {batches} batches with batch statistics"
    if len(bn.state_dict()) > len(exclude):
        assert judged(Pair(bn), step, exclude=exclude, allow_batch_stats=True).holds
    if list(bn.parameters()):
        assert judged(Pair(bn), step, buffers=False).holds


def test_a_layer_whose_buffers_were_taken_away_uses_batch_statistics() -> None:
    bn = nn.BatchNorm1d(2)
    bn.running_mean = bn.running_var = None
    verdict = judged(Pair(bn).eval(), run)
    assert found(verdict) == BATCH_STATISTICS


def test_tracking_switched_off_makes_training_mode_a_violation_though_no_bit_changed() -> None:
    model = Pair(nn.BatchNorm1d(2)).train()
    model.bn.track_running_stats = False
    assert found(judged(model, run)) == BATCH_STATISTICS


def test_an_instance_norm_whose_tracking_the_step_switches_off_uses_batch_statistics() -> None:
    def step(model: Pair) -> None:
        model.bn.track_running_stats = False
        run(model)

    model = Pair(nn.InstanceNorm1d(2, track_running_stats=True)).eval()
    assert {name for name, _ in found(judged(model, step))} == {"bn.running_mean", "bn.running_var"}
    model = Pair(nn.InstanceNorm1d(2, track_running_stats=True, momentum=0.0)).eval()
    assert found(judged(model, step)) == BATCH_STATISTICS


def test_one_batch_is_said_in_the_singular() -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2, track_running_stats=False)), run)
    assert verdict.changes[0].text == "normalised 1 batch with batch statistics"


def test_batch_statistics_are_not_said_twice_where_the_statistics_moved() -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2)).train(), run)
    assert not any(change.kind == "batch-statistics" for change in verdict.changes)


def test_batch_statistics_may_be_allowed_while_the_state_is_watched() -> None:
    model = Pair(nn.BatchNorm1d(2)).train()
    verdict = judged(model, run, allow_batch_stats=True)
    assert {name for name, _ in found(verdict)} == {
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    }


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_only_the_watched_layers_may_not_use_batch_statistics(guard: Any) -> None:
    model = nn.Sequential(Pair(nn.BatchNorm1d(2)).eval(), nn.BatchNorm1d(2).train())
    assert judged(model, run, "0", guard=guard).holds
    assert judged(model, run, exclude="1", guard=guard).holds
    assert not judged(model, run, "1", guard=guard).holds


def test_a_mode_that_a_forward_pre_hook_sets_is_the_one_that_counts() -> None:
    def to_eval(module: nn.Module, _: object) -> None:
        module.eval()

    model = Pair(nn.BatchNorm1d(2)).train()
    model.bn.register_forward_pre_hook(to_eval)
    assert judged(model, run).holds


def test_a_pre_hook_that_puts_a_layer_in_training_mode_is_seen_through() -> None:
    def to_train(module: nn.Module, _: object) -> None:
        module.train()

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    model.bn.register_forward_pre_hook(to_train)
    verdict = judged(model, run, exclude="bn.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


def test_a_layer_that_is_put_in_training_mode_and_back_is_found_by_what_it_did() -> None:
    def step(model: Pair) -> None:
        model.train()
        run(model)
        model.eval()

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    verdict = judged(model, step, exclude="*.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


def test_putting_a_layer_in_training_mode_and_back_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.train()
        model.eval()
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step).holds


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize("options", [{}, {"buffers": False}, {"parameters": False}])
def test_another_eps_is_a_violation(guard: Any, options: dict[str, bool]) -> None:
    def step(model: Pair) -> None:
        model.bn.eps = 1e-3
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=guard, **options)
    assert found(verdict) == {("bn", "eps")}
    assert verdict.changes[0].text == "eps 1e-05 -> 0.001"
    assert verdict.changed_tensors == ()
    assert verdict.changed_layers == ("bn",)
    (cause,) = verdict.causes
    assert (cause.name, cause.layers, cause.tensors) == ("eps-set", ("bn",), ())
    assert cause.why == "eps of bn was set; every output depends on it, in eval too"
    assert "before the guarded step" in cause.fix


def test_an_eps_that_is_put_back_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.bn.eps = 1e-3
        model.bn.eps = 1e-5
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step).holds


def test_eps_of_a_bn_layer_by_its_buffers_is_watched() -> None:
    model = Pair(FrozenByBuffers())
    model.bn.eps = 1e-5
    verdict = judged(model, lambda m: setattr(m.bn, "eps", 2e-5))
    assert found(verdict) == {("bn", "eps")}


def test_eps_of_what_is_no_bn_layer_is_not_watched() -> None:
    def step(model: Any) -> None:
        model[0].eps = 1e-3
        run(model)

    assert judged(nn.Sequential(nn.LayerNorm(5)), step, guard=frozen).holds


def test_an_equal_tensor_that_took_the_name_is_a_hazard() -> None:
    def step(model: Pair) -> None:
        model.bn.weight = nn.Parameter(model.bn.weight.detach().clone())
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert said(verdict) == {
        "bn.weight": "is another tensor now, with equal values; an optimizer may hold the old one"
    }


def test_a_parameter_that_became_a_buffer_is_a_hazard() -> None:
    def step(model: Pair) -> None:
        weight = model.bn.weight.detach()
        del model.bn.weight
        model.bn.register_buffer("weight", weight)
        mean = model.bn.running_mean
        del model.bn.running_mean
        model.bn.register_parameter("running_mean", nn.Parameter(mean, requires_grad=False))
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=frozen)
    assert "was a parameter and is a buffer" in said(verdict)["bn.weight"]
    assert "was a buffer and is a parameter" in said(verdict)["bn.running_mean"]


def test_an_equal_module_that_took_the_name_is_a_hazard_for_each_of_its_tensors() -> None:
    def step(model: Pair) -> None:
        new = nn.BatchNorm1d(2).eval()
        new.load_state_dict(model.bn.state_dict())
        model.bn = new
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert set(said(verdict)) == {f"bn.{name}" for name in nn.BatchNorm1d(2).state_dict()}


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_converting_to_sync_batch_norm_inside_the_step_is_a_hazard(guard: Any) -> None:
    def step(model: Pair) -> None:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    verdict = judged(model, step, guard=guard)
    assert isinstance(model.bn, nn.SyncBatchNorm)
    assert said(verdict)["bn"] == "was BatchNorm1d and is SyncBatchNorm now"


def test_a_converted_layer_that_lost_its_mode_is_found() -> None:
    def step(model: Pair) -> None:
        fresh = OwnForward(2, momentum=0.0)
        fresh.load_state_dict(model.bn.state_dict())
        model.bn = fresh
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert found(verdict) == BATCH_STATISTICS


def test_what_the_old_module_did_before_it_was_replaced_counts() -> None:
    def step(model: Pair) -> None:
        model.bn.train()
        run(model)
        new = nn.BatchNorm1d(2).eval()
        new.running_mean.copy_(model.bn.running_mean)
        model.bn = new
        run(model)

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    verdict = judged(model, step, exclude="bn.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("momentum", 0.5, "momentum 0.1 -> 0.5"),
        ("momentum", None, "momentum 0.1 -> None"),
        ("track_running_stats", False, "track_running_stats True -> False"),
    ],
)
def test_a_setting_that_was_switched_is_a_hazard(attribute: str, value: object, text: str) -> None:
    def step(model: Pair) -> None:
        setattr(model.bn, attribute, value)
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert said(verdict) == {"bn": text}


def test_requires_grad_switched_on_is_a_hazard_and_switched_off_is_not() -> None:
    def step(model: Pair) -> None:
        model.bn.weight.requires_grad_(True)
        model.bn.bias.requires_grad_(False)
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    model.bn.weight.requires_grad_(False)
    assert said(judged(model, step)) == {"bn.weight": "had requires_grad switched on"}


def test_a_step_that_freezes_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.requires_grad_(False).eval()
        run(model)

    assert not judged(Pair(nn.BatchNorm1d(2)).train(), step, guard=frozen).hazards


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (lambda m: m.half(), {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}),
        (lambda m: m.bn.double(), {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}),
    ],
)
def test_a_cast_is_a_violation(step: Callable[[Any], object], names: set[str]) -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert found(verdict) == {(name, "dtype") for name in names}


def test_a_cast_there_and_back_is_no_violation_where_no_bit_is_lost() -> None:
    def step(model: Pair) -> None:
        model.double().float()
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=frozen).holds


@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        (lambda m: delattr(m, "bn"), {"gone"}),
        (lambda m: setattr(m, "bn", nn.Identity()), {"gone"}),
        (lambda m: setattr(m, "bn", nn.BatchNorm1d(3)), {"shape"}),
        (lambda m: delattr(m.bn, "bias"), {"gone"}),
        (lambda m: setattr(m, "bn2", nn.BatchNorm1d(2)), {"new"}),
        (lambda m: m.bn.register_buffer("extra", torch.zeros(1)), {"new"}),
    ],
)
def test_names_that_are_gone_new_or_of_another_shape_are_violations(
    step: Callable[[Any], object], kinds: set[str]
) -> None:
    assert {kind for _, kind in found(judged(Pair(nn.BatchNorm1d(2)).eval(), step))} == kinds


def test_what_is_new_elsewhere_is_none_of_the_guards_business() -> None:
    def step(model: Pair) -> None:
        model.extra = nn.BatchNorm1d(2)
        model.other.register_buffer("extra", torch.zeros(1))
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step, "bn").holds


def test_a_name_that_was_there_but_not_watched_is_not_new() -> None:
    def step(model: Pair) -> None:
        model.bn = model.bn
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    assert judged(model, step, buffers=False).holds


def test_changes_come_in_the_models_order() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(5, 5), nn.BatchNorm1d(2))

    def step(model: Any) -> None:
        model[2].eps = 1.0
        model[2].weight.data.add_(1)
        model[1].weight.data.add_(1)
        model[0].eps = 1.0

    verdict = judged(model.eval(), step, guard=frozen)
    assert verdict.changed_layers == ("0", "1", "2")


def test_layers_and_tensors_are_counted() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(5, 5), nn.BatchNorm1d(2)).eval()
    verdict = judged(model, run, guard=frozen)
    assert (verdict.layers, verdict.tensors) == (3, 12)
    verdict = judged(model, run)
    assert (verdict.layers, verdict.tensors) == (2, 10)
    verdict = judged(model, run, "0", parameters=False)
    assert (verdict.layers, verdict.tensors) == (1, 3)


COMPILED: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "in place": lambda m: (m.compile(backend="eager"), m)[1],
    "function": lambda m: torch.compile(lambda batch: m(batch), backend="eager"),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("bn", [nn.BatchNorm1d, OwnForward])
def test_compiled_code_is_judged_by_what_it_did(
    compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]],
    warm: bool,
    bn: Callable[[int], nn.Module],
) -> None:
    for training in (False, True):
        torch._dynamo.reset()
        model = Pair(bn(2)).train(training)
        forward = compiled(model)
        if warm:
            forward(BATCH)
        verdict = judged(model, lambda _, f=forward: f(BATCH))
        assert verdict.holds != training


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_compiled_module_without_stored_statistics_is_found(compiled: str, warm: bool) -> None:
    model = Pair(nn.BatchNorm1d(2, track_running_stats=False)).eval()
    forward = COMPILED[compiled](model)
    if warm:
        forward(BATCH)
    verdict = judged(model, lambda _: forward(BATCH))
    assert found(verdict) == BATCH_STATISTICS


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_compiled_part_beside_eager_ones_is_judged_by_its_mode(
    compiled: str, alone: bool, training: bool
) -> None:
    kept = nn.BatchNorm1d(2, momentum=0.0)  # only its mode tells that it normalised
    kept.num_batches_tracked = None
    part: Any = COMPILED[compiled](kept if alone else nn.Sequential(kept))
    model = nn.Sequential(part, nn.BatchNorm1d(2)).eval()
    for mode in (True, False, training):
        kept.train(mode)
        model(BATCH)
    verdict = judged(model, lambda _: model(BATCH))
    assert verdict.holds != training
    assert [change.kind for change in verdict.changes] == ["batch-statistics"] * training


class WithUnusedLayer(Pair):
    """Hold a layer that its forward leaves out, such as an auxiliary head."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(2))
        self.unused = nn.BatchNorm1d(2)


@pytest.mark.parametrize("compiled", ["torch.compile", "in place"])
def test_a_layer_that_compiled_code_leaves_out_is_no_violation(compiled: str) -> None:
    model = WithUnusedLayer().train()
    forward = COMPILED[compiled](model)
    assert judged(model, lambda _: forward(BATCH), "unused").holds


def test_a_compiled_wrapper_itself_can_be_watched() -> None:
    model = torch.compile(Pair(nn.BatchNorm1d(2)), backend="eager")
    assert not judged(model, run).holds  # type: ignore[arg-type]
    model.eval()
    assert judged(model, run, "bn").holds  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_models_statistics_are_watched() -> None:
    model = torch.jit.script(Pair(nn.BatchNorm1d(2)))
    assert judged(model.eval(), run).holds
    verdict = judged(model.train(), run)
    assert {name for name, _ in found(verdict)} >= {"bn.running_mean", "bn.running_var"}


@pytest.mark.filterwarnings("ignore")
def test_a_traced_models_statistics_are_watched() -> None:
    model = torch.jit.trace(Pair(nn.BatchNorm1d(2)).train(), (BATCH,))
    verdict = judged(model.eval(), run)
    assert {name for name, _ in found(verdict)} >= {"bn.running_mean", "bn.running_var"}


def test_the_state_of_a_parametrized_layer_that_is_the_model_itself() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    model = nn.BatchNorm1d(3).eval()
    parametrize.register_parametrization(model, "weight", Same())
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model), torch.no_grad():
        model.parametrizations.weight.original.add_(1)
    (change,) = caught.value.verdict.changes
    assert change.name == "parametrizations.weight.original"


def test_an_expanded_parameter_in_an_optimizer_of_ones_own() -> None:
    class Mine(torch.optim.SGD):
        pass

    model = nn.Linear(3, 1)
    model.register_parameter("at", nn.Parameter(torch.zeros(1).expand(16), requires_grad=False))
    optimizer = Mine(model.parameters(), 0.1)
    with frozen(model, "at"):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
