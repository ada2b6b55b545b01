"""Messages arrive in order, from ranks alone, and the last one says that there are no more."""

from __future__ import annotations

import socket
import subprocess
import sys

from pytest_bninvariants.ranks.environment import ADDRESS
from pytest_bninvariants.ranks.messages import Inbox, Message

RANK = """
import sys
from pytest_bninvariants.ranks.messages import Line
line = Line(3, int(sys.argv[1]), sys.argv[2])
for number in range(3):
    line.send("report", {"text": "line\\n" * number})
try:
    line.send("report", lambda: 0)
except Exception:
    line.send("refused", "cannot be pickled")
"""


def received(inbox: Inbox, count: int) -> list[Message]:
    messages = [inbox.receive(30) for _ in range(count)]
    return [message for message in messages if message is not None]


def test_a_ranks_messages_arrive_in_order() -> None:
    with Inbox() as inbox:
        port, token = inbox.address
        subprocess.run([sys.executable, "-c", RANK, str(port), token], check=True)
        messages = received(inbox, 5)
        assert {message.rank for message in messages} == {3}
        kinds = [message.kind for message in messages]
        assert kinds == ["report", "report", "report", "refused", "hung up"]
        assert messages[2].content == {"text": "line\nline\n"}
        assert inbox.receive(0) is None


STRANGE = """
import sys
from pytest_bninvariants.ranks.messages import Line
class Strange: pass
line = Line(1, int(sys.argv[1]), sys.argv[2])
line.send("report", Strange())
line.send("ended")
"""


def test_what_cannot_be_read_here_is_told_as_that() -> None:
    with Inbox() as inbox:
        port, token = inbox.address
        subprocess.run([sys.executable, "-c", STRANGE, str(port), token], check=True)
        refused, *others = received(inbox, 3)
    assert (refused.rank, refused.kind) == (1, "refused")
    assert "Strange" in refused.content
    assert [message.kind for message in others] == ["ended", "hung up"]


def test_a_stranger_is_not_heard() -> None:
    with Inbox() as inbox:
        port, token = inbox.address
        with socket.create_connection((ADDRESS, port)) as stranger:
            stranger.sendall(b"0" * len(token) + b" 0\nanything\n")
            assert stranger.recv(1) == b""
        assert inbox.receive(0.1) is None
