"""The text of a broken law."""

from __future__ import annotations

from torch import Tensor, nn

from pytest_bninvariants.batchnorm.cases import DEFAULTS, Batch, Case

_SHOWN_VALUES = 8


def law_report(
    headline: str,
    statement: str,
    described: str,
    table: list[str],
    snippet: list[str],
) -> str:
    """Return the report of a layer that breaks a law.

    Args:
        headline: what is wrong, in one line.
        statement: the law's statement.
        described: the case that broke the law.
        table: the expected and the actual values, if tensors were compared.
        snippet: code that reproduces the failure.
    """
    lines = [headline, "", f"law   {statement}", f"case  {described}"]
    lines += ["", *table] if table else []
    lines += ["", "this reproduces it:", "", *(f"    {line}" for line in snippet)]
    return "\n".join(lines)


def describe_case(case: Case, layer: object) -> str:
    """Return dtypes, batches and modes, and what else differs from a new layer's defaults.

    Args:
        case: the case.
        layer: the layer as it is now; None if there is none.
    """
    batches = f"batches {', '.join(map(_describe_batch, case.batches))}"
    return "; ".join([*_case_parts(case, batches, _modes(case, layer)), *_frozen_parameters(layer)])


def describe_ranks(case: Case, size: int) -> str:
    """Return what `describe_case` does, for batches of which each rank has its own.

    Args:
        case: the case.
        size: how many ranks there are; each step has so many batches.
    """
    shards = [
        f"rank {rank}: " + ", ".join(map(_describe_batch, case.batches[rank::size]))
        for rank in range(size)
    ]
    return "; ".join(_case_parts(case, f"{size} ranks", *shards))


def _describe_batch(batch: Batch) -> str:
    """Return a batch's shape, layout and offset."""
    offset = f" at {batch.kappa:g} sigma" if batch.kappa else ""
    return f"{batch.shape} {batch.layout}{offset}"


def _case_parts(case: Case, *batches: str) -> list[str]:
    """Return dtypes, what is said of the batches, and settings other than the defaults."""
    return [
        f"{case.dtype} on {case.device}, state in {case.state_dtype}",
        *batches,
        *(f"{name}={value}" for name, value in case.settings().items() if value != DEFAULTS[name]),
        *([f"num_batches_tracked={case.count}"] if case.count else []),
    ]


def _modes(case: Case, layer: object) -> str:
    """Return the modes of the batches, and the mode in which the layer is now."""
    now = getattr(layer, "training", None)
    training = case.modes[-1] if now is None else bool(now)
    modes = case.modes if len(case.modes) > 1 else (training,)
    text = "modes " + ", ".join(map(_mode, modes))
    return text if len(modes) == 1 else f"{text}; now in {_mode(training)}"


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def _frozen_parameters(layer: object) -> list[str]:
    if not isinstance(layer, nn.Module):
        return []
    frozen = [name for name, each in layer.named_parameters() if not each.requires_grad]
    return [f"frozen {' and '.join(frozen)}"] if frozen else []


def brief(value: object) -> str:
    """Return a value as a report's headline shows it; a large tensor is shown by its shape."""
    if isinstance(value, Tensor):
        many = value.numel() > _SHOWN_VALUES
        shown = f"shape {tuple(value.shape)}" if many else str(value.detach().cpu().tolist())
        return f"{shown} ({str(value.dtype).removeprefix('torch.')})"
    return repr(value)
