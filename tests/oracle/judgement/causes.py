"""Whether the causes that a verdict names are among those that really happened, and where."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterator

from pytest_bninvariants import Verdict
from pytest_bninvariants.verdict import Cause
from tests.invariants.neutral_runs import in_bytes
from tests.oracle.deeds import Call, Deed, bare
from tests.oracle.judgement.frozen import STATISTICS
from tests.oracle.judgement.updates import decode
from tests.oracle.layers import CarelessNorm
from tests.oracle.timeline import Stretch
from tests.snapshot.flips import WAYS

FLIP = "flip_a_bit"
LOADS = (
    "load_what_was_kept",
    "load_its_own",
    "load_other_values",
    "load_a_part",
    "save_and_load_a_file",
    FLIP,
)
CASTS = ("to_half_and_back", "to_double_and_back")


def complaints(verdict: Verdict, stretch: Stretch) -> Iterator[str]:
    """Yield what is wrong with the causes of a verdict of `frozen` or `frozen_bn`."""
    for cause in verdict.causes:
        check = CHECKS.get(cause.name)
        names = {bare(name) for name in (cause.tensors if cause.tensors else cause.layers)}
        if check is None:
            yield f"{cause.name} cannot have happened"
            continue
        wrong = sorted(name for name in names if not check(name, stretch))
        if wrong:
            yield f"{cause.name} is not what happened to {wrong}"
        yield from _wrong_place(cause, stretch)
        yield from _wrong_count(cause, stretch)
    told = {layer for cause in verdict.causes for layer in cause.layers}
    if unexplained := [layer for layer in verdict.changed_layers if layer not in told]:
        yield f"no cause for {unexplained}"


def _wrong_place(cause: Cause, stretch: Stretch) -> Iterator[str]:
    place = cause.place
    if place is None:
        return
    done = {deed.name for deed in stretch.deeds} | {"_loaded", "backward", "closure", "forward"}
    done |= {way.__name__ for way in WAYS.values()} if FLIP in done else set()
    if place.function not in done:
        yield f"{cause.name} is placed in {place.function}, which did not run"
    line = linecache.getline(place.file, place.line)
    for did, words in PLACES.items():
        if cause.did.startswith(did) and not any(word in line for word in words):
            yield f"{cause.name} is placed at {line.strip()!r}"


PLACES = {
    "put in training mode": ("train", "update_bn"),
    "stepped": (".step(",),
    "loaded": ("load_state_dict",),
}


def _wrong_count(cause: Cause, stretch: Stretch) -> Iterator[str]:
    told = re.search(r"normalised (\d+) batch(?:es)? with batch statistics", cause.why)
    if told is None:
        return
    for layer in map(bare, cause.layers):
        mine = _calls(layer, stretch)
        right = int(told[1]) == len(mine)
        if "perhaps more in compiled code" in cause.why:
            right = int(told[1]) <= len(mine)
        if len({id(call.module) for call in mine}) == 1 and not right:
            yield f"{layer} normalised {len(mine)} batches"


def _calls(name: str, stretch: Stretch) -> list[Call]:
    layer = _layer(name, stretch)
    ends = (stretch.modules[0].get(layer), stretch.modules[-1].get(layer))
    calls = [call for deed in stretch.deeds for call in deed.calls if call.used_batch]
    return [call for call in calls if layer in call.names and call.module in ends]


def _layer(name: str, stretch: Stretch) -> str:
    known = stretch.modules[0].keys() | stretch.modules[-1].keys()
    return name if name in known else name.rpartition(".")[0]


def _changing(name: str, stretch: Stretch) -> Iterator[Deed]:
    """Yield the deeds that changed a tensor."""
    for number, deed in enumerate(stretch.deeds):
        before, after = stretch.readings[number : number + 2]
        if before.tensors.get(name) != after.tensors.get(name):
            yield deed


def _stepped(deed: Deed, name: str, kinds: tuple[str, ...]) -> bool:
    steps = [step[name] for step in deed.steps if name in step]
    return any(
        in_bytes(held.before) != in_bytes(held.after) and held.gradient in kinds for held in steps
    )


def _gradient_step(name: str, stretch: Stretch) -> bool:
    by_flip = any(deed.name == FLIP for deed in _changing(name, stretch))  # some of them step
    return by_flip or any(_stepped(d, name, ("finite", "not finite")) for d in stretch.deeds)


def _weight_decay(name: str, stretch: Stretch) -> bool:
    steps = [step[name] for deed in stretch.deeds for step in deed.steps if name in step]
    return any(held.weight_decay for held in steps)


def _stale_momentum(name: str, stretch: Stretch) -> bool:
    steps = [step[name] for deed in stretch.deeds for step in deed.steps if name in step]
    return any(held.has_moments and held.gradient in ("zero", "none") for held in steps)


def _loaded(name: str, stretch: Stretch) -> bool:
    return any(deed.name in LOADS for deed in _changing(name, stretch))


def _from_itself(name: str, stretch: Stretch) -> bool:
    return any(deed.name in LOADS for deed in stretch.deeds)


def _training_mode(name: str, stretch: Stretch) -> bool:
    return any(call.training for call in _calls(name, stretch))


def _mode_flip(name: str, stretch: Stretch) -> bool:
    return _training_mode(name, stretch) and not _began_in_training(name, stretch)


def _began_in_training(name: str, stretch: Stretch) -> bool:
    kept = stretch.first.rest.items()
    modes = {bare(k.removesuffix(" training")): v for k, v in kept if k.endswith(" training")}
    return bool(modes.get(_layer(name, stretch), False))


def _recomputed(name: str, stretch: Stretch) -> bool:
    return any(call.in_backward for call in _calls(name, stretch))


def _in_eval(name: str, stretch: Stretch) -> bool:
    calls = _calls(name, stretch)
    return any(not call.training for call in calls) or _updated_by_sharing(name, stretch)


def _updated_by_sharing(name: str, stretch: Stretch) -> bool:
    """Tell whether another layer that has the same tensor normalised with batch statistics."""
    layer, _, own = name.rpartition(".")
    for deed, tensors in zip(stretch.deeds, stretch.tensors, strict=False):
        others = {n for call in deed.calls if call.used_batch for n in call.names} - {layer}
        mine = tensors.get(name)
        if mine is not None and any(tensors.get(f"{n}.{own}") is mine for n in others):
            return True
    return False


def _without_statistics(name: str, stretch: Stretch) -> bool:
    """Tell whether a layer that obeys its mode used batch statistics all the same in eval."""
    return any(
        call.before["running_mean"] is None
        or not (call.training or isinstance(call.module, CarelessNorm))
        for call in _calls(name, stretch)
    )


def _reset(name: str, stretch: Stretch) -> bool:
    layer, last = _layer(name, stretch), stretch.last.tensors
    mean, var = (last.get(f"{layer}.{each}") for each in STATISTICS[:2])
    if mean is None or var is None:
        return False
    return bool((decode(mean) == 0).all() and (decode(var) == 1).all())


def _replaced(name: str, stretch: Stretch) -> bool:
    layer = _layer(name, stretch)
    if any(deed.name in CASTS for deed in _changing(name, stretch)):
        return True
    if any(modules.get(layer) is not stretch.modules[0].get(layer) for modules in stretch.modules):
        return True
    mine = [
        n for n in stretch.first.tensors | stretch.last.tensors if n.rpartition(".")[0] == layer
    ]
    return any(
        {id(tensors.get(n)) for tensors in stretch.tensors} != {id(stretch.tensors[0].get(n))}
        for n in (mine if name == layer else [name])
    )


def _eps_set(name: str, stretch: Stretch) -> bool:
    return stretch.first.norms.get(name) != stretch.last.norms.get(name)


def _in_place(name: str, stretch: Stretch) -> bool:
    """Tell whether something wrote to a tensor that no more specific cause explains."""
    layer, _, own = name.rpartition(".")
    for deed in _changing(name, stretch):
        normalised = own in STATISTICS and any(
            call.used_batch and layer in call.names for call in deed.calls
        )
        stepped = _stepped(deed, name, ("finite", "not finite", "zero", "none"))
        by_hand = any(call.by_hand for call in deed.calls)
        if by_hand or not (normalised or stepped or deed.name in LOADS[:-1]):
            return True
    return False


CHECKS: dict[str, Callable[[str, Stretch], bool]] = {
    "gradient-step": _gradient_step,
    "weight-decay": _weight_decay,
    "stale-momentum": _stale_momentum,
    "loaded": _loaded,
    "shared-memory": _from_itself,
    "training-mode": _training_mode,
    "mode-flip": _mode_flip,
    "recomputation": _recomputed,
    "update-in-eval": _in_eval,
    "no-stored-statistics": _without_statistics,
    "reset": _reset,
    "replaced": _replaced,
    "eps-set": _eps_set,
    "in-place": _in_place,
}
