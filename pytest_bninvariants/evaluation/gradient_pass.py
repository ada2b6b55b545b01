"""The gradients of a loss over one or several batches, computed on a copy of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.evaluation.batch_statistics_use import BatchStatisticsUse
from pytest_bninvariants.evaluation.batches import cast_batch, samples_in
from pytest_bninvariants.evaluation.precision import computing_in
from pytest_bninvariants.torch_internals.sharding import whole_tensor

LossFunction = Callable[[nn.Module, Any], Tensor]
Wrapper = Callable[[nn.Module], nn.Module]


class BatchPart(NamedTuple):
    """A batch, and what its loss counts.

    Args:
        batch: the batch.
        share: the factor of its loss.
        name: what messages call it.
    """

    batch: Any
    share: float = 1.0
    name: str = "the whole batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGradients:
    """The result of one pass over one or several batches.

    Args:
        sums: the sum of the batches' weighted gradients in float64, by the parameter's name.
        sizes: the largest value in the sum of their magnitudes, by the parameter's name.
        loss: the sum of the weighted losses.
        normalised: by name, the layers that normalised with batch statistics, and whether they
            were in training mode.
        buffers: the model's buffers afterwards, by name.
        unreached: the names of the trainable parameters that got no gradient.
    """

    sums: dict[str, Tensor]
    sizes: dict[str, float]
    loss: float
    normalised: dict[str, bool]
    buffers: dict[str, Tensor]
    unreached: tuple[str, ...]

    def distance(self, other: PassGradients, name: str) -> float:
        """Return the largest difference between two passes' gradients of a parameter."""
        return float((self.sums[name] - other.sums[name]).abs().max())


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPass:
    """Compute the gradients of batches on copies of a model.

    Args:
        caller: the invariant that asks, for messages.
        model: the model, which is copied for each run.
        loss: `loss(model, batch)`.
        wrap: returns what the loss gets in place of the copy, such as a wrapper around it.
    """

    caller: str
    model: nn.Module
    loss: LossFunction
    wrap: Wrapper | None = None

    def run(self, parts: Sequence[BatchPart], dtype: torch.dtype) -> PassGradients:
        """Return the gradients over some batches, in a dtype.

        Raises:
            GateError: if the pass does not run, nothing is trainable, or a gradient is not finite.
        """
        model = self._copy_in(dtype)
        sums = {name: _zeros(parameter) for name, parameter in _trainable(model).items()}
        called = self._wrapped(model)
        magnitudes = {name: value.abs() for name, value in sums.items()}
        total, observer = 0.0, BatchStatisticsUse()
        reached: set[str] = set()
        for part in parts:
            model.zero_grad(set_to_none=True)
            with self._errors_explained(_describe_loss(part, dtype)), observer:
                with computing_in(dtype):
                    value = self._scalar(self.loss(called, cast_batch(part.batch, dtype)))
                    value = value * part.share
                # a wrapper's own casts, such as a compressing hook's, are what is to be judged
                with nullcontext() if self.wrap else computing_in(dtype):
                    torch.autograd.backward(value)
            total += float(value.detach())
            for name, gradient in self._gradients(model, sums).items():
                reached.add(name)
                sums[name] += gradient
                magnitudes[name] += gradient.abs()
        self._check_sums(sums, dtype)
        return PassGradients(
            sums=sums,
            sizes={name: float(value.max()) for name, value in magnitudes.items()},
            loss=total,
            normalised=observer.layers_in(model),
            buffers={name: buffer.detach() for name, buffer in model.named_buffers()},
            unreached=tuple(name for name in sums if name not in reached),
        )

    def _copy_in(self, dtype: torch.dtype) -> nn.Module:
        with self._errors_explained(f"copying the model to {dtype}"):
            model = copy.deepcopy(self.model)
            model.double() if dtype == torch.float64 else model.float()
        return model

    def _wrapped(self, model: nn.Module) -> nn.Module:
        if self.wrap is None:
            return model
        with self._errors_explained("wrap(model)"):
            wrapped: object = self.wrap(model)
        if not isinstance(wrapped, nn.Module):
            raise GateError(
                f"{self.caller}(wrap=...): wrap(model) returns a module; got {describe(wrapped)}"
            )
        return wrapped

    def _scalar(self, value: object) -> Tensor:
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise GateError(
                f"{self.caller}(loss=...): loss(model, batch) returns a tensor of one value; "
                f"got {describe(value)}"
            )
        return value

    def _gradients(self, model: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of a copy, which a wrapper may have given other parameters."""
        parameters = dict(model.named_parameters())
        gradients = {
            name: whole_tensor(gradient).to_dense()
            for name in sums
            if name in parameters and (gradient := parameters[name].grad) is not None
        }
        lost = [name for name in sums if name not in parameters]
        lost += [name for name, each in gradients.items() if each.shape != sums[name].shape]
        if lost:
            raise GateError(
                f"{self.caller}(wrap=...): the wrapper leaves no whole gradient of {lost[0]!r}, as "
                "FullyShardedDataParallel does: wrap with DistributedDataParallel or fully_shard"
            )
        if not gradients:
            raise GateError(
                f"{self.caller}: loss(model, batch) reaches no trainable parameter "
                "of the model that it is given, which is a copy"
            )
        return gradients

    def _check_sums(self, sums: dict[str, Tensor], dtype: torch.dtype) -> None:
        if not any(bool(value.any()) for value in sums.values()):
            raise GateError(f"{self.caller}: in {dtype} all gradients are 0")
        for name, value in sums.items():
            if not bool(value.isfinite().all()):
                raise GateError(f"{self.caller}: in {dtype} the gradient of {name} is not finite")

    @contextmanager
    def _errors_explained(self, doing: str) -> Iterator[None]:
        with errors_explained(self.caller, doing):
            yield


@contextmanager
def errors_explained(caller: str, doing: str) -> Iterator[None]:
    """Turn an error of the user's code into a GateError that says what was called.

    Args:
        caller: the invariant that called it.
        doing: what was called.
    """
    try:
        yield
    except GateError:
        raise
    except Exception as error:
        raise GateError(f"{caller}: {doing} raised {type(error).__name__}: {error}") from error


def random_draw_text(caller: str, model: nn.Module, each: str) -> str:
    """Say that a pass draws random numbers, and which modules may do it.

    Args:
        caller: the invariant that ran the pass.
        model: the model.
        each: what would draw other numbers.
    """
    random = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and "Drop" in type(module).__name__
    ]
    where = f"; in training mode: {', '.join(random[:3])}" if random else ""
    return (
        f"{caller} cannot judge a pass that draws random numbers, because each {each} would draw "
        f"different ones: put random modules in eval{where}"
    )


def _describe_loss(part: BatchPart, dtype: torch.dtype) -> str:
    samples = counted(samples_in(part.batch), "sample")
    return f"the loss of {part.name} ({samples}), in {dtype}"


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    if not trainable:
        raise GateError("nothing in the model is trainable: no parameter has requires_grad=True")
    return trainable


def _zeros(parameter: Tensor) -> Tensor:
    wide = torch.complex128 if parameter.is_complex() else torch.float64
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)
