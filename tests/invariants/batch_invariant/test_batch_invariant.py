"""batch_invariant: in eval a sample's output does not depend on its batch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, batch_invariant


def failure_text(module: nn.Module, inputs: Any, **options: Any) -> str:
    with pytest.raises(InvariantBroken) as caught:
        batch_invariant(module, inputs, **options)
    return " ".join(str(caught.value).split())


def images(samples: int, size: int = 8) -> Tensor:
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(0))


def cnn(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def ready(model: nn.Module) -> nn.Module:
    model(images(4))
    return model


def test_a_model_with_running_statistics_holds_whatever_its_mode() -> None:
    model = ready(cnn()).train()
    verdict = batch_invariant(model, images(6))
    assert verdict.holds
    assert model.training


@pytest.mark.parametrize("samples", [2, 8, 256])
def test_a_layer_without_running_statistics_is_named_and_the_batch_is_shrunk(samples: int) -> None:
    told = failure_text(ready(cnn(track_running_stats=False)), images(samples))
    assert told.startswith("1 of 1 output depends on the batch: output (no-stored-statistics)")
    assert "sample 0 alone has" in told
    assert f"in the batch of {samples} it is" in told
    assert "apart in float64, where rounding explains" in told
    assert "why no-stored-statistics: 1 has no running statistics" in told


def test_a_batch_of_one_that_raises_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    assert "sample 0 alone: ValueError: Expected more than 1 value" in failure_text(
        net, torch.randn(8, 4)
    )
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    assert batch_invariant(net, torch.randn(8, 4)).layers == 1


class AlwaysTraining(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True
        )


class StaysInTraining(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (AlwaysTraining, "update-in-eval: 1 normalised with batch statistics although it was in"),
        (StaysInTraining, "training-mode: 1 was in training mode although the model was put in"),
    ],
)
def test_a_layer_that_normalises_with_batch_statistics_in_eval_is_named(
    layer: type[nn.BatchNorm2d], cause: str
) -> None:
    told = failure_text(nn.Sequential(nn.Conv2d(3, 4, 3), layer(4)), images(4))
    assert cause in told


class Mixing(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * x.mean(0)


def test_what_else_mixes_samples_is_found_even_below_the_rounding_of_its_dtype() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Mixing(1e-8)))
    told = failure_text(net, torch.randn(8, 4))
    assert "samples are first mixed in 1.1 (Mixing)" in told
    assert "apart in float64" in told


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float64, {}), (torch.float64, {"atol": 1e-6}), (torch.float32, {"rtol": 1e-3})],
)
def test_the_place_where_samples_mix_is_named_with_every_tolerance(
    dtype: torch.dtype, options: dict[str, float]
) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=0), nn.Linear(4, 2)).to(dtype)
    told = failure_text(net, torch.randn(8, 4).to(dtype), **options)
    assert "samples are first mixed in 1 (Softmax)" in told


class OnlyFloat32(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return super().forward(x)


def test_a_module_that_cannot_run_in_float64_names_the_place_in_its_own_dtype() -> None:
    net = nn.Sequential(OnlyFloat32(4, 4), nn.Softmax(dim=0))
    told = failure_text(net, torch.randn(8, 4), rtol=1e-3)
    assert "samples are first mixed in 1 (Softmax)" in told


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dependence_is_found_in_every_dtype(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Mixing(1e-3)).to(dtype)
    batch = torch.randn(8, 4).to(dtype)
    assert "depends on the batch" in failure_text(net, batch)
    assert batch_invariant(net[0], batch).layers == 1


def test_attention_over_the_batch_for_want_of_batch_first_is_found() -> None:
    batch = (torch.randn(5, 3, 8),) * 3
    told = failure_text(nn.MultiheadAttention(8, 2), batch)
    assert told.startswith("1 of 1 output depends on the batch: output[0]")
    assert "samples are first mixed in MultiheadAttention's own forward" in told
    assert batch_invariant(nn.MultiheadAttention(8, 2, batch_first=True), batch).layers == 2


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4)])
def test_norms_that_look_at_one_sample_hold(norm: nn.Module) -> None:
    assert batch_invariant(nn.Sequential(nn.Conv2d(3, 4, 3), norm), images(5)).holds


def test_a_subtree_is_judged_by_its_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Mixing(1e-3))
    batch = torch.randn(8, 4)
    assert batch_invariant(net, batch, modules="0").holds
    assert failure_text(net, batch, modules=["0", "1"]).startswith(
        "1 of 2 outputs depends on the batch: 1"
    )


class ByPosition(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1.0, len(x) + 1)[:, None]


def test_an_output_that_depends_on_the_order_is_shrunk_to_one_sample_out_of_place() -> None:
    told = failure_text(ByPosition(), torch.randn(5, 3))
    assert re.search(r"sample 1 alone has|a batch of 2 \(samples 1, 0\)", told), told


class OnlyInWideBatches(nn.Module):
    """A kernel that goes wrong in its own dtype alone, for batches of a size."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.5 if len(x) == 2 and x.dtype == torch.float32 else 1.0)


def test_a_kernel_that_is_wrong_for_a_batch_size_in_its_own_dtype_is_found() -> None:
    told = failure_text(OnlyInWideBatches(), torch.randn(5, 3))
    assert "apart in float32" in told
    assert "a batch of 2 (samples" in told


class ComputesInFloat32(nn.Module):
    """Normalise in float32, as many transformers do whatever their dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).float()
        zero = torch.zeros(64, dtype=torch.float32)
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) + zero).to(x.dtype)


def test_code_that_asks_for_float32_is_run_in_float64_all_the_same() -> None:
    verdict = batch_invariant(ComputesInFloat32(), torch.randn(16, 64), examples=50)
    assert verdict.holds


def test_the_verdict_says_how_near_to_the_bounds_it_came() -> None:
    (note,) = batch_invariant(ready(cnn()), images(4)).notes
    found = re.fullmatch(
        r"(\d+) batches compared; the largest error, as a share of its bound: "
        r"(\S+) in float64, (\S+) in float32",
        note,
    )
    assert found, note
    assert int(found[1]) >= 20
    assert all(float(error) < 0.5 for error in found.groups()[1:])


def test_a_users_tolerance_takes_the_place_of_bounds() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Mixing(1e-3))
    batch = torch.randn(8, 4)
    assert batch_invariant(net, batch, atol=1e-2).layers == 1
    assert "apart in float32" in failure_text(net, batch, atol=1e-5)


class OffAlone(nn.Module):
    """Give a sample alone another output: 1 and a 64th, where a batch has 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * (1 + (len(x) == 1) / 64)


@pytest.mark.parametrize("option", ["rtol", "atol"])
def test_an_error_just_within_a_users_tolerance_holds_and_one_just_beyond_breaks(
    option: str,
) -> None:
    batch = torch.tensor([[1.0], [-1.0], [2.0]])
    assert batch_invariant(OffAlone(), batch, **{option: 1 / 63}).layers == 1
    assert "apart in float32" in failure_text(OffAlone(), batch, **{option: 1 / 65})


def test_what_a_float64_module_may_round_is_measured_by_its_run_in_float32() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Mixing(1e-10)).double()
    assert "apart in float64" in failure_text(net, torch.randn(8, 4).double())
    net[1].size = 1e-18
    assert batch_invariant(net, torch.randn(8, 4).double()).layers == 1


def test_inputs_may_be_passed_by_position_or_by_name() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor | None = None) -> dict[str, Any]:
            return {"y": x if scale is None else x * scale, "loss": x.sum()}

    x, scale = torch.randn(4, 3), torch.randn(4, 1)
    assert batch_invariant(Two(), (x,)).layers == 1
    verdict = batch_invariant(Two(), {"x": x, "scale": scale})
    assert "not compared: output['loss']" in verdict.notes[0]


@pytest.mark.parametrize(
    ("module", "inputs", "options", "message"),
    [
        (nn.Linear(3, 3), torch.randn(1, 3), {}, "one sample has no batch mates"),
        (nn.Linear(3, 3), torch.ones(4, 3), {}, "all 4 samples are equal"),
        (nn.Linear(3, 3), "images", {}, "no tensor in the inputs: 'images'"),
        (nn.Linear(3, 3), (torch.ones(4, 3), torch.ones(2, 3)), {}, r"inputs\[1\] \(2, 3\)"),
        (
            nn.Linear(3, 3),
            torch.randn(4, 3),
            {"examples": 0},
            "examples= takes a whole number >= 1",
        ),
        (nn.Linear(3, 3), torch.randn(4, 3), {"atol": "x"}, "atol= takes a number >= 0"),
        (nn.Linear(3, 3), torch.randn(4, 2), {}, "Linear in eval raised on the whole batch"),
        (nn.Flatten(0), torch.randn(4, 3), {}, "no output has a row for each of the 4 samples"),
        (Mixing(0.0).register_buffer, torch.randn(4, 3), {}, "takes the model, a torch.nn.Module"),
    ],
)
def test_what_cannot_be_judged_is_named(
    module: Any, inputs: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        batch_invariant(module, inputs, **options)


def test_an_output_that_is_the_same_for_all_samples_cannot_be_judged() -> None:
    head = nn.Linear(3, 3)
    nn.init.zeros_(head.weight)
    with pytest.raises(GateError, match="the output is the same for all 4 samples"):
        batch_invariant(head, torch.randn(4, 3))


def test_random_numbers_in_eval_cannot_be_judged() -> None:
    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x)

    with pytest.raises(GateError, match="two runs in eval in a row"):
        batch_invariant(Forgetful(), torch.randn(8, 3))


def test_a_module_that_cannot_run_in_float64_needs_a_tolerance() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return x * 2

    with pytest.raises(GateError, match=r"cannot be run in float64.*give rtol= or"):
        batch_invariant(Single(), torch.randn(4, 3))
    assert batch_invariant(Single(), torch.randn(4, 3), rtol=1e-6).holds


def test_everything_is_left_as_it_was() -> None:
    model = ready(cnn()).train()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert batch_invariant(model, images(4)).layers == 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_default_dtype() == torch.float32


def models() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    def resnet18() -> tuple[nn.Module, Any]:
        torchvision = pytest.importorskip("torchvision")
        return torchvision.models.resnet18(num_classes=4), images(4, 32)

    def convnext() -> tuple[nn.Module, Any]:
        return pytest.importorskip("timm").create_model("test_convnext"), images(3, 32)

    def bert() -> tuple[nn.Module, Any]:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 50}
        config = transformers.BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
        words = torch.randint(0, 50, (5, 7), generator=torch.Generator().manual_seed(0))
        return transformers.BertModel(config), {"input_ids": words}

    def llama() -> tuple[nn.Module, Any]:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 32, "intermediate_size": 16, "vocab_size": 50}
        config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
        words = torch.randint(0, 50, (5, 7), generator=torch.Generator().manual_seed(0))
        return transformers.LlamaModel(config).bfloat16(), {"input_ids": words}

    def lstm() -> tuple[nn.Module, Any]:
        return nn.LSTM(4, 5, batch_first=True), torch.randn(5, 6, 4)

    return {f.__name__: f for f in (resnet18, convnext, bert, llama, lstm)}


@pytest.mark.parametrize("name", models())
def test_real_models_hold_far_within_the_bounds(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = models()[name]()
    note = batch_invariant(model, inputs, examples=5).notes[-1]
    errors = [float(error) for error in re.findall(r"(\S+) in \w+\d", note)]
    assert len(errors) == 2
    assert max(errors) < 0.5, note
