"""Read the summary of an audit."""

from __future__ import annotations

import re

from tests.plugin.sessions import Session


def summary_of(session: Session) -> str:
    """Return the summary's section, as one line."""
    match = re.search(r"=+ bn audit =+\n(.*?)\n=+ ", session.output, re.DOTALL)
    assert match, session.output
    return " ".join(match[1].split())
