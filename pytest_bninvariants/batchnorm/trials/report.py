"""The text of a broken law."""

from __future__ import annotations

from torch import Tensor

from pytest_bninvariants.batchnorm.cases import Case

_SHOWN_VALUES = 8


def law_report(
    headline: str, statement: str, case: Case, table: list[str], snippet: list[str]
) -> str:
    """Return the report of a layer that breaks a law.

    Args:
        headline: what is wrong, in one line.
        statement: the law's statement.
        case: the case that broke the law.
        table: the expected and the actual values, if tensors were compared.
        snippet: code that reproduces the failure.
    """
    settings = f"{case.dtype} on {case.device}, state in {case.state_dtype}"
    lines = [headline, "", f"law   {statement}", f"case  {settings}; {_description(case)}"]
    lines += ["", *table] if table else []
    lines += ["", "this reproduces it:", "", *(f"    {line}" for line in snippet)]
    return "\n".join(lines)


def _description(case: Case) -> str:
    shapes = ", ".join(
        f"{batch.shape} {batch.layout}" + (f" at {batch.kappa:g} sigma" if batch.kappa else "")
        for batch in case.batches
    )
    modes = ", ".join("train" if training else "eval" for training in case.modes)
    return f"batches {shapes}; modes {modes}"


def brief(value: object) -> str:
    """Return a value as a report's headline shows it; a large tensor is shown by its shape."""
    if isinstance(value, Tensor):
        many = value.numel() > _SHOWN_VALUES
        shown = f"shape {tuple(value.shape)}" if many else str(value.detach().cpu().tolist())
        return f"{shown} ({str(value.dtype).removeprefix('torch.')})"
    return repr(value)
