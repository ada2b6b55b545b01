"""Put one small fault at a time into the package, and see whether a test notices."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cosmic_ray.work_item import TestOutcome

from tests.mutations import imported_source, session
from tests.mutations.faults import Fault, faults
from tests.mutations.reach import Reach
from tests.mutations.results import Results, Tally, equivalents
from tests.mutations.rooms import ROOMS, ROOT, Room, room

FOLDER = ROOT / "build" / "mutations"
FAILED, UNUSABLE = 1, (4, 5)  # exit codes of pytest: a test failed; no test could be found


def main() -> int:
    """Try the faults that the command line asks for, and print those that no test noticed."""
    options = _options()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(*options.results)
    reach = Reach(FOLDER / "reach.json")
    if not options.report:
        session.warm_up()
    tallies = [_try_room(room(name), options, reach, results) for name in options.rooms or ROOMS]
    print(_table(tallies))
    return int(any(tally.share < options.at_least for tally in tallies))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of: {', '.join(ROOMS)}")
    parser.add_argument("--sample", type=int, help="try so many faults of each room, not all")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--since", metavar="REF", help="only lines changed since a git ref")
    parser.add_argument("--shard", metavar="N/M", default="1/1", help="only one part of M")
    parser.add_argument("--survivors", action="store_true", help="only try again what survived")
    parser.add_argument("--fresh", action="store_true", help="try again what was tried before")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--within", type=float, help="only the first and the quickest tests, in so many seconds"
    )
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below this share")
    parser.add_argument("--report", action="store_true", help="try none, and print the numbers")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[FOLDER / "results.sqlite"],
        metavar="FILE",
        help="where to keep what became of each fault, and other such files to count",
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.rooms) - set(ROOMS)):
        parser.error(f"there is no room {unknown[0]!r}; there are {', '.join(ROOMS)}")
    return options


def _try_room(place: Room, options: argparse.Namespace, reach: Reach, results: Results) -> Tally:
    every = [fault for path in place.modules for fault in faults(path)]
    chosen = _chosen(every, options)
    due = [fault for fault in chosen if _is_due(fault, results, options)]
    todo = [] if options.report else due
    if todo:
        reach.measure(place.tests, options.workers)
    with tempfile.TemporaryDirectory() as folder:
        jobs = _jobs(todo, place, reach, Path(folder), options.within)
        by_key = {fault.key: fault for fault in todo}
        for ending in session.run_all(jobs, options.workers):
            outcome = _outcome(ending)
            output = ending.job.output.read_text(errors="replace")
            results.keep(by_key[ending.job.name], outcome, output)
            print(f"{outcome.value:9} {ending.seconds:5.1f} s  {ending.job.name}", flush=True)
    return results.tally(place.name, every, chosen if options.since else every)


def _chosen(every: list[Fault], options: argparse.Namespace) -> list[Fault]:
    part, parts = map(int, options.shard.split("/"))
    chosen = [fault for fault in every if int(fault.digest, 16) % parts == part - 1]
    if options.since:
        lines = _changed_lines(options.since)
        chosen = [each for each in chosen if each.number in lines.get(each.path, ())]
    if options.sample:
        chosen = sorted(chosen, key=lambda fault: fault.lot(options.seed))[: options.sample]
    return chosen


def _is_due(fault: Fault, results: Results, options: argparse.Namespace) -> bool:
    outcome = results.outcome(fault)
    if options.survivors:
        return outcome is TestOutcome.SURVIVED and fault.key not in equivalents()
    return outcome is None or bool(options.fresh)


def _jobs(
    todo: list[Fault], place: Room, reach: Reach, folder: Path, within: float | None
) -> Iterator[session.Job]:
    for number, fault in enumerate(todo):
        names = reach.tests(place.tests, fault.module, fault.block)
        if within is not None:
            names = reach.first(place.tests, names, within)
        source = folder / f"{number}.py"
        source.write_text(fault.source(), encoding="utf-8")
        yield session.Job(
            name=fault.key,
            run=partial(_run_tests, fault.module, source, names),
            seconds=30 + 5 * reach.seconds(place.tests, names),
            output=folder / f"{number}.txt",
        )


def _run_tests(module: str, source: Path, names: list[str]) -> int:
    if not names:
        print("no test reaches this")
        return 0
    os.environ[imported_source.FAULT] = f"{module}={source}"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return session.run_tests(names, session.ChosenTests(names))


def _outcome(ending: session.Ending) -> TestOutcome:
    if ending.status in UNUSABLE and "ImportError while loading conftest" not in (
        ending.job.output.read_text(errors="replace")
    ):
        raise SystemExit(ending.job.output.read_text(errors="replace"))
    return TestOutcome.SURVIVED if ending.status == 0 else TestOutcome.KILLED


def _changed_lines(ref: str) -> dict[Path, set[int]]:
    command = ["git", "diff", "--unified=0", "--no-color", f"{ref}...", "--", "*.py"]
    diff = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines: dict[Path, set[int]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            current = lines.setdefault(ROOT / line.removeprefix("+++ b/"), set())
        elif line.startswith("@@"):
            start, _, count = line.split()[2].removeprefix("+").partition(",")
            current.update(range(int(start), int(start) + int(count or 1)))
    return lines


def _table(tallies: list[Tally]) -> str:
    rows = ["| room | faults | tried | killed | equivalent | survivors | killed of those judged |"]
    rows += ["|---|--:|--:|--:|--:|--:|--:|"]
    for each in tallies:
        counts = (each.every, each.tried, each.killed, each.equivalent, len(each.survivors))
        share = f"{each.share:.1%}" if each.tried else "not tried"
        rows += [f"| `{each.room}` | {' | '.join(map(str, counts))} | {share} |"]
    left = [f"- {fault.key}" for each in tallies for fault in each.survivors]
    return "\n".join(["", *rows, "", *left])


if __name__ == "__main__":
    raise SystemExit(main())
