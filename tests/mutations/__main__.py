"""Put one small fault at a time into the package, and see whether a test notices."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from cosmic_ray.work_item import TestOutcome

from tests.mutations import session
from tests.mutations.faults import Fault, faults
from tests.mutations.reach import Reach
from tests.mutations.results import Results, Tally, equivalents
from tests.mutations.rooms import ROOMS, ROOT, Room, room
from tests.mutations.trials import Trial, Trials, Verdict

FOLDER = ROOT / "build" / "mutations"


def main() -> int:
    """Try the faults that the command line asks for, and print those that no test noticed."""
    options = _options()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(*options.results)
    reach = Reach(FOLDER / "reach")
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
        trials = Trials(todo, place, reach, Path(folder), options.within)
        for trial, verdict in trials.run(options.workers):
            results.keep(trial.fault, verdict.outcome, trial.output)
            print(_line(trial, verdict), flush=True)
    return results.tally(place.name, every, chosen)


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


def _line(trial: Trial, verdict: Verdict) -> str:
    lines = [f"{verdict.outcome.value:9} {trial.seconds:5.1f} s  {trial.fault.key}"]
    lines += [f"  by {verdict.killer}"] if verdict.killer else []
    lines += [f"  UNRELIABLE, fails without the fault too: {test}" for test in verdict.unreliable]
    return "\n".join(lines)


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
