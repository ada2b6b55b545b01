"""`python -m pytest_bninvariants`: what the package does outside of pytest."""

from __future__ import annotations

import argparse
import sys

from pytest_bninvariants.errors import GateError


def main() -> int:
    """Run the command that the arguments name; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pytest_bninvariants", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    drift = commands.add_parser(
        "drift", help="how the running statistics moved over the checkpoints of a run"
    )
    from pytest_bninvariants.history import drift_command

    drift_command.add_arguments(drift)
    arguments = parser.parse_args()
    try:
        return drift_command.run(arguments, sys.stdout)
    except GateError as error:
        print(f"{parser.prog} drift: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
