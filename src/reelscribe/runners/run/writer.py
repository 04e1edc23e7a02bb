"""A thread that writes: what is handed over waits in line, and a long line holds the giver back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Generic, TypeVar

from ...timing import BusyClock

MAX_WAITING = 64
"""Items in line."""

T = TypeVar("T")


class Writer(Generic[T]):
    """Runs a function over items in a thread of its own, in order.

    Args:
        write: takes an item; once it has raised, it is not called again.
        max_waiting: items in line at which `put` waits.
    """

    def __init__(self, write: Callable[[T], None], *, max_waiting: int = MAX_WAITING) -> None:
        self._write = write
        self._line: Queue[T | None] = Queue(max_waiting)
        self._error: BaseException | None = None
        self.clock = BusyClock()
        """The time spent writing."""
        self._thread = threading.Thread(target=self._run, name="write-rows", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand an item over.

        Raises:
            BaseException: what writing an earlier one raised.
        """
        self._check()
        self._line.put(item)

    def finish(self) -> None:
        """Wait until all are written, and end the thread.

        Raises:
            BaseException: what writing raised.
        """
        self.close()
        self._check()

    def close(self) -> None:
        """Wait until all are written, and end the thread; says nothing of errors."""
        if self._thread.is_alive():
            self._line.put(None)
            self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._line.get()) is not None:
            if self._error is None:
                self._try(item)

    def _try(self, item: T) -> None:
        try:
            with self.clock:
                self._write(item)
        except BaseException as exc:  # raised where items come from
            self._error = exc
