"""Arguments are kept as they were, and a module gets copies of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_bninvariants.evaluation.call_arguments import CallArguments


class Doubling(nn.Module):
    """Write to its input."""

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return x.mul_(2 * scale)


def test_a_module_that_writes_to_its_input_gets_the_same_twice() -> None:
    given = torch.ones(2)
    arguments = CallArguments.copy_of((given,), {"scale": 1.0})
    given.zero_()
    assert arguments.run_twice(Doubling(), Tensor.tolist) == ([2.0, 2.0], [2.0, 2.0])


def test_each_tensor_is_mapped_and_nothing_else() -> None:
    arguments = CallArguments.copy_of(([torch.ones(1)],), {"x": torch.zeros(1), "n": 3})
    doubled = arguments.map(lambda tensor: tensor + 1)
    assert doubled.args == ([torch.tensor([2.0])],)
    assert doubled.kwargs == {"x": torch.tensor([1.0]), "n": 3}
