"""Many files to clips, side by side: a stream of requests in, a stream of clips out, in order and bounded.

The work runs on threads, which decode in parallel because FFmpeg runs without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingsError
from ..record import CaptionRequest, Clip, Failure
from .reader import DEFAULT_LIMITS, ReadLimits, read_clip
from .sampling import FramePolicy

MAX_BYTES_IN_FLIGHT = 1 << 29
"""Pixels that may wait for the consumer, in bytes, unless told otherwise."""
READING_NICENESS = 10
"""How far threads that read stand back behind those that run the model, where cores are short."""
_MAX_WORKERS = 8
_AHEAD_PER_WORKER = 2
"""Videos in flight for each worker: one being read and one that waits."""


def read_clips(
    requests: Iterable[CaptionRequest],
    policy: FramePolicy,
    *,
    workers: int | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    root: Path | None = None,
    max_bytes_in_flight: int = MAX_BYTES_IN_FLIGHT,
) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    """Read the videos of requests, several at a time.

    `requests` is advanced only while the consumer waits for the next clip, in the consumer's thread, and never further
    than the videos in flight: two a worker, fewer where their pixels would exceed `max_bytes_in_flight` (a video not
    yet read counts as much as the largest so far; one video is always read). Where `requests` raises, what it gave
    before comes out first. Closing the generator drops what waits and returns when the videos being read are done.

    Args:
        requests: what to read.
        policy: which frames, at which size.
        workers: videos read at once; None: one for each processor this process may use, at most 8.
        limits: what is refused.
        root: folder that relative paths are relative to.
        max_bytes_in_flight: bound on pixels in bytes.

    Yields:
        Each request with its clip or failure, in the order of the requests.

    Raises:
        SettingsError: where `workers` or `max_bytes_in_flight` is below 1.
    """
    if workers is not None and workers < 1:
        raise SettingsError(f"workers must be at least 1; got {workers}: raise it, or leave it out")
    if max_bytes_in_flight < 1:
        raise SettingsError(f"max_bytes_in_flight must be at least 1; got {max_bytes_in_flight}: raise it")
    count = workers or min(usable_processors(), _MAX_WORKERS)
    flight = _Flight(max_videos=count * _AHEAD_PER_WORKER, max_bytes=max_bytes_in_flight)

    def read(request: CaptionRequest) -> Clip | Failure:
        return read_clip(request.video, policy, window=request.window, limits=limits, root=root)

    return _stream(requests, read, flight, workers=count)


def usable_processors() -> int:
    """Processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


@dataclass(slots=True)
class _Flight:
    """Videos between the requests and the consumer."""

    max_videos: int
    max_bytes: int
    videos: deque[tuple[CaptionRequest, Future[Clip | Failure]]] = field(default_factory=deque)
    largest: int = 0

    def has_room(self) -> bool:
        """Whether one more video may be started."""
        if not self.videos:
            return True
        return len(self.videos) < self.max_videos and self._expected_bytes() <= self.max_bytes

    def _expected_bytes(self) -> int:
        """Bytes of what is in flight and of one more video."""
        sizes = [_nbytes(future) for _, future in self.videos]
        self.largest = max([self.largest, *(size for size in sizes if size is not None)])
        return sum(self.largest if size is None else size for size in sizes) + self.largest

    def take(self) -> tuple[CaptionRequest, Clip | Failure]:
        """Wait for the oldest video."""
        request, future = self.videos[0]
        result = future.result()
        if isinstance(result, Clip):
            self.largest = max(self.largest, result.nbytes)
        self.videos.popleft()
        return request, result


def _nbytes(future: Future[Clip | Failure]) -> int | None:
    """Bytes of a finished clip; None while it is not known."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    result = future.result()
    return result.nbytes if isinstance(result, Clip) else 0


def _step_back() -> None:
    """Let this thread run when the model does not need the processor: reading is ahead of it, and must not slow it."""
    with contextlib.suppress(AttributeError, OSError):  # not on macOS or Windows, or not allowed
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(READING_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _stream(
    requests: Iterable[CaptionRequest],
    read: Callable[[CaptionRequest], Clip | Failure],
    flight: _Flight,
    *,
    workers: int,
) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    source = iter(requests)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-clip", initializer=_step_back)
    ended, broken = False, None
    try:
        while True:
            while not ended and flight.has_room():
                try:
                    request = next(source)
                except StopIteration:
                    ended = True
                except Exception as exc:  # raised again below, behind the videos that were asked for before it
                    ended, broken = True, exc
                else:
                    flight.videos.append((request, pool.submit(read, request)))
            if not flight.videos:
                break
            yield flight.take()
        if broken is not None:
            raise broken
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
