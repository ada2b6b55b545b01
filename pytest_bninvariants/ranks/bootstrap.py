"""The first lines of a rank's process: they read its order, and call the main function it names."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LINES = """
import importlib, json, os, sys
with open(sys.argv[1], encoding="utf-8") as file:
    order = json.load(file)
if not order["shows_output"]:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.path.join(order["folder"], "rank" + os.environ["RANK"] + "." + name)
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
sys.path[:] = order["sys_path"]
importlib.import_module(order["module"]).main(order)
"""


def write_order(folder: Path, order: Mapping[str, Any]) -> list[str]:
    """Write what ranks need to know, and return Python's arguments that start them.

    Args:
        folder: where; nobody else may read it there, since it holds the inbox's token.
        order: for the first lines `module`, `sys_path`, `folder` and `shows_output`; the rest is
            for the module's main function.
    """
    file = folder / "order.json"
    file.touch(0o600)
    file.write_text(json.dumps(order), encoding="utf-8")
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [*flags, "-P", "-c", _LINES, str(file)]
