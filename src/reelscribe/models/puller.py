"""Prefetch items of iterables in background threads.

Knows nothing about the items.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

JOIN_SECONDS = 0.5
"""Time to wait for a thread that was asked to stop; if it needs longer, it ends by itself."""

T = TypeVar("T")


class Background(ABC):
    """Work in a background thread, and its outcome; a context manager that closes it.

    Args:
        thread_name: name of the thread.
    """

    def __init__(self, thread_name: str) -> None:
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closing = self._over = False
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    @abstractmethod
    def _work(self) -> None:
        """The thread's work, until `_closing` is set; its exceptions are for the owner to handle."""

    @abstractmethod
    def _notify(self) -> None:
        """Called in that thread when its work is finished."""

    @abstractmethod
    def close(self) -> None:
        """Ask the thread to stop, and wait briefly."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        error = None
        try:
            self._work()
        except BaseException as exc:  # whatever it is, it is raised in the owner
            error = exc
        with self._changed:
            self._error, self._over = error, True
            self._changed.notify_all()
        self._notify()


class Puller(Background, Generic[T]):
    """Advances an iterable in a background thread, and holds a few of its items ready.

    That thread also closes the iterable's iterator, if it has a `close`, since no other thread may while it runs.

    Args:
        items: the source; no item may be None.
        ahead: most items that are held ready.
        notify: called in that thread whenever the result of `take` or `ended` changes.
    """

    def __init__(self, items: Iterable[T], *, ahead: int = 1, notify: Callable[[], None] = lambda: None) -> None:
        super().__init__("puller")
        self._tell = notify
        self._items = items
        self._ahead = ahead
        self._ready: deque[T] = deque()
        self._thread.start()

    def take(self, timeout_seconds: float | None = 0) -> T | None:
        """The next item, or None if none is ready within the time; a time of None waits until there is one.

        Raises:
            BaseException: what the iterable raised, after the items before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over, timeout_seconds)
            item = self.take_ready()
            if item is None and self._error is not None:
                raise self._error
            return item

    @property
    def ended(self) -> bool:
        """Whether `take` has nothing more to return or to raise."""
        return self.over and self.error is None

    def take_ready(self) -> T | None:
        """The next item, or None if none is ready; raises nothing."""
        with self._changed:
            if not self._ready:
                return None
            self._changed.notify_all()
            return self._ready.popleft()

    @property
    def over(self) -> bool:
        """Whether no more items come; if because of an exception, `error` has it."""
        with self._changed:
            return self._over and not self._ready

    @property
    def error(self) -> BaseException | None:
        """What the iterable raised."""
        with self._changed:
            return self._error

    def close(self) -> None:
        """Stop; the thread ends when the iterable's current `next` returns, and its item is lost."""
        self.stop()
        join_briefly(self._thread)

    def stop(self) -> None:
        """Like `close`, without waiting for the thread."""
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has ended, for as long as that takes."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _notify(self) -> None:
        self._tell()

    def _work(self) -> None:
        iterator = iter(self._items)
        try:
            while self._has_room() and self._pull_one(iterator):
                pass
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _has_room(self) -> bool:
        """Wait until one more item may be held ready; False when no more are needed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._ready) < self._ahead)
            return not self._closing

    def _pull_one(self, iterator: Iterator[T]) -> bool:
        """Hold the next item ready; False when there is none or it is no longer needed."""
        item = next(iterator, None)
        with self._changed:
            if item is None or self._closing:
                return False
            self._ready.append(item)
            self._changed.notify_all()
        self._notify()
        return True


class SideBySide(Generic[T]):
    """An iterator over the items of several iterables, each advanced in its own thread, in order of arrival.

    An exception of one is raised when the others have ended too, and all their items have been taken. A context
    manager: at its end the threads are joined.

    Args:
        streams: the sources; no item may be None.
        stop: called at the end of the context; it should end the streams soon, wherever they are.
    """

    def __init__(self, streams: Sequence[Iterable[T]], *, stop: Callable[[], None] = lambda: None) -> None:
        self._changed = threading.Condition()
        self._stop = stop
        self._pullers = [Puller(stream, notify=self._notify) for stream in streams]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._changed:
            while True:
                for puller in self._pullers:
                    if (item := puller.take_ready()) is not None:
                        return item
                if all(puller.over for puller in self._pullers):
                    raise next((puller.error for puller in self._pullers if puller.error is not None), StopIteration())
                self._changed.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for puller in self._pullers:
            puller.stop()
        self._stop()
        for puller in self._pullers:
            puller.join()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def join_briefly(thread: threading.Thread) -> None:
    """Wait briefly for a thread that was asked to stop; the garbage collector may call this in that thread."""
    if thread is not threading.current_thread():
        thread.join(JOIN_SECONDS)
