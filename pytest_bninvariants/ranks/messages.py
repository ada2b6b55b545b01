"""The messages that ranks send to the process which started them, over a socket.

The socket is a lifeline, too: it closes when that process ends, however it ends, and then the ranks
end themselves.
"""

from __future__ import annotations

import base64
import os
import pickle
import queue
import secrets
import signal
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from pytest_bninvariants.ranks.environment import ADDRESS


class Message(NamedTuple):
    """What a rank says.

    Args:
        rank: who says it.
        kind: what it is about: `started`, `joined`, `report`, `warning`, `refused`, `ended`; and
            `hung up`, once there will be no more.
        content: more of it, depending on the kind.
        sent_at: when it was sent, in seconds since the epoch.
    """

    rank: int
    kind: str
    content: Any = None
    sent_at: float = 0.0


class Inbox:
    """Receive messages of the ranks; a context manager, which stops that at its end."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._token = secrets.token_hex(16)
        self._server = socketserver.ThreadingTCPServer((ADDRESS, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def address(self) -> tuple[int, str]:
        """Return the port, and the token by which a rank shows that it is one."""
        return self._server.server_address[1], self._token

    def __enter__(self) -> Inbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def receive(self, seconds: float) -> Message | None:
        """Return the next message; None if there is none for a while."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        token, put = self._token, self._messages.put

        class RankConnection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                shown, _, rank = self.rfile.readline().decode().strip().partition(" ")
                if not secrets.compare_digest(shown, token):
                    return
                with suppress(OSError):  # the rank was killed
                    for line in self.rfile:
                        if line.endswith(b"\n"):  # or it was killed in mid-sentence
                            put(_read(line, int(rank)))
                put(Message(int(rank), "hung up"))

        return RankConnection


def _read(line: bytes, rank: int) -> Message:
    try:
        message: Message = pickle.loads(base64.b64decode(line))
    except Exception as error:  # such as a class that is not here
        return Message(rank, "refused", f"sent what cannot be read here: {error!r}", time.time())
    return message


class Line:
    """A rank's connection to the process that started it.

    Args:
        rank: this process's rank.
        port: the inbox's port.
        token: its token.
    """

    def __init__(self, rank: int, port: int, token: str) -> None:
        self._rank = rank
        self._socket = socket.create_connection((ADDRESS, port))
        self._socket.sendall(f"{token} {rank}\n".encode())
        threading.Thread(target=self._end_with_other_side, daemon=True).start()

    def send(self, kind: str, content: Any = None) -> None:
        """Send a message.

        Raises:
            Exception: if the content cannot be pickled.
        """
        message = pickle.dumps(Message(self._rank, kind, content, time.time()))
        self._socket.sendall(base64.b64encode(message) + b"\n")

    def _end_with_other_side(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # what this rank started goes with it
        os._exit(1)
