"""Which tests reach which block of the package, and how long each takes."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.mutations import imported_source, session
from tests.mutations.rooms import ROOT

LIMIT = 900.0  # seconds for one file of tests


class Reach:
    """A folder that says, for each file of tests, what its tests reach; measured once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Any] = {}

    def measure(self, tests: list[Path], workers: int) -> None:
        """Run the files of tests that are new or were changed, with probes in the package."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stale = [file for file in tests if self._known(file).get("sum") != _sum(file)]
        for file in stale:
            del self._files[file]
            self._output(file).with_suffix(".json").unlink(missing_ok=True)
        for ending in session.run_all(map(self._job, stale), workers):
            found = ending.job.output.with_suffix(".json")
            if not found.exists():
                raise SystemExit(f"{ending.job.name} did not end: see {ending.job.output}")
            failed = self._known(ROOT / ending.job.name)["failed"]
            note = f", without these, which fail: {failed}" if failed else ""
            print(f"measured {ending.job.name} in {ending.seconds:.0f} s{note}", flush=True)

    def _known(self, file: Path) -> dict[str, Any]:
        if file not in self._files:
            found = self._output(file).with_suffix(".json")
            self._files[file] = json.loads(found.read_text()) if found.exists() else {}
        known: dict[str, Any] = self._files[file]
        return known

    def _output(self, file: Path) -> Path:
        return self._folder / f"{str(file.relative_to(ROOT)).replace('/', '-')}.txt"

    def _job(self, file: Path) -> session.Job:
        name, output = str(file.relative_to(ROOT)), self._output(file)
        return session.Job(
            name=name, run=partial(_measure, name, output), seconds=LIMIT, output=output
        )

    def tests(self, files: list[Path], module: str, block: str | None) -> list[str]:
        """Return the tests that reach a block, or are beside one that reaches the module.

        Those of the module's own file come first.
        """
        chosen: list[str] = []
        *folders, name = module.split(".")
        own = ROOT.joinpath("tests", *folders[1:], f"test_{name}.py")
        for file in sorted(files, key=lambda file: file != own):
            known = self._known(file)
            reached: set[str] = set()
            for each, names in known["reached"].items():
                if each == block:
                    reached.update(names)
                elif block is None and each.partition(":")[0] == module:
                    reached.update(known["seconds"])  # an import is no test's own
            usable = reached & known["seconds"].keys() - set(known["failed"])
            some = sorted(usable, key=lambda name: known["seconds"][name])
            chosen += _one_of_each_first(some)
        return chosen

    def first(self, files: list[Path], names: list[str], within: float) -> list[str]:
        """Return the first of these tests, and then the quickest, in so many seconds."""
        times = self._times(files)
        kept: dict[str, float] = {}
        for limit, some in ((within / 2, names), (within, sorted(names, key=times.__getitem__))):
            for name in some:
                if sum(kept.values()) + times[name] <= limit:
                    kept[name] = times[name]
        return [name for name in names if name in kept] or names[:1]

    def seconds(self, files: list[Path], names: list[str]) -> float:
        """Return how long these tests took."""
        times = self._times(files)
        return sum(times[name] for name in names)

    def _times(self, files: list[Path]) -> dict[str, float]:
        known = [self._known(file)["seconds"] for file in files]
        return {name: seconds for times in known for name, seconds in times.items()}


def _one_of_each_first(names: list[str]) -> list[str]:
    """Put the first case of each parametrized test before all second ones, and so on."""
    cases: Counter[str] = Counter()
    ranks = {}
    for name in names:
        function = name.partition("[")[0]
        ranks[name] = cases[function]
        cases[function] += 1
    return sorted(names, key=lambda name: ranks[name])


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _measure(name: str, output: Path) -> int:
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    os.environ[imported_source.REACHED] = str(log)
    plugin = session.ReachedBlocks()
    os.environ[imported_source.TEST] = name
    status = session.run_tests([name], plugin)
    blocks: dict[str, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines() if log.exists() else ():
        test, _, block = line.partition("\t")
        blocks[block].update([test] if "::" in test else plugin.seconds)
    found = {
        "sum": _sum(ROOT / name),
        "seconds": plugin.seconds,
        "failed": plugin.failed,
        "reached": {block: sorted(tests) for block, tests in blocks.items()},
    }
    output.with_suffix(".json").write_text(json.dumps(found))
    return status
