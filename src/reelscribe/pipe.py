"""The pipe every runner drives: rows are planned, videos read, captions written, and rows finished in order.

The captioner pulls: nothing is read before the model has room for it, and nothing waits for a batch to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from .models.base import Captioner
from .plan import Plan, Planner, RowOutcome
from .record import CaptionRequest, CaptionResult, Clip, Failure, RequestId, Sample
from .video.reader import ReadLimits
from .video.sampling import FramePolicy
from .video.workers import read_clips


class Operator(Protocol):
    """What the pipe needs of the operator."""

    planner: Planner
    limits: ReadLimits
    video_root: Path | None
    workers: int | None

    @property
    def captioner(self) -> Captioner:
        """The model."""

    @property
    def policy(self) -> FramePolicy | None:
        """What frames to read."""


def run_pipe(operator: Operator, rows: Iterable[Sample], emit: Callable[[RowOutcome], None]) -> None:
    """Send rows through; `emit` gets every row once, in input order."""
    pipe = _Pipe(operator, emit)
    clips = pipe.clips(rows)
    results = operator.captioner.caption(clips)
    try:
        for result in results:
            pipe.accept(result)
    finally:
        for stage in (results, clips):
            if hasattr(stage, "close"):
                stage.close()
    pipe.finish_rest()


class _Pipe:
    """Rows in flight, by index, and the next one to emit."""

    def __init__(self, operator: Operator, emit: Callable[[RowOutcome], None]) -> None:
        self._operator = operator
        self._emit = emit
        self._plans: dict[int, Plan] = {}
        self._results: dict[int, dict[int, CaptionResult]] = {}
        self._next = 0

    def clips(self, rows: Iterable[Sample]) -> Iterator[tuple[CaptionRequest, Clip | None]]:
        """What the captioner pulls; videos that cannot be read are answered here and never reach it."""
        policy = self._operator.policy
        if policy is None:
            for request in self._requests(rows):
                yield request, None
            return
        read = read_clips(
            self._requests(rows),
            policy,
            workers=self._operator.workers,
            limits=self._operator.limits,
            root=self._operator.video_root,
        )
        for request, clip in read:
            if isinstance(clip, Failure):
                self.accept(CaptionResult(request.id, failure=clip))
                continue
            yield request, clip

    def _requests(self, rows: Iterable[Sample]) -> Iterator[CaptionRequest]:
        for row, sample in enumerate(rows):
            plan = self._operator.planner.plan(sample, row)
            self._plans[row], self._results[row] = plan, {}
            self._flush()
            yield from plan.requests

    def accept(self, result: CaptionResult) -> None:
        """Take one result and emit the rows it completes."""
        row, video = result.request_id
        if row in self._results:
            self._results[row][video] = result
        self._flush()

    def _flush(self) -> None:
        while self._next in self._plans and len(self._results[self._next]) == len(self._plans[self._next].requests):
            row = self._next
            plan, results = self._plans.pop(row), self._results.pop(row)
            self._next += 1
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
