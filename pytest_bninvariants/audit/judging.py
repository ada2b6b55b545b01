"""Judge what an audit saw of a BN layer: whether it leaked, or was stuck in eval."""

from __future__ import annotations

from dataclasses import replace
from types import FrameType

from torch.optim import Optimizer

from pytest_bninvariants.audit.audited_layers import AuditedLayer
from pytest_bninvariants.audit.call_context import CallContext, contains, context_in
from pytest_bninvariants.audit.findings.finding import AuditFinding, How
from pytest_bninvariants.audit.frozen_period import FrozenPeriod
from pytest_bninvariants.instrumentation.optimizers import place_of_step
from pytest_bninvariants.selection.walk import all_parameters, join
from pytest_bninvariants.verdict import Change


def leak_of(record: AuditedLayer, period: FrozenPeriod) -> AuditFinding | None:
    """Return the leak of a layer's period, which has ended; None if it did not leak."""
    context = period.context
    if context is None or not _should_have_stayed(record, period):
        return None
    moved = period.moved()
    if not moved:
        return None
    return AuditFinding(
        context=context,
        kind=period.kind,
        how=_how(period),
        flipped=record.flipped,
        put_in_training=record.put_in_training,
        batches=period.batches,
        changes=tuple(
            replace(change, name=join(context.name, change.name), layer=context.name)
            for change in moved
        ),
        tensors=len(period.kept),
    )


def _should_have_stayed(record: AuditedLayer, period: FrozenPeriod) -> bool:
    if period.stay == "no-grad":
        return period.trained_beside and not record.trains
    layer = record.layer()
    if period.stay == "eval" and layer is not None:
        return record.is_frozen(layer)  # what was thawed since then may be written
    return True


def _how(period: FrozenPeriod) -> How:
    if period.stay != "eval":
        return period.stay
    return "reset" if period.is_reset else "written"


def stuck_layer(
    record: AuditedLayer, optimizer: Optimizer, held: set[int], frame: FrameType | None
) -> AuditFinding | None:
    """Tell of a layer that an optimizer is about to train, in a model that is in eval as a whole.

    Args:
        record: the record of the layer.
        optimizer: the optimizer.
        held: ids of the parameters that it holds.
        frame: the frame in which torch runs the step.
    """
    layer = record.layer()
    if layer is None or layer.training or record.ran_in_training:
        return None
    parameters = all_parameters(record.holder_of(layer))
    if not any(id(each) in held and each.grad is not None for each in parameters):
        return None
    modules = [module for ref in record.ran_in if (module := ref()) is not None]
    outermost = next((module for module in modules if contains(module, layer)), None)
    if outermost is None or outermost.training:
        return None
    context = context_in(outermost, layer, None)
    return AuditFinding(
        context=context,
        kind=type(layer).__name__,
        how="stuck",
        changes=(_trained_in_eval(context, optimizer),),
        optimizer=type(optimizer).__name__,
        stepped_at=place_of_step(frame, optimizer),
    )


def _trained_in_eval(context: CallContext, optimizer: Optimizer) -> Change:
    text = f"in eval while {type(optimizer).__name__} trained it"
    return Change(name=context.name, layer=context.name, kind="still", text=text)
