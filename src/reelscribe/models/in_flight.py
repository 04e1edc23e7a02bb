"""Answer many requests concurrently: a stream in, an event loop in its own thread, a stream out.

Knows nothing about models: a coroutine answers a request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ..timing import BusyClock
from ..types import CaptionRequest, CaptionResult, Clip
from .puller import Puller

MAX_BYTES_IN_FLIGHT = 1 << 30
"""Pixels of the requests being answered, in bytes, at which no further request is taken."""

Answer = Callable[[CaptionRequest, Clip | None], Coroutine[Any, Any, CaptionResult]]
T = TypeVar("T")
_Answered = Future[CaptionResult]


class InFlight:
    """Keeps a bounded number of requests in flight in an asynchronous back end.

    Args:
        max_requests: requests being answered at once, at most.
        max_bytes: no further request is taken while the pixels of those being answered reach this many bytes.
    """

    def __init__(self, *, max_requests: int, max_bytes: int = MAX_BYTES_IN_FLIGHT) -> None:
        self.max_requests = max_requests
        """Requests being answered at once, at most; may be set between streams."""
        self._max_bytes = max_bytes
        self._closing = False
        self._clock = BusyClock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captioner-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine in the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Seconds in which at least one request was being answered, so far, as `model`."""
        return {"model": self._clock.seconds}

    def stream(self, clips: Iterable[tuple[CaptionRequest, Clip | None]], answer: Answer) -> Iterator[CaptionResult]:
        """Send requests as they come, yield results as they finish; neither waits for the other.

        `clips` is advanced, and finally closed, in its own thread, one request ahead of those in flight. An exception
        of `clips` or of `answer` is raised here, and requests in flight are cancelled, as they are when the generator
        is closed.
        """
        flight: dict[_Answered, int] = {}
        events: SimpleQueue[_Answered | None] = SimpleQueue()
        puller = Puller(clips, notify=lambda: events.put(None))
        try:
            while True:
                self._send(flight, puller, answer, events)
                if puller.ended and not flight:
                    return
                finished = events.get()
                if finished is not None:
                    del flight[finished]
                    yield finished.result()
        finally:
            for future in flight:
                future.cancel()
            puller.close()

    def _send(
        self,
        flight: dict[_Answered, int],
        puller: Puller[tuple[CaptionRequest, Clip | None]],
        answer: Answer,
        events: SimpleQueue[_Answered | None],
    ) -> None:
        """Take ready clips, as far as there is room."""
        while not self._is_full(flight) and (job := puller.take()) is not None:
            request, clip = job
            future = asyncio.run_coroutine_threadsafe(self._timed(answer, request, clip), self._loop)
            flight[future] = 0 if clip is None else clip.nbytes
            future.add_done_callback(events.put)

    async def _timed(self, answer: Answer, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        with self._clock:
            return await answer(request, clip)

    def _is_full(self, flight: dict[_Answered, int]) -> bool:
        return len(flight) >= self.max_requests or sum(flight.values()) >= self._max_bytes

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel requests in flight, run `last`, then stop the loop and its thread; calling it once is enough.

        The garbage collector may call this in the loop's own thread, which must not wait for itself.
        """
        if self._closing:
            return
        self._closing = True
        if threading.current_thread() is self._thread:
            threading.Thread(target=self._end, args=(last,), name="captioner-end").start()
            return
        self._end(last)

    def _end(self, last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        self.run(_cancel_others())
        if last is not None:
            self.run(last())
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class FlightCaptioner:
    """Common base of captioners that use an `InFlight`."""

    _flight: InFlight

    @property
    def batch_size(self) -> int:
        """Most videos in the engine, or at the server, at once; may be set between streams."""
        return self._flight.max_requests

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._flight.max_requests = size

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Seconds in which it had at least one video, so far, as `model`."""
        return self._flight.busy_seconds


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
