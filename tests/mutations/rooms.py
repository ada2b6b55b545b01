"""Which tests are to notice a fault, room by room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "pytest_bninvariants"

INVARIANTS = [
    "accumulates",
    "batch_invariant",
    "bn_updates",
    "frozen",
    "in_sync",
    "rank_invariant",
    "same_output",
    "trains",
]

# room -> the tests beside those that mirror it
ROOMS: dict[str, list[str]] = {
    "snapshot": ["invariants/test_guard_silence.py", "simulated_device"],
    "state_change": ["invariants/frozen", "selection"],
    "selection": ["state_change", "plugin/listing"],
    "instrumentation": [
        "state_change",
        "trace",
        "audit",
        "invariants/bn_updates",
        "test_our_frames.py",
        "invariants/test_guard_endings.py",
        "invariants/test_neutrality.py",
        "invariants/test_compiled_neutrality.py",
        "simulated_device",
    ],
    "trace": ["plugin/options/test_tracing.py"],
    "audit": ["plugin/audit", "test_audit_rules.py"],
    "batchnorm": ["invariants/bn_updates/test_reference.py"],
    "batchnorm/laws": ["conformance"],
    "batchnorm/trials": ["batchnorm/laws", "conformance"],
    "plugin": ["plugin/outcomes/test_outcomes.py"],
    "plugin/audit": ["test_audit_rules.py"],
    "plugin/listing": [],
    "plugin/outcomes": ["invariants/test_guard_endings.py"],
    "plugin/outputs": [],
    "plugin/ranks": ["ranks"],
    "invariants": ["plugin/markers/test_silence.py", "simulated_device/test_graphs.py"],
    **{f"invariants/{name}": ["invariants/test_guard.py"] for name in INVARIANTS},
}
ROOMS["invariants/frozen"] += [
    "state_change",
    "plugin/listing",
    "invariants/test_guard_endings.py",
    "invariants/test_wrong_calls.py",
    "plugin/options/test_snapshot_budget.py",
    "invariants/sharded/test_wrapped.py",
]
ROOMS["invariants/in_sync"] += ["invariants/test_two_features_at_once.py"]
for name in ("accumulates", "batch_invariant", "in_sync"):
    ROOMS[f"invariants/{name}"] += ["simulated_device/test_graphs.py"]
ROOMS["invariants/trains"] += ["plugin/listing"]
ROOMS["invariants/bn_updates"] += ["plugin/listing", "invariants/test_two_features_at_once.py"]
for name in ("accumulates", "batch_invariant", "same_output"):
    ROOMS[f"invariants/{name}"] += ["evaluation", "simulated_device/test_float64.py"]
ROOMS["invariants/accumulates"] += ["plugin/markers/test_accumulates.py"]
ROOMS["invariants/batch_invariant"] += ["plugin/markers/test_outputs_and_sync.py"]
ROOMS["invariants/same_output"] += ["plugin/markers/test_outputs_and_sync.py"]
ROOMS["invariants/same_output"] += ["invariants/sharded/test_one_rank.py"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """Modules of the package, and the tests that are to notice what changes in them."""

    name: str
    modules: list[Path]
    tests: list[Path]


def room(name: str) -> Room:
    """Return a room of `ROOMS`: a folder without those inside that are rooms of their own."""
    top = ROOT / PACKAGE / name
    inner = [ROOT / PACKAGE / other for other in ROOMS if other.startswith(f"{name}/")]
    modules = [
        file
        for file in sorted(top.rglob("*.py"))
        if file.name != "__init__.py" and not any(file.is_relative_to(each) for each in inner)
    ]
    return Room(name=name, modules=modules, tests=_tests(name))


def _tests(name: str) -> list[Path]:
    mirror = ROOT / "tests" / name
    inner = [ROOT / "tests" / other for other in ROOMS if other.startswith(f"{name}/")]
    files: dict[Path, None] = {}  # in the order in which they are named
    for place in (mirror, *(ROOT / "tests" / path for path in ROOMS[name])):
        found = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
        skipped = inner if place == mirror else []
        files |= dict.fromkeys(
            file for file in found if not any(file.is_relative_to(each) for each in skipped)
        )
    return list(files)
