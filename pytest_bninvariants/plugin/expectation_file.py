"""Read a file of what is expected, such as `--bn-xfails` names: a line each, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class ExpectationLine(NamedTuple):
    """A line of such a file.

    Args:
        place: the file and the line's number, for messages.
        text: the line, stripped.
    """

    place: str
    text: str


def read_lines(option: str, file: str) -> Iterator[ExpectationLine]:
    """Yield a file's lines; empty lines and those with # are skipped.

    Args:
        option: the option that names the file.
        file: the file.

    Raises:
        pytest.UsageError: if it cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise pytest.UsageError(f"{option}={file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise pytest.UsageError(f"{option}={file}: it is not UTF-8 text") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            yield ExpectationLine(f"{file}:{number}", line)
