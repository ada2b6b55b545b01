"""What `in_sync(decay=)` must say of each tensor of an average: by its formula, in float64."""

from __future__ import annotations

from tests.oracle.actions.averages import DECAY
from tests.oracle.judgement.updates import Fate, decode
from tests.oracle.timeline import Stretch


def fates_of_average(stretch: Stretch) -> dict[str, Fate]:
    """Return for each tensor whether it must be told to be off, where that is certain."""
    return {name: _fate(name, stretch) for name in stretch.last.teacher}


def _fate(name: str, stretch: Stretch) -> Fate:
    before, after = stretch.first.teacher.get(name), stretch.last.teacher[name]
    model = stretch.last.tensors.get(name)
    if before is None or model is None or model[:2] != after[:2]:
        return "unknown"
    if name not in stretch.last.parameters:
        return "holds" if after == model else "breaks"
    if "float32" not in after[0] or not after[1]:
        return "unknown"
    kept, new = DECAY * decode(before).double(), (1 - DECAY) * decode(model).double()
    off = (decode(after).double() - kept - new).abs()
    if bool((off <= 1e-7 * (kept.abs() + new.abs())).all()):
        return "holds"
    size = max(1.0, float((kept + new).abs().max()))
    return "breaks" if off.max() > 1e-4 * size else "unknown"
