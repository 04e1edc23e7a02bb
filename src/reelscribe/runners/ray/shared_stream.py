"""One captioner's stream, shared by many callers: requests enter as they arrive, and no caller waits for another's.

Independent of where requests come from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...answering.acceptance import Acceptance
from ...answering.tries import Final, Tries, caption
from ...models.captioner import Captioner
from ...types import CaptionRequest, CaptionResult, Clip, RequestId

Load = Callable[[], Clip | None]
"""Loads the clip of a request when the captioner takes it."""

STALL_SECONDS = 30.0
"""After this long without an answer or a new request the stream is ended, so that the captioner releases what it holds
back."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A pending request."""

    request: CaptionRequest
    load: Load
    result: CaptionResult | None = None


class SharedStream:
    """Feeds a captioner from any thread; the model runs in a separate thread.

    A video whose answer is unusable is retried, like in the pipe (`answering.tries`).

    Args:
        captioner: the model.
        acceptance: which answers are usable.
        stall_seconds: see `STALL_SECONDS`.
    """

    def __init__(self, captioner: Captioner, acceptance: Acceptance, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._captioner = captioner
        self._tries = Tries(acceptance)
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Asked] = deque()
        self._open: dict[RequestId, _Asked] = {}
        self._moved = time.monotonic()
        self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="caption-stream", daemon=True).start()

    def ask(self, requests: Sequence[tuple[CaptionRequest, Load]]) -> list[CaptionResult]:
        """The answers, in the order of the requests; waits for all of them.

        Raises:
            Exception: raised by the captioner, for this or another caller: it answers nobody any more.
        """
        jobs = [_Asked(request, load) for request, load in requests]
        with self._changed:
            self._wait(lambda: not any(job.request.id in self._open for job in jobs))
            self._open.update((job.request.id, job) for job in jobs)
            self._queue += jobs
            self._changed.notify_all()
            self._wait(lambda: all(job.result is not None for job in jobs))
        return [job.result for job in jobs if job.result is not None]

    def _wait(self, done: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._error is not None or done())
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Hand out nothing more; the captioner's stream ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # the thread of the model

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._caption()
        except BaseException as exc:  # raised again by everybody who asks
            with self._changed:
                self._error = exc
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            return not self._closed

    def _caption(self) -> None:
        """Run one stream through the captioner, from its first request to its end."""
        caption(self._captioner, _Clips(self), self._accept)
        for result in self._tries.lost():
            self._accept(result)

    def next(self) -> _Asked | None:
        """The next request, once there is one; None ends the captioner's stream."""
        with self._changed:
            while not self._queue and not self._closed:
                if not self._changed.wait(self._stall_seconds) and self._is_stalled():
                    break
            if self._closed or not self._queue:
                return None
            job = self._queue.popleft()
            self._tries.hand_out(job.request)
            self._moved = time.monotonic()
            return job

    def _is_stalled(self) -> bool:
        return self._tries.awaits and not self._queue and time.monotonic() - self._moved >= self._stall_seconds

    def _accept(self, result: CaptionResult) -> None:
        taken = self._tries.accept(result)
        if taken is None:
            return
        with self._changed:
            self._moved = time.monotonic()
            if isinstance(taken, Final):
                self._open.pop(taken.request.id).result = taken.result
            else:
                job = self._open[taken.id]
                job.request = taken
                self._queue.append(job)
            self._changed.notify_all()


class _Clips:
    """The stream the captioner pulls from, until it is ended."""

    def __init__(self, stream: SharedStream) -> None:
        self._stream = stream
        self.ended = False

    def __iter__(self) -> _Clips:
        return self

    def __next__(self) -> tuple[CaptionRequest, Clip | None]:
        job = None if self.ended else self._stream.next()
        if job is None:
            self.ended = True
            raise StopIteration
        return job.request, job.load()

    def close(self) -> None:
        """Hand out nothing more."""
        self.ended = True


class Turns:
    """A lock for many shared holders or one exclusive holder; waiting exclusive holders take precedence."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = self._wanting = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock shared while the body runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._wanting)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock exclusively while the body runs."""
        with self._changed:
            self._wanting += 1
            self._changed.wait_for(lambda: not self._taken and not self._sharing)
            self._wanting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
