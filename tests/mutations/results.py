"""What became of each fault: in cosmic-ray's database, from which the next run goes on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutations.faults import Fault

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many of a room's faults were tried, and what became of them."""

    room: str
    every: int
    killed: int
    equivalent: int
    survivors: list[Fault]

    @property
    def tried(self) -> int:
        """How many were tried."""
        return self.killed + self.equivalent + len(self.survivors)

    @property
    def share(self) -> float:
        """The share of those killed, equivalent ones aside."""
        judged = self.killed + len(self.survivors)
        return self.killed / judged if judged else 1.0


class Results:
    """The outcomes so far, by fault.

    Args:
        path: the database, which is made if it is not there.
        others: databases of other runs, whose outcomes count as well.
    """

    def __init__(self, path: Path, *others: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = WorkDB(path, WorkDB.Mode.create)
        self._known = {item.job_id for item in self._db.work_items}
        self._outcomes = {
            job: result.test_outcome
            for db in (*(WorkDB(other, WorkDB.Mode.open) for other in others), self._db)
            for job, result in db.results
        }

    def outcome(self, fault: Fault) -> TestOutcome | None:
        """Return what became of a fault, or None if it was not tried."""
        return self._outcomes.get(fault.digest)

    def keep(self, fault: Fault, outcome: TestOutcome, output: str) -> None:
        """Write down what became of a fault."""
        if fault.digest not in self._known:
            self._db.add_work_item(_item(fault))
            self._known.add(fault.digest)
        result = WorkResult(
            worker_outcome=WorkerOutcome.NORMAL, test_outcome=outcome, output=output[-4000:]
        )
        self._db.set_result(fault.digest, result)
        self._outcomes[fault.digest] = outcome

    def tally(self, room: str, every: list[Fault], counted: list[Fault]) -> Tally:
        """Count what became of these faults, in this run and in earlier ones."""
        equal = equivalents()
        tried = [fault for fault in counted if self.outcome(fault) is not None]
        survived = [fault for fault in tried if self.outcome(fault) is TestOutcome.SURVIVED]
        return Tally(
            room=room,
            every=len(every),
            killed=len(tried) - len(survived),
            equivalent=sum(fault.key in equal for fault in survived),
            survivors=[fault for fault in survived if fault.key not in equal],
        )


def _item(fault: Fault) -> WorkItem:
    spec = MutationSpec(
        module_path=fault.path,
        operator_name=f"core/{fault.operator}",
        occurrence=fault.occurrence,
        start_pos=(fault.number, 0),
        end_pos=(fault.number, len(fault.line)),
        definition_name=fault.function,
    )
    return WorkItem.single(job_id=fault.digest, mutation=spec)


@cache
def equivalents() -> dict[str, str]:
    """Return the faults that change nothing a test could notice, each with the reason."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))
    return {key: each["reason"] for each in listed.get("group", []) for key in each["faults"]}
