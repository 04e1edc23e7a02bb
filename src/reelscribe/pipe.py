"""The pipe every runner drives: rows are planned, videos read, captions written, and rows finished in order.

All of it goes on at the same time: rows are taken and planned in a thread of their own, videos are read by processes,
and the model runs in the calling thread, where Ctrl-C reaches it. Each stage holds back the one before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from .models.base import Captioner, captioner_seconds
from .plan import Plan, Planner, RowOutcome
from .record import CaptionRequest, CaptionResult, Clip, Failure, RequestId, Sample
from .stages import BusyClock, Stage, StageTimes
from .video.reader import ReadLimits
from .video.sampling import FramePolicy
from .video.workers import ClipStream, WorkerPool

MAX_ROWS_AHEAD = 4096
"""Rows between the oldest that is not finished and the newest that was taken."""
MAX_BYTES_AHEAD = 1 << 29
"""Bytes of texts and videos inside those rows."""
STALL_SECONDS = 30.0
"""Time without a finished row after which one more is taken in spite of the bounds: a captioner may need it."""


class Operator(Protocol):
    """What the pipe needs of the operator."""

    planner: Planner
    limits: ReadLimits
    video_root: Path | None

    @property
    def captioner(self) -> Captioner:
        """The model."""

    @property
    def policy(self) -> FramePolicy | None:
        """What frames to read."""

    @property
    def pool(self) -> WorkerPool:
        """The processes that read."""


def run_pipe(operator: Operator, rows: Iterable[Sample], emit: Callable[[RowOutcome], None]) -> StageTimes:
    """Send rows through; `emit` gets every row once, in input order, one at a time, from any thread.

    Returns:
        How long each stage was at work.
    """
    pipe = _Pipe(operator, emit)
    before, began = captioner_seconds(operator.captioner), time.monotonic()
    clips = pipe.clips(rows)
    results = operator.captioner.caption(clips)
    try:
        for result in results:
            pipe.accept(result)
    finally:
        clips.close()
        if hasattr(results, "close"):
            results.close()
    pipe.finish_rest()
    return pipe.times(time.monotonic() - began, before)


class _Pipe:
    """Rows in flight, by index, and the next one to emit."""

    def __init__(self, operator: Operator, emit: Callable[[RowOutcome], None]) -> None:
        self._operator = operator
        self._emit = emit
        self._changed = threading.Condition()
        self._plans: dict[int, Plan] = {}
        self._results: dict[int, dict[int, CaptionResult]] = {}
        self._next = 0
        self._taken = 0
        self._bytes_ahead = 0
        self._closed = False
        self._stream: ClipStream | None = None
        self._row_clock = BusyClock()

    def clips(self, rows: Iterable[Sample]) -> _Clips:
        """What the captioner pulls; videos that cannot be read are answered here and never reach it."""
        policy = self._operator.policy
        if policy is None:
            return _Clips(self, ((request, None) for request in self._requests(rows, holds_back=False)))
        self._stream = ClipStream(
            self._operator.pool,
            self._requests(rows, holds_back=True),
            policy,
            limits=self._operator.limits,
            root=self._operator.video_root,
        )
        return _Clips(self, self._stream)

    def _requests(self, rows: Iterable[Sample], *, holds_back: bool) -> Iterator[CaptionRequest]:
        """Requests of the rows; where it runs in a thread of its own it holds back while too much is unfinished."""
        source = iter(rows)
        while not holds_back or self._wait_for_room():
            with self._row_clock:
                sample = next(source, None)
                if sample is None:
                    break
                plan = self._operator.planner.plan(sample, self._taken)
            self._add(plan)
            yield from plan.requests

    def _add(self, plan: Plan) -> None:
        with self._changed:
            self._plans[self._taken], self._results[self._taken] = plan, {}
            self._taken += 1
            self._bytes_ahead += _weight(plan.sample)
            self._flush()

    def _wait_for_room(self) -> bool:
        with self._changed:
            while not self._closed and not self._has_room():
                if not self._changed.wait(STALL_SECONDS):  # woken by each row that is finished
                    break
            return not self._closed

    def _has_room(self) -> bool:
        if not self._plans:
            return True
        return len(self._plans) < MAX_ROWS_AHEAD and self._bytes_ahead < MAX_BYTES_AHEAD

    def accept(self, result: CaptionResult) -> None:
        """Take one result and emit the rows it completes."""
        row, video = result.request_id
        with self._changed:
            if row in self._results:
                self._results[row][video] = result
            self._flush()

    def _flush(self) -> None:
        while self._next in self._plans and len(self._results[self._next]) == len(self._plans[self._next].requests):
            row = self._next
            plan, results = self._plans.pop(row), self._results.pop(row)
            self._next += 1
            self._bytes_ahead -= _weight(plan.sample)
            self._changed.notify_all()
            self._emit(
                self._operator.planner.finish(plan, [results[request.id.video] for request in plan.requests], row)
            )

    def finish_rest(self) -> None:
        """Emit the rows a captioner ended without answering, as failures."""
        for row, plan in list(self._plans.items()):
            for request in plan.requests:
                if request.id.video not in self._results.get(row, {}):
                    lost = Failure("model_error", "the captioner ended without an answer for this video")
                    self.accept(CaptionResult(RequestId(row, request.id.video), failure=lost))

    def close(self) -> None:
        """Take no more rows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def times(self, seconds: float, before: Mapping[str, float]) -> StageTimes:
        """What each stage did in these seconds; `before` holds the captioner's seconds of earlier runs."""
        stages = [Stage("rows", self._row_clock.seconds)]
        if self._stream is not None:
            stages.append(Stage("decode", self._stream.busy_seconds, workers=max(self._stream.workers, 1)))
        for name, busy in captioner_seconds(self._operator.captioner).items():
            stages.append(Stage(name, busy - before.get(name, 0.0)))
        return StageTimes(seconds, tuple(stages))


class _Clips:
    """What the captioner pulls; `close` may be called from any thread."""

    def __init__(self, pipe: _Pipe, stream: Iterator[tuple[CaptionRequest, Any]]) -> None:
        self._pipe = pipe
        self._stream = stream
        self._closed = False

    def __iter__(self) -> _Clips:
        return self

    def __next__(self) -> tuple[CaptionRequest, Clip | None]:
        while not self._closed:
            request, outcome = next(self._stream)
            if not isinstance(outcome, Failure):
                return request, outcome
            self._pipe.accept(CaptionResult(request.id, failure=outcome))
        raise StopIteration

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._pipe.close()
        if isinstance(self._stream, ClipStream):
            self._stream.close()


def _weight(sample: Sample) -> int:
    """Bytes of what is long in a row: texts and videos."""
    return sum(_length(value) for value in sample.values())


def _length(value: Any) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(_length(one) for one in value)
    return _length(value.get("bytes")) if isinstance(value, dict) else 0
