"""Caption rows whose videos were read, in actors with one model each."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ...errors import ReelscribeError, SettingsError, TooManyFailuresError
from ...rows.plan import Plan, Results
from ...timing import BusyClock
from ...types import CaptionRequest, CaptionResult, Failure
from .clip_columns import clips_of, without_clips
from .cluster import ray_library
from .job import Job
from .shared_stream import Load, SharedStream, Turns
from .suspects import MAX_DEATHS


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request of a block, and its video's key in the ledger."""

    key: Hashable
    request: CaptionRequest
    load: Load


class BlockCaptioner:
    """One captioner, in an actor: blocks arrive concurrently, and their clips enter one stream."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._holder = uuid.uuid4().hex
        self._turns = Turns()
        self._serial = itertools.count()
        self._at_work = BusyClock()
        self._ray = ray_library()
        with self._blamed():
            self._operator = job.operator()
            self._planner = job.form.planner(self._operator.planner)
            self._check_packages()
            self._stream = SharedStream(self._operator.captioner, self._planner.acceptance)
            self._call("tell_policy", self._operator.policy)

    def __call__(self, table: Any) -> Any:
        """Caption a table of rows and their clips."""
        with self._blamed():
            rows, clips = without_clips(table), clips_of(table)
            rows, plans = self._job.form.plans_in(rows)
            if not self._job.form.is_numbered:
                plans = [_renumbered(plan, next(self._serial)) for plan in plans]
            results = {one.request_id: one for one in self._results(plans, clips)}
            self._count(plans, results)
            self._job.ledger.tell_work.remote("model", self._holder, self._at_work.seconds)
            return self._job.form.made(rows, self._planner, plans, results)

    def _check_packages(self) -> None:
        """Fail if this node's checks differ from the driver's, which would change captions."""
        here = tuple(self._planner.acceptance.checks)
        if here != self._job.checks:
            raise SettingsError(
                f"the driver has the checks {', '.join(self._job.checks)}, but a cluster node has {', '.join(here)}: "
                "install the same packages on every node"
            )

    def _results(self, plans: Sequence[Plan], clips: Sequence[Sequence[Load | Failure]]) -> Iterator[CaptionResult]:
        asked = []
        for plan, loads in zip(plans, clips, strict=True):
            for request, load in zip(plan.requests, loads, strict=True):
                if isinstance(load, Failure):
                    yield CaptionResult(request.id, failure=load)
                else:
                    key = tuple(request.id) if self._job.form.is_numbered else (request.seed, *request.id[1:])
                    asked.append(_Asked(key, request, load))
        if asked:
            with self._at_work:
                answers = self._answers(asked)
            yield from answers

    def _answers(self, asked: Sequence[_Asked]) -> list[CaptionResult]:
        """Caption all videos together, except for those that were with a model when its process died: one at a time."""
        with self._turns.shared():
            suspects = self._begin(asked)
            sure = [one for one in asked if one.key not in suspects]
            results = self._stream.ask([(one.request, one.load) for one in sure])
            self._call("end", [one.key for one in sure])
        for one in asked:
            if one.key in suspects:
                results.append(self._alone(one, deaths=suspects[one.key]))
        return results

    def _begin(self, asked: Sequence[_Asked]) -> dict[Hashable, int]:
        suspects: dict[Hashable, int]
        suspects, stop = self._call("begin", self._holder, [one.key for one in asked])
        if stop is not None:
            raise TooManyFailuresError(stop)
        return suspects

    def _alone(self, one: _Asked, *, deaths: int) -> CaptionResult:
        if deaths >= MAX_DEATHS:
            message = f"the process that runs the model died {deaths} times while processing this video alone"
            return CaptionResult(one.request.id, failure=Failure("engine_died", message, attempts=deaths))
        with self._turns.alone():
            self._call("try_alone", one.key)
            (result,) = self._stream.ask([(one.request, one.load)])
            self._call("end", [one.key])
        return result

    def _count(self, plans: Sequence[Plan], results: Results) -> None:
        failures = [
            [one.kind for request in plan.requests if (one := results[request.id].failure) is not None]
            + ([plan.failure[1].kind] if plan.failure is not None else [])
            for plan in plans
        ]
        self._job.ledger.count.remote(len(plans), [kind for row in failures for kind in row], sum(map(bool, failures)))

    def _call(self, name: str, *values: Any) -> Any:
        return self._ray.get(getattr(self._job.ledger, name).remote(*values))

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Report the error that ended this captioner to the driver; Ray's own errors carry it only as text."""
        try:
            yield
        except ReelscribeError as exc:
            self._call("blame", type(exc).__name__, str(exc))
            raise


def _renumbered(plan: Plan, row: int) -> Plan:
    """The plan with another row number in its requests."""
    requests = (replace(request, id=request.id._replace(row=row)) for request in plan.requests)
    return replace(plan, requests=tuple(requests))
