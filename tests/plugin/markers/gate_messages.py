"""What a gate's error says in a session."""

from __future__ import annotations

from tests.plugin.sessions import Session


def problem(session: Session, name: str) -> str:
    """Return what a gate says, without which marker it is about."""
    said, asked, marker = session.says(name).partition(" (asked for by @pytest.mark.")
    assert asked
    assert said.startswith("cannot judge: ")
    assert marker.startswith("frozen")
    return said.removeprefix("cannot judge: ")
