"""A process of a distributed run: it runs checks in order, and writes down what each says.

A script of such checks is a module that `run_checks` starts.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from pytest_bninvariants import GateError, InvariantBroken, InvariantHazard


class Checks:
    """Join the other processes; then each `checks.run` is a check.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        told: what the checks said, by name.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=40))
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.told: dict[str, dict[str, Any]] = {}

    def run(self, name: str, check: Callable[[], object]) -> None:
        """Write down what a guard in a function says; the ranks begin it together."""
        distributed.barrier()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.told[name] = _judged(check)
        hazards = [w.message for w in caught if issubclass(w.category, InvariantHazard)]
        self.told[name]["hazards"] = [" ".join(str(each).split()) for each in hazards]

    def end(self) -> None:
        """Hand in what was told, and leave without waiting for anyone."""
        distributed.barrier()
        told = json.dumps(self.told)
        (Path(os.environ["TOLD_IN"]) / f"{self.rank}.json").write_text(told)
        sys.stdout.flush()
        os._exit(0)  # torch 2.4 may hang while it destroys a process group


def _judged(check: Callable[[], object]) -> dict[str, Any]:
    try:
        check()
    except InvariantBroken as broken:
        causes = [cause.name for verdict in broken.verdicts for cause in verdict.causes]
        return {"kind": "broken", "text": " ".join(str(broken).split()), "causes": causes}
    except GateError as gate:
        return {"kind": "gate", "text": " ".join(str(gate).split()), "causes": []}
    except Exception:
        return {"kind": "error", "text": traceback.format_exc(), "causes": []}
    return {"kind": "held", "text": "", "causes": []}
