"""Bounded background writer; `put` blocks while the queue is full."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ...timing import BusyClock

MAX_WAITING = 64
"""Most items that are not written yet."""
GATHER_SECONDS = 0.005
"""Time the first item waits for others: waking the thread for each item costs as much as writing it."""

T = TypeVar("T")


class Writer(Generic[T]):
    """Runs a function over items in a background thread, in order.

    Args:
        write: called with each item; not called again once it has raised.
        max_waiting: most items that are not written yet, half of them queued and half held by the thread; beyond that
            `put` blocks.
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
        """Queue an item.

        Raises:
            BaseException: raised while writing an earlier one.
        """
        self._check()
        with self._changed:
            while len(self._line) >= self._longest:
                self._changed.wait()
            self._line.append(item)
            if self._sleeps or len(self._line) == self._longest:
                self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all items are written, and stop the thread.

        Raises:
            BaseException: raised while writing.
        """
        self.close()
        self._check()

    def close(self) -> None:
        """Wait until all items are written, and stop the thread; ignores errors."""
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
        """All queued items, so that threads switch once for many items; empty at the end."""
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
        except BaseException as exc:  # raised again in the caller's thread
            self._error = exc
