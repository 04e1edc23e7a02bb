"""The main loop of a reading process: one video at a time, until its parent is gone.

Started as `python -m reelscribe.video.processes.child DESCRIPTOR READER`; it imports neither the caller's script nor a
model's library.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...types import Clip, Failure
from ..frames.library_rules import Answer, Question, ask_with
from ..process_memory import leave_no_core, memory_bound, private_bytes
from .jobs import Doubt
from .transport import send_clip

READING_NICENESS = 10
"""How much lower the priority of reading is than that of the model: reading runs ahead, and must not slow it."""
PARENT_CHECK_SECONDS = 1.0
"""Interval of the checks that the parent is alive; another fork may hold its end of the socket open."""

CLIP, FAILURE, ERROR, QUESTION = "clip", "failure", "error", "question"
"""Content of a message to the parent: an answer, or a question that must be answered first."""

Read = Callable[..., Clip | Failure | Doubt]


def main(arguments: list[str]) -> None:
    """Serve requests until the other end is closed."""
    descriptor, reader = int(arguments[0]), arguments[1]
    with contextlib.suppress(OSError):  # not everywhere allowed
        os.nice(READING_NICENESS)
    leave_no_core()
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        read = _function(reader)
        own_bytes = private_bytes()
        inbox = _Inbox(connection)
        ask_with(inbox.ask)
        connection.send("ready")
        while True:
            video, settings = inbox.request()
            _answer(connection, partial(_within_memory, read, own_bytes, video, settings), parent=parent)


class _Inbox:
    """Messages from the parent: requests, which may arrive early, and answers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: deque[tuple[Any, dict[str, Any]]] = deque()

    def request(self) -> tuple[Any, dict[str, Any]]:
        """The next video, and how it is read."""
        request: tuple[Any, dict[str, Any]] = self._requests.popleft() if self._requests else self._connection.recv()
        return request

    def ask(self, question: Question) -> Sequence[int]:
        """The parent's answer."""
        self._connection.send((QUESTION, 0.0, question))
        while True:
            what, value = self._connection.recv()
            if isinstance(value, Answer):
                return value.indices
            self._requests.append((what, value))


def _function(name: str) -> Read:
    module, _, function = name.partition(":")
    read: Read = getattr(importlib.import_module(module), function)
    return read


def _within_memory(read: Read, own_bytes: int | None, video: Any, settings: dict[str, Any]) -> Clip | Failure | Doubt:
    """The result of reading within the memory limit, beyond what the process already has."""
    limits = settings["limits"]
    with contextlib.suppress(MemoryError), memory_bound(own_bytes and own_bytes + (limits.max_read_memory_mib << 20)):
        return read(video, **settings)
    return Doubt(Failure("out_of_memory", f"reading the video takes more than {limits.memory_text}"))


def _answer(connection: Connection, read: Callable[[], Any], *, parent: int) -> None:
    began = time.monotonic() - _queued_seconds()
    try:
        outcome = read()
        kind = CLIP if isinstance(outcome, Clip) else FAILURE
    except Exception as exc:  # a bug; raised again in the process that takes the clips
        kind, outcome = ERROR, _portable(exc)
    seconds = time.monotonic() - _queued_seconds() - began
    connection.send((kind, seconds, None if kind == CLIP else outcome))
    if kind == CLIP:
        send_clip(connection, outcome, to_pid=parent)


def _queued_seconds() -> float:
    """How long this thread has waited for a busy core, if the system reports it: that does not count as work."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _portable(exc: Exception) -> Exception:
    """The exception, or an equivalent one if it cannot be pickled."""
    import pickle

    try:
        pickle.loads(pickle.dumps(exc))
    except Exception:  # whatever its class does
        return RuntimeError(f"{type(exc).__name__}: {exc}")
    return exc


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
