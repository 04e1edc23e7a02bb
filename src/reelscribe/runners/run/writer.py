"""A thread that writes: what is handed over waits in line, and a long line holds the giver back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ...timing import BusyClock

MAX_WAITING = 64
"""Items that are not written yet."""
GATHER_SECONDS = 0.005
"""Time for which the first of them waits for others: a thread that is woken for each item costs as much as the item."""

T = TypeVar("T")


class Writer(Generic[T]):
    """Runs a function over items in a thread of its own, in order.

    Args:
        write: takes an item; once it has raised, it is not called again.
        max_waiting: items that are not written yet, half of them in line and half in the hands of the thread; with more
            `put` waits.
    """

    def __init__(self, write: Callable[[T], None], *, max_waiting: int = MAX_WAITING) -> None:
        self._write = write
        self._longest = max(1, max_waiting // 2)
        self._line: list[T] = []
        self._changed = threading.Condition()
        self._sleeps = self._closed = False
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
        with self._changed:
            while len(self._line) >= self._longest:
                self._changed.wait()
            self._line.append(item)
            if self._sleeps or len(self._line) == self._longest:
                self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all are written, and end the thread.

        Raises:
            BaseException: what writing raised.
        """
        self.close()
        self._check()

    def close(self) -> None:
        """Wait until all are written, and end the thread; says nothing of errors."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while items := self._next_items():
            if self._error is None:
                self._try(items)

    def _next_items(self) -> list[T]:
        """All that waits, so that threads change once for many items; nothing when the end is reached."""
        with self._changed:
            while not self._line and not self._closed:
                self._sleeps = True
                self._changed.wait()
            self._sleeps = False
            if len(self._line) < self._longest and not self._closed:
                self._changed.wait(GATHER_SECONDS)
            items, self._line = self._line, []
            self._changed.notify_all()
            return items

    def _try(self, items: list[T]) -> None:
        try:
            with self.clock:
                for item in items:
                    self._write(item)
        except BaseException as exc:  # raised where items come from
            self._error = exc
