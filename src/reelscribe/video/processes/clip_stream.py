"""Read many files to clips in parallel: a stream of requests in, a bounded stream of clips out, as they are ready.

Requests are taken in one thread; each reading process has a thread here that sends it work and receives the results. A
video that is requested again while it is still cached is read once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...stores import StoredPath
from ...types import CaptionRequest, Clip, Failure
from ..frames.library_rules import ParentsRule
from ..frames.moments import FramePolicy
from ..limits import DEFAULT_LIMITS, ReadLimits
from ..reader import read_clip
from .jobs import MAX_ATTEMPTS, Doubt, Job, RecentClips, plain_video
from .pool import LostError, Worker, WorkerPool, usable_processors

__all__ = ["ClipStream", "WorkerPool", "read_clips", "usable_processors"]

MAX_BYTES_PER_WORKER = 1 << 27
"""Default bound on the pixels that wait for the consumer, in bytes per process: a clip of Qwen3-VL has at most 75
MB."""
RECENT_SHARE = 0.25
"""Share of the bytes of the first processes that may hold clips already handed out, in case they are requested
again."""
MAX_READY = 64
"""Answers that may wait for the consumer, however small they are; failures have no size."""
AHEAD_PER_WORKER = 2
"""Videos requested ahead per process, besides those that are ready."""
SHORT_SECONDS = 0.25
"""If videos are read faster than this on average, a process is sent two at a time, so that it never waits."""
GROW_AFTER_SECONDS = 0.5
"""Time the consumer waits for clips before another process is started."""


def read_clips(
    requests: Iterable[CaptionRequest],
    policy: FramePolicy,
    *,
    workers: int | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    root: Path | StoredPath | None = None,
    prefetch_bytes: int | None = None,
) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    """Read the videos of requests in separate processes, which end with the stream.

    Args:
        requests: what to read; advanced in its own thread, as far as there is room.
        policy: which frames, at which size.
        workers: processes; None: as many as there are cores, added as needed.
        limits: what is refused.
        root: folder that relative paths are relative to; None: the working directory.
        prefetch_bytes: bound on pixels in bytes; None: `MAX_BYTES_PER_WORKER` per process.

    Yields:
        Each request with its clip or failure, as they are ready.

    Raises:
        SettingsError: `workers` or `prefetch_bytes` is below 1.
    """
    pool = WorkerPool(workers, prefetch_bytes=prefetch_bytes)
    stream = ClipStream(pool, requests, policy, limits=limits, root=root)
    return _closing(stream, pool)


def _closing(stream: ClipStream, pool: WorkerPool) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    try:
        yield from stream
    finally:
        stream.close()
        pool.close()


class ClipStream:
    """Clips of a stream of requests; an iterator whose `close` may be called from any thread.

    No further request is taken while the pixels that wait for the consumer, with those being read counted like the
    largest so far, reach the pool's `prefetch_bytes`, or `MAX_BYTES_PER_WORKER` per process; one video is always read.
    If `requests` raises, earlier requests come out first.

    Args:
        pool: the processes that read; they stay when the stream ends.
        requests: what to read; advanced, and closed if it is a generator, in its own thread.
        policy: which frames, at which size.
        limits: what is refused.
        root: folder that relative paths are relative to; None: the working directory.
    """

    def __init__(
        self,
        pool: WorkerPool,
        requests: Iterable[CaptionRequest],
        policy: FramePolicy,
        *,
        limits: ReadLimits = DEFAULT_LIMITS,
        root: Path | StoredPath | None = None,
    ) -> None:
        self._pool = pool
        self._requests = iter(requests)
        self._limits = limits
        self._rule = policy.rule
        if policy.rule is not None:  # reading processes ask for it here
            policy = replace(policy, rule=ParentsRule())
        self._settings: dict[str, Any] = {"policy": policy, "limits": limits, "root": _whole(root)}
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._unread: dict[Hashable, Job] = {}
        self._ready: deque[tuple[CaptionRequest, Clip | Failure]] = deque()
        self._ready_bytes = self._largest = 0
        self._recent = RecentClips(int(RECENT_SHARE * self._max_bytes(pool.first)))
        self._ended = self._closed = self._begun = False
        self._broken: BaseException | None = None
        self._bug: BaseException | None = None
        self._starved_seconds = self._lost_seconds = 0.0
        self.workers = 0
        """Processes that read for this stream."""
        self.busy_seconds = 0.0
        """Time they spent reading, summed."""
        self.videos_read = 0
        """Videos they read; one that was requested again while cached counts once."""

    # the consumer's side

    def __iter__(self) -> ClipStream:
        return self

    def __next__(self) -> tuple[CaptionRequest, Clip | Failure]:
        with self._changed:
            self._begin()
            while not self._ready or self._closed:
                self._raise_or_stop()
                self._wait_for_a_clip()
            request, outcome = self._ready.popleft()
            self._ready_bytes -= _nbytes(outcome)
            self._changed.notify_all()
            return request, outcome

    def _raise_or_stop(self) -> None:
        """End the iteration when nothing more will come."""
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        if self._closed:
            raise StopIteration
        if self._ended and not self._unread:
            broken, self._broken = self._broken, None
            self._closed = True
            if broken is not None:
                raise broken
            raise StopIteration

    def _wait_for_a_clip(self) -> None:
        began = time.monotonic()
        self._changed.wait(GROW_AFTER_SECONDS)
        if self._queue:
            self._starved_seconds += time.monotonic() - began
        if self._starved_seconds >= GROW_AFTER_SECONDS:
            self._starved_seconds = 0.0
            self._add_worker()

    def _max_bytes(self, workers: int) -> int:
        """Bound on pixels in flight."""
        return self._pool.prefetch_bytes or workers * MAX_BYTES_PER_WORKER

    def close(self) -> None:
        """Stop taking requests and drop what is waiting; returns at once, processes finish what they are reading."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._ready.clear()
            self._changed.notify_all()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        for _ in range(self._pool.first):
            self._add_worker()
        threading.Thread(target=self._take_requests, name="read-requests", daemon=True).start()

    def _add_worker(self) -> None:
        """Add a process if allowed; if that fails, the existing ones continue."""
        try:
            worker = self._pool.lend()
        except OSError:
            if not self.workers:
                raise
            return
        if worker is not None:
            self.workers += 1
            threading.Thread(target=self._serve, args=(worker,), name="read-clip", daemon=True).start()

    # requests, in their own thread

    def _take_requests(self) -> None:
        try:
            while self._wait_for_room():
                request = next(self._requests, None)
                if request is None:
                    break
                self._accept(request)
        except BaseException as exc:  # raised again in the consumer, after the videos that were requested before it
            self._broken = exc
        finally:
            if hasattr(self._requests, "close"):
                self._requests.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room())
            return not self._closed

    def _has_room(self) -> bool:
        """Whether one more video may be requested."""
        if not self._unread and not self._ready:
            return True
        if len(self._ready) >= MAX_READY or len(self._unread) >= AHEAD_PER_WORKER * max(self.workers, 1):
            return False
        most = self._max_bytes(self.workers)
        return self._ready_bytes + (len(self._unread) + 1) * self._largest <= most

    def _accept(self, request: CaptionRequest) -> None:
        """Answer from the cache, join a read in progress, or queue a new one."""
        video = plain_video(request.video)
        key = (video, request.window)
        with self._changed:
            if video is None:  # no process is needed
                self._hand_out([request], read_clip(request.video, **self._settings))
                return
            recent = self._recent.get(key)
            if recent is not None:
                self._hand_out([request], recent)
            elif key in self._unread:
                self._unread[key].requests.append(request)
            else:
                self._unread[key] = job = Job(key, video, {**self._settings, "window": request.window}, [request])
                self._queue.append(job)
                self._changed.notify_all()

    # processes, each in its own thread

    def _serve(self, worker: Worker) -> None:
        """Keep one process busy until nothing is left to read, and return it; errors are raised in the consumer."""
        held = [worker]
        try:
            self._keep_busy(held)
        except BaseException as exc:  # a bug in reading, or the machine cannot start more processes
            self._stop(exc)
            self._pool.drop(held[0])
        else:
            self._pool.take_back(held[0])

    def _keep_busy(self, held: list[Worker]) -> None:
        """Serve with the process in `held`, which its successors replace when it dies."""
        sent: deque[Job] = deque()
        again: deque[Job] = deque()
        while True:
            try:
                if self._answered(held[0], sent, again):
                    return
            except LostError as lost:
                held[0] = self._successor(held[0])
                again = self._blame(sent, lost)
                sent.clear()

    def _successor(self, worker: Worker) -> Worker:
        successor = self._pool.replace(worker)
        if successor is None:
            raise RuntimeError("the processes were ended while videos were being read")
        return successor

    def _stop(self, exc: BaseException) -> None:
        """Raise this in the consumer, and end everything else."""
        with self._changed:
            self._bug = self._bug or exc
            self._closed = True
            self._changed.notify_all()

    def _answered(self, worker: Worker, sent: deque[Job], again: deque[Job]) -> bool:
        """Send what may be sent, receive one answer; True when there is nothing more to do."""
        for job in [again.popleft()] if again else self._next_jobs(len(sent)):
            sent.append(job)
            worker.send(job.video, {**job.settings, "plain": job.attempts > 0})
        if not sent:
            return True
        outcome, seconds = worker.receive(limits=self._limits, rule=self._rule)
        if isinstance(outcome, Doubt) and sent[0].attempts + 1 < MAX_ATTEMPTS:
            raise LostError(outcome.failure, seconds)
        self._deliver(sent.popleft(), outcome, seconds)
        return False

    def _next_jobs(self, sent: int) -> list[Job]:
        """What to send to a process that has `sent` videos to read; waits if it has none."""
        with self._changed:
            if not sent:
                self._changed.wait_for(lambda: self._closed or self._queue or (self._ended and not self._unread))
            jobs: list[Job] = []
            while self._queue and sent + len(jobs) < (2 if self._is_quick(self._queue[0]) else 1):
                jobs.append(self._queue.popleft())
            return jobs

    def _is_quick(self, job: Job) -> bool:
        if isinstance(job.video, bytes) or not self.videos_read:
            return False
        return (self.busy_seconds - self._lost_seconds) / self.videos_read < SHORT_SECONDS

    def _deliver(self, job: Job, outcome: Clip | Failure | Doubt, seconds: float) -> None:
        with self._changed:
            self._note(job, seconds)
            self._settle(job, outcome if isinstance(outcome, Clip) else job.failed(outcome))

    def _note(self, job: Job, seconds: float) -> None:
        job.tried(seconds)
        self.busy_seconds += seconds
        self.videos_read += job.attempts == 1

    def _settle(self, job: Job, outcome: Clip | Failure) -> None:
        del self._unread[job.key]
        if isinstance(outcome, Clip):
            self._largest = max(self._largest, outcome.nbytes)
            self._recent.put(job, outcome)
        self._hand_out(job.requests, outcome)

    def _hand_out(self, requests: list[CaptionRequest], outcome: Clip | Failure) -> None:
        if not self._closed:
            self._ready.extend((request, outcome) for request in requests)
            self._ready_bytes += len(requests) * _nbytes(outcome)
        self._changed.notify_all()

    def _blame(self, sent: deque[Job], lost: LostError) -> deque[Job]:
        """Handle a lost process: requeue the videos queued behind the one it was reading; they are not at fault.

        Returns:
            The video it was reading, if it is to be retried.
        """
        with self._changed:
            suspect, *rest = sent
            self._note(suspect, lost.seconds)
            self._lost_seconds += lost.seconds
            if self._closed:
                return deque()
            self._queue.extendleft(reversed(rest))
            self._changed.notify_all()
            if not suspect.is_given_up:
                return deque([suspect])
            self._settle(suspect, suspect.failed(lost.failure))
            return deque()


def _whole(root: Path | StoredPath | None) -> Path | StoredPath:
    return root if isinstance(root, StoredPath) else Path.cwd() / (root or "")


def _nbytes(outcome: Clip | Failure) -> int:
    return outcome.nbytes if isinstance(outcome, Clip) else 0
