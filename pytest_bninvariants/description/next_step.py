"""What a layer would do in the next step: one forward in its mode, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pytest_bninvariants.description.holdings import Holdings
from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    has_stored_statistics,
    holds_weight_as_buffer,
    is_bn_layer,
    uses_batch_statistics,
)


def next_step(layer: nn.Module, holdings: Holdings, *, is_to_train: bool) -> str:
    """Return what a layer would do in the next step, as the end of a sentence about it.

    Args:
        layer: the layer.
        holdings: what the optimizers hold.
        is_to_train: whether a parameter of the layer, or of what is around it, asks for a gradient.
    """
    statistics = _statistics(layer) if is_bn_layer(layer) else ""
    if not is_to_train and not _moved_by_old_gradients(layer, holdings):
        if not statistics.startswith("updates"):
            return statistics.replace("keeps its statistics", "stays as it is") or "stays as it is"
        return f"{statistics}, though frozen"
    return ", and ".join(filter(None, [_parameters(layer, holdings), statistics]))


def _statistics(layer: nn.Module) -> str:
    """Return what the layer's next forward would do to its running statistics."""
    if not has_known_forward(layer):
        frozen = holds_weight_as_buffer(layer)
        return "keeps its statistics" if frozen else "may update its statistics by its own forward"
    if not has_stored_statistics(layer):
        return "normalises with batch statistics, and keeps none"
    if not uses_batch_statistics(layer):
        return "keeps its statistics"
    if not layer.track_running_stats:
        return "normalises with batch statistics, and keeps its own"
    if layer.momentum == 0:
        return "normalises with batch statistics, and keeps its own, since its momentum is 0"
    return "updates its statistics"


def _parameters(layer: nn.Module, holdings: Holdings) -> str:
    """Return what the optimizer would do to the layer's parameters."""
    trainable = [each for each in _own(layer) if each.requires_grad]
    old = _moved_by_old_gradients(layer, holdings)
    if old:
        names = " and ".join(_names(layer, old))
        return f"moves its frozen {names} by the gradient left from before"
    if not trainable:
        return ""
    if not holdings.are_known:
        return "asks for gradients"
    missing = [each for each in trainable if not holdings.of([each])]
    if missing:
        return f"lacks an optimizer for its {' and '.join(_names(layer, missing))}"
    if not any(group.steps for group in holdings.of(trainable)):
        return "does not train, since its learning rate is 0"
    return "trains"


def _own(layer: nn.Module) -> list[Tensor]:
    return [each for _, each in layer._parameters.items() if each is not None]


def _names(layer: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    wanted = {id(each) for each in parameters}
    return [name for name, each in layer._parameters.items() if id(each) in wanted]


def _moved_by_old_gradients(layer: nn.Module, holdings: Holdings) -> list[Tensor]:
    """Return frozen parameters that an optimizer holds and that still have a gradient."""
    frozen = [each for each in _own(layer) if not each.requires_grad]
    return [
        each
        for each in frozen
        if each.grad is not None and any(group.steps for group in holdings.of([each]))
    ]
