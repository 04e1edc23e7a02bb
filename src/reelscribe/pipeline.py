"""The pipe every runner drives: rows are planned, videos read, captions written, and rows finished in order.

All of it goes on at the same time: rows are taken and planned in a thread of their own, videos are read by processes,
and answers are taken in the calling thread, where Ctrl-C is heard. Each stage holds back the one before it.
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
"""Rows between the oldest that is not finished and the newest that was taken."""
MAX_BYTES_AHEAD = 1 << 29
"""Bytes of texts and videos inside those rows."""
VALUE_BYTES = 100
"""What any other value of a row counts for: rows of tens of thousands of fields take memory too."""
STALL_SECONDS = 30.0
"""Time without a finished row after which one more is taken in spite of the bounds: a captioner may need it."""


class Operator(Protocol):
    """What the pipe needs of the operator."""

    planner: Planner
    limits: ReadLimits
    video_root: AnyPath | None

    @property
    def captioner(self) -> Captioner:
        """The model."""

    @property
    def policy(self) -> FramePolicy | None:
        """What frames to read."""

    @property
    def pool(self) -> WorkerPool:
        """The processes that read."""


class Results(Protocol):
    """Results that outlive a run; may be called from any thread."""

    def get(self, request: CaptionRequest, row: Sample) -> CaptionResult | None:
        """What this request about a row was answered before; None: it was not."""

    def put(self, request: CaptionRequest, result: CaptionResult, row: Sample) -> None:
        """Keep an answer about a row. An exception ends the run."""


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
    """Send rows through; `emit` gets every row once, in input order, one at a time, from any thread.

    A video whose answer is of no use is asked about again (`answering.tries`).

    Args:
        operator: the rules, the reading and the model.
        rows: what to caption; each travels with its plan and comes out as it came in.
        emit: takes what each row became.
        planner: the rules, where the rows have another form than the operator's.
        root: what relative video paths are relative to; None: as the operator has it.
        results: what was answered before, and where answers are kept.
        first_row: index of the first of these rows in the input.

    Returns:
        How long each stage was at work.
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
        """Whether videos wait to be asked about once more, with no stream under way that would take them."""
        return bool(self._again)

    def run(self, rows: Iterable[Sample]) -> None:
        """Send rows, and what is to be asked again, through reading and the model."""
        self._closed = False
        caption(self._operator.captioner, self._clips(rows), self.accept)

    def _clips(self, rows: Iterable[Sample]) -> _Clips:
        """What the captioner pulls; videos that cannot be read are answered here and never reach it."""
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
        """Requests of the rows; where it runs in a thread of its own it holds back while too much is unfinished."""
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
        """The requests that no earlier run has an answer for; the others are answered here."""
        for request in plan.requests:
            known = self._known(request, plan.sample)
            if known is None:
                yield self._tries.hand_out(request)
            else:
                self._settle(known if known.request_id == request.id else replace(known, request_id=request.id))

    def _known(self, request: CaptionRequest, row: Sample) -> CaptionResult | None:
        """What is kept for a request; the failure of its row where looking for it goes wrong."""
        try:
            return self._kept.get(request, row) if self._kept is not None else None
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return CaptionResult(request.id, failure=internal_failure(exc))

    def _keep(self, request: CaptionRequest, result: CaptionResult) -> CaptionResult:
        """Keep an answer; one that cannot be kept is a failure of its row."""
        if self._kept is None:
            return result
        row = self._plans[request.id.row].sample
        try:
            self._kept.put(request, result, row)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            result = CaptionResult(request.id, failure=internal_failure(exc))
            self._kept.put(request, result, row)
        return result

    def _wait_for_room(self) -> bool:
        with self._changed:
            while not self._closed and not self._again and not self._has_room():
                if not self._changed.wait(STALL_SECONDS):  # woken by each row that is finished
                    break
            return not self._closed

    def _has_room(self) -> bool:
        if not self._plans:
            return True
        return len(self._plans) < MAX_ROWS_AHEAD and self._bytes_ahead < MAX_BYTES_AHEAD

    def accept(self, result: CaptionResult) -> None:
        """Take one result and emit the rows it completes, unless the video is to be asked about again."""
        taken = self._tries.accept(result)
        if isinstance(taken, Final):
            self._settle(self._keep(taken.request, taken.result))
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
        """Emit the rows a captioner ended without answering, as failures."""
        for result in self._tries.lost():
            self.accept(result)

    def close(self) -> None:
        """Take no more rows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def times(self, seconds: float, before: Mapping[str, float]) -> StageTimes:
        """What each stage did in these seconds; `before` holds the captioner's seconds of earlier runs."""
        stages = [Stage("rows", self._row_clock.seconds)]
        if self._streams:
            busy = sum(stream.busy_seconds for stream in self._streams)
            stages.append(Stage("decode", busy, workers=max(1, *(stream.workers for stream in self._streams))))
        advice = captioner_advice(self._operator.captioner)
        for name, seconds_now in captioner_seconds(self._operator.captioner).items():
            stages.append(Stage(name, seconds_now - before.get(name, 0.0), advice=advice.get(name)))
        return StageTimes(seconds, tuple(stages))


class _Clips:
    """What the captioner pulls; `close` may be called from any thread."""

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
    """About how many bytes a row takes."""
    return sum(_length(value) for value in sample.values())


def _length(value: Any) -> int:
    if type(value) is str:
        return VALUE_BYTES + len(value)
    if isinstance(value, str | bytes | bytearray):
        return VALUE_BYTES + len(value)
    if isinstance(value, list | tuple):
        return VALUE_BYTES + sum(_length(one) for one in value)
    if isinstance(value, dict):
        return VALUE_BYTES + sum(_length(one) for one in value.values())
    return VALUE_BYTES
