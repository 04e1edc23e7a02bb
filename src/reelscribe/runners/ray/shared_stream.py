"""One captioner's stream, shared by many who ask: requests enter as they come, and no asker waits for another's.

Knows threads and the captioner; not where requests come from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...errors import ModelError
from ...models.captioner import Captioner
from ...rows.plan import Planner
from ...types import CaptionRequest, CaptionResult, Clip, Failure, RequestId

Load = Callable[[], Clip | None]
"""Gives the clip of a request when the captioner takes it."""

STALL_SECONDS = 30.0
"""Time without an answer, and without anything more to hand out, after which a stream is ended so that the captioner
gives what it holds back."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A request on its way."""

    request: CaptionRequest
    load: Load
    taken: bool = False
    again: bool = False
    result: CaptionResult | None = None


class SharedStream:
    """Feeds a captioner from any thread; the model runs in a thread of its own.

    A video whose answer is not usable is asked about once more with another seed, as by the pipe.

    Args:
        captioner: the model.
        planner: says which answers are usable.
        stall_seconds: see `STALL_SECONDS`.
    """

    def __init__(self, captioner: Captioner, planner: Planner, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._captioner = captioner
        self._planner = planner
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Asked] = deque()
        self._open: dict[RequestId, _Asked] = {}
        self._moved = time.monotonic()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="caption-stream", daemon=True).start()

    def ask(self, requests: Sequence[tuple[CaptionRequest, Load]]) -> list[CaptionResult]:
        """The answers, in the order of the requests; waits for all of them.

        Raises:
            Exception: what the captioner raised, also for another asker: it answers nobody any more.
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
        """One stream through the captioner, from its first request until it is ended."""
        self._ended = False
        answers = self._captioner.caption(self._clips())
        try:
            for result in answers:
                self._accept(result)
        finally:
            if hasattr(answers, "close"):
                answers.close()
        if not self._ended:
            raise ModelError("the captioner ended before it was asked about every video; this is a bug of it")
        self._give_up_lost()

    def _clips(self) -> Iterator[tuple[CaptionRequest, Clip | None]]:
        while (job := self._next()) is not None:
            yield job.request, job.load()

    def _next(self) -> _Asked | None:
        """The next request, as soon as there is one; None ends the stream."""
        with self._changed:
            while not self._queue and not self._closed:
                if not self._changed.wait(self._stall_seconds) and self._is_stalled():
                    break
            if self._closed or not self._queue:
                self._ended = True
                return None
            job = self._queue.popleft()
            job.taken = True
            self._moved = time.monotonic()
            return job

    def _is_stalled(self) -> bool:
        waits = any(job.taken for job in self._open.values())
        return waits and not self._queue and time.monotonic() - self._moved >= self._stall_seconds

    def _accept(self, result: CaptionResult) -> None:
        result = self._planner.checked(result)
        with self._changed:
            job = self._open.get(result.request_id)
            if job is None or not job.taken:
                return
            self._moved = time.monotonic()
            if not job.again and self._planner.is_worth_another_try(result):
                job.request, job.again, job.taken = self._planner.asked_again(job.request), True, False
                self._queue.append(job)
            else:
                job.result = self._planner.of_second_try(result) if job.again else result
                del self._open[result.request_id]
            self._changed.notify_all()

    def _give_up_lost(self) -> None:
        with self._changed:
            lost = [job.request.id for job in self._open.values() if job.taken]
        for id_ in lost:
            failure = Failure("model_error", "the captioner ended without an answer for this video")
            self._accept(CaptionResult(id_, failure=failure))


class Turns:
    """Many share, or one is alone; who wants to be alone goes before those who share."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = self._wanting = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While the body runs nobody is alone."""
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
        """While the body runs nobody else has a turn."""
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
