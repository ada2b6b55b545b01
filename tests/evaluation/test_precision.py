"""Code computes in one dtype, whatever it casts to itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError
from pytest_bninvariants.evaluation.precision import CastModule, computing_in


@pytest.mark.parametrize(
    "cast",
    [Tensor.float, Tensor.half, lambda x: x.to(torch.float32), lambda x: x.type(torch.bfloat16)],
)
def test_a_cast_to_another_float_is_replaced(cast: object) -> None:
    with computing_in(torch.float64):
        assert cast(torch.ones(1)).dtype == torch.float64  # type: ignore[operator]


def test_a_cast_to_an_integer_is_left_alone() -> None:
    with computing_in(torch.float64):
        assert torch.ones(1).to(torch.int32).dtype == torch.int32


def test_the_default_dtype_is_put_back_after_an_error() -> None:
    def compute() -> None:
        with computing_in(torch.float64):
            raise TypeError(str(torch.get_default_dtype()))

    with pytest.raises(TypeError, match=r"torch\.float64"):
        compute()
    assert torch.get_default_dtype() == torch.float32


def test_a_cast_module_is_a_copy_that_takes_inputs_of_any_dtype() -> None:
    layer = nn.Linear(2, 2)
    wide = CastModule(layer, torch.float64)
    x = torch.randn(3, 2)
    assert wide(x).dtype == torch.float64
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(wide(x).float(), layer(x))


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("one of a kind")

    with pytest.raises(GateError, match=r"Stubborn cannot be copied and cast .* one of a kind"):
        CastModule(Stubborn(), torch.float64)
