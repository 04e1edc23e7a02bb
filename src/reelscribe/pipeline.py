"""The pipe every runner drives: rows are planned, videos read and captioned, and rows finished in order.

The stages run concurrently: a thread reads and plans rows, processes read videos, and the calling thread, which
receives Ctrl-C, takes answers. Each stage applies backpressure to the one before it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from .answering.tries import Final, Tries, caption
from .models.captioner import Captioner, captioner_advice, captioner_seconds
from .rows.outcome import RowOutcome
from .rows.plan import Plan, Planner
from .stores import AnyPath
from .timing import BusyClock, Stage, StageTimes
from .types import (
    CaptionRequest,
    CaptionResult,
    Clip,
    Failure,
    RequestId,
    Sample,
    belongs_to_row,
    internal_failure,
)
from .video.frames.moments import FramePolicy
from .video.processes.clip_stream import ClipStream, WorkerPool
from .video.reader import ReadLimits

MAX_ROWS_AHEAD = 4096
"""Most rows between the oldest unfinished one and the newest one read."""
MAX_BYTES_AHEAD = 1 << 29
"""Most bytes of texts and videos inside those rows."""
VALUE_BYTES = 100
"""Bytes counted for any other value of a row: rows with tens of thousands of fields take memory too."""
STALL_SECONDS = 30.0
"""After this long without a finished row one more is read in spite of the limits: a captioner may need it."""


class Operator(Protocol):
    """What the pipe needs from the operator."""

    planner: Planner
    limits: ReadLimits
    video_root: AnyPath | None

    @property
    def captioner(self) -> Captioner:
        """The model."""

    @property
    def policy(self) -> FramePolicy | None:
        """The frame policy."""

    @property
    def pool(self) -> WorkerPool:
        """The processes that read videos."""


class Results(Protocol):
    """Results that outlive a run; may be called from any thread."""

    def get(self, request: CaptionRequest, row: Sample) -> CaptionResult | None:
        """The earlier answer to a request about a row, if any."""

    def put(self, answer: Final, row: Sample) -> None:
        """Store an answer about a row. An exception ends the run."""


def run_pipe(
    operator: Operator,
    rows: Iterable[Sample],
    emit: Callable[[RowOutcome], None],
    *,
    planner: Planner | None = None,
    root: AnyPath | None = None,
    results: Results | None = None,
    first_row: int = 0,
) -> StageTimes:
    """Send rows through; `emit` receives every row once, in input order, one at a time, from any thread.

    A video whose answer is unusable is retried (`answering.tries`).

    Args:
        operator: provides the rules, the readers and the model.
        rows: what to caption; each travels with its plan and comes out unchanged.
        emit: receives the outcome of each row.
        planner: the rules, if the rows' form differs from the operator's.
        root: folder that relative video paths are relative to; None: the operator's.
        results: earlier answers, and the store for new ones.
        first_row: index of the first of these rows in the input.

    Returns:
        How long each stage was busy.
    """
    pipe = _Pipe(operator, planner or operator.planner, root or operator.video_root, emit, results, first_row)
    before, began = captioner_seconds(operator.captioner), time.monotonic()
    pipe.run(rows)
    while pipe.asks_again:
        pipe.run(())
    pipe.finish_rest()
    return pipe.times(time.monotonic() - began, before)


class _Pipe:
    """Rows in flight, by index, and the next one to emit."""

    def __init__(
        self,
        operator: Operator,
        planner: Planner,
        root: AnyPath | None,
        emit: Callable[[RowOutcome], None],
        results: Results | None,
        first_row: int,
    ) -> None:
        self._operator = operator
        self._planner = planner
        self._root = root
        self._emit = emit
        self._kept = results
        self._changed = threading.Condition()
        self._plans: dict[int, Plan] = {}
        self._results: dict[int, dict[RequestId, CaptionResult]] = {}
        self._next = self._taken = first_row
        self._weights: dict[int, int] = {}
        self._bytes_ahead = 0
        self._again: deque[CaptionRequest] = deque()
        self._tries = Tries(self._planner.acceptance)
        self._closed = False
        self._streams: list[ClipStream] = []
        self._row_clock = BusyClock()

    @property
    def asks_again(self) -> bool:
        """Whether videos wait for a retry with no running stream to take them."""
        return bool(self._again)

    def run(self, rows: Iterable[Sample]) -> None:
        """Send rows, and pending retries, through reading and the model."""
        self._closed = False
        caption(self._operator.captioner, self._clips(rows), self.accept)

    def _clips(self, rows: Iterable[Sample]) -> _Clips:
        """The stream the captioner pulls from; unreadable videos are answered here and never reach it."""
        policy = self._operator.policy
        if policy is None:
            return _Clips(self, ((request, None) for request in self._requests(rows, holds_back=False)))
        stream = ClipStream(
            self._operator.pool,
            self._requests(rows, holds_back=True),
            policy,
            limits=self._operator.limits,
            root=self._root,
        )
        self._streams.append(stream)
        return _Clips(self, stream)

    def _requests(self, rows: Iterable[Sample], *, holds_back: bool) -> Iterator[CaptionRequest]:
        """Requests of the rows; when run in a separate thread it pauses while too much is unfinished."""
        source = iter(rows)
        while not holds_back or self._wait_for_room():
            while self._again:
                yield self._tries.hand_out(self._again.popleft())
            with self._row_clock:
                sample = next(source, None)
                if sample is None:
                    break
                plan = self._planner.plan(sample, self._taken)
            self._add(plan)
            yield from self._unanswered(plan)

    def _add(self, plan: Plan) -> None:
        with self._changed:
            self._plans[self._taken], self._results[self._taken] = plan, {}
            self._taken += 1
            self._weights[self._taken - 1] = weight = weight_of(plan.sample)
            self._bytes_ahead += weight
            self._flush()

    def _unanswered(self, plan: Plan) -> Iterator[CaptionRequest]:
        """The requests without an earlier answer; the others are settled here."""
        for request in plan.requests:
            known = self._known(request, plan.sample)
            if known is None:
                yield self._tries.hand_out(request)
            else:
                self._settle(known if known.request_id == request.id else replace(known, request_id=request.id))

    def _known(self, request: CaptionRequest, row: Sample) -> CaptionResult | None:
        """The stored answer to a request, if any; a failure of its row if the lookup raises."""
        try:
            return self._kept.get(request, row) if self._kept is not None else None
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return CaptionResult(request.id, failure=internal_failure(exc))

    def _keep(self, answer: Final) -> CaptionResult:
        """Store an answer; if that raises, the answer becomes a failure of its row."""
        if self._kept is None:
            return answer.result
        id_ = answer.request.id
        row = self._plans[id_.row].sample
        try:
            self._kept.put(answer, row)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            answer = Final(answer.request, CaptionResult(id_, failure=internal_failure(exc)))
            self._kept.put(answer, row)
        return answer.result

    def _wait_for_room(self) -> bool:
        with self._changed:
            while not self._closed and not self._again and not self._has_room():
                if not self._changed.wait(STALL_SECONDS):  # woken by each finished row
                    break
            return not self._closed

    def _has_room(self) -> bool:
        if not self._plans:
            return True
        return len(self._plans) < MAX_ROWS_AHEAD and self._bytes_ahead < MAX_BYTES_AHEAD

    def accept(self, result: CaptionResult) -> None:
        """Take one result and emit the rows it completes, unless the video is retried."""
        taken = self._tries.accept(result)
        if isinstance(taken, Final):
            self._settle(self._keep(taken))
        elif taken is not None:
            with self._changed:
                self._again.append(taken)
                self._changed.notify_all()

    def _settle(self, result: CaptionResult) -> None:
        id_ = result.request_id
        with self._changed:
            if id_.row in self._results:
                self._results[id_.row][id_] = result
            self._flush()

    def _flush(self) -> None:
        while self._next in self._plans and len(self._results[self._next]) == len(self._plans[self._next].requests):
            row = self._next
            plan, results = self._plans.pop(row), self._results.pop(row)
            self._next += 1
            self._bytes_ahead -= self._weights.pop(row)
            self._changed.notify_all()
            self._emit(self._planner.finish(plan, results, row))

    def finish_rest(self) -> None:
        """Emit rows that the captioner left unanswered, as failures."""
        for result in self._tries.lost():
            self.accept(result)

    def close(self) -> None:
        """Read no more rows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def times(self, seconds: float, before: Mapping[str, float]) -> StageTimes:
        """Busy time of each stage within these seconds; `before` holds the captioner's seconds of earlier runs."""
        stages = [Stage("rows", self._row_clock.seconds)]
        if self._streams:
            busy = sum(stream.busy_seconds for stream in self._streams)
            stages.append(Stage("decode", busy, workers=max(1, *(stream.workers for stream in self._streams))))
        advice = captioner_advice(self._operator.captioner)
        for name, seconds_now in captioner_seconds(self._operator.captioner).items():
            stages.append(Stage(name, seconds_now - before.get(name, 0.0), advice=advice.get(name)))
        return StageTimes(seconds, tuple(stages))


class _Clips:
    """The stream the captioner pulls from; `close` may be called from any thread."""

    def __init__(self, pipe: _Pipe, stream: Iterator[tuple[CaptionRequest, Any]]) -> None:
        self._pipe = pipe
        self._stream = stream
        self._closed = self._ended = False

    def __iter__(self) -> _Clips:
        return self

    def __next__(self) -> tuple[CaptionRequest, Clip | None]:
        while not self._closed:
            try:
                request, outcome = next(self._stream)
            except StopIteration:
                self._ended = True
                raise
            if not isinstance(outcome, Failure):
                return request, outcome
            self._pipe.accept(CaptionResult(request.id, failure=outcome))
        raise StopIteration

    @property
    def ended(self) -> bool:
        """Whether everything was handed out."""
        return self._ended

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._pipe.close()
        if isinstance(self._stream, ClipStream):
            self._stream.close()


def weight_of(sample: Sample) -> int:
    """Approximate size of a row in bytes."""
    return sum(_length(value) for value in sample.values())


def _length(value: Any) -> int:
    if isinstance(value, (str, bytes, bytearray)):
        return VALUE_BYTES + len(value)
    if isinstance(value, list | tuple):
        return VALUE_BYTES + sum(_length(one) for one in value)
    if isinstance(value, dict):
        return VALUE_BYTES + sum(_length(one) for one in value.values())
    return VALUE_BYTES
