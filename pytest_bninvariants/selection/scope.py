"""What a guard is asked to watch."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_bninvariants.errors import GateError, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a guard is asked to watch.

    Args:
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell (and cross dots). Empty: the whole model.
        exclude: names to leave out, with the same wildcards.
        parameters: watch parameters.
        buffers: watch buffers, and how BN layers normalise.
        allow_batch_stats: let BN layers normalise with batch statistics.
        bn_only: watch only BN layers.

    Raises:
        GateError: if an option is not a bool, or nothing is left to watch.
    """

    modules: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parameters: bool = True
    buffers: bool = True
    allow_batch_stats: bool = False
    bn_only: bool = False

    def __post_init__(self) -> None:
        for option in ("parameters", "buffers", "allow_batch_stats"):
            value = getattr(self, option)
            if not isinstance(value, bool):
                raise GateError(f"{option}= takes True or False; got {describe(value)}")
        if not (self.parameters or self.buffers):
            raise GateError("parameters=False and buffers=False together leave nothing to watch")

    @property
    def judges_normalisation(self) -> bool:
        """Tell whether normalising with batch statistics is a violation here."""
        return self.buffers and not self.allow_batch_stats
