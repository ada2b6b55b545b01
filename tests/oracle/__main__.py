"""Run the oracle for long: `python -m tests.oracle --steps 20000 --seed 3`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.machines import COUNTS, CauseMachine, OracleMachine

MACHINES = {"changes": OracleMachine, "causes": CauseMachine}


def main() -> int:
    """Run until so many actions are drawn; each disagreement is shown, and counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="actions to draw at least")
    parser.add_argument("--seed", type=int, default=0, help="what to draw them from")
    parser.add_argument("--machine", choices=MACHINES, default="causes")
    parser.add_argument("--shrink", action="store_true", help="shrink what fails")
    parser.add_argument("--again", type=int, help="the number of one run, to run it alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads that share small tensors mostly wait for each other
    started, runs, failures = time.monotonic(), 0, 0
    while COUNTS["actions"] < arguments.steps:
        runs += 1
        number = arguments.again or arguments.seed * 1_000_003 + runs
        machine = seed(number)(MACHINES[arguments.machine])
        try:
            run_state_machine_as_test(machine, settings=settings_for(shrink=arguments.shrink))
        except Exception as failure:
            failures += 1
            notes = "\n".join(getattr(failure, "__notes__", ()))
            print(f"--- {number}: {type(failure).__name__}: {failure}\n{notes}", flush=True)
        print(f"{time.monotonic() - started:.0f} s: {dict(COUNTS)}", flush=True)
        if arguments.again:
            break
    return failures


def settings_for(*, shrink: bool) -> settings:
    """Return what hypothesis is to do in one run of many."""
    return settings(
        max_examples=50,
        stateful_step_count=40,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )


if __name__ == "__main__":
    sys.exit(main())
