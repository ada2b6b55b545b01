"""What a guard is asked to watch, and which names that covers, told by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from hypothesis import strategies as st

from tests.oracle.deeds import bare
from tests.oracle.timeline import Reading

NAMES = ("blocks", "blocks.0", "blocks.1", "*.1", "stem", "head", "tables", "*.weight", "block?")


@dataclass(frozen=True)
class Ask:
    """The arguments of a guard.

    Args:
        names: the names of modules.
        exclude: what to leave out.
        options: the other options.
    """

    names: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        """Tell whether a bare name is watched."""
        return _matches(name, self.names or ("",)) and not _matches(name, self.exclude)

    def tensors(self, reading: Reading, *, norms_only: bool) -> set[str]:
        """Return which tensors of a reading are watched."""
        kinds = {
            True: self.options.get("parameters", True),
            False: self.options.get("buffers", True),
        }
        return {
            name
            for name in reading.tensors
            if self.covers(name)
            and kinds[name in reading.parameters]
            and (not norms_only or name.rpartition(".")[0] in reading.norms)
        }

    def norms(self, reading: Reading) -> set[str]:
        """Return which BN layers of a reading are named."""
        return {name for name in reading.norms if self.covers(name)}

    @property
    def judges_normalisation(self) -> bool:
        """Tell whether normalising with batch statistics is a violation by itself."""
        return bool(self.options.get("buffers", True)) and not self.options.get("allow_batch_stats")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(
        not pattern or any(fnmatchcase(each, bare(pattern)) for each in above)
        for pattern in patterns
    )


def asks(*options: dict[str, object]) -> st.SearchStrategy[Ask]:
    """Draw arguments; half of the time none."""
    whole = st.just(Ask())
    names = st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple)
    exclude = st.lists(st.sampled_from(NAMES), max_size=1).map(tuple)
    drawn = st.builds(Ask, names=names, exclude=exclude, options=st.sampled_from([{}, *options]))
    return st.one_of(whole, drawn)
