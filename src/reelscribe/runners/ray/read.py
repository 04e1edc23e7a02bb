"""Read the videos of rows, in tasks on any node of a cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ...operator import VideoCaptioningFromVLMMapper
from ...rows.plan import Plan
from ...types import Clip, Failure, RequestId
from ...video.frames.moments import FramePolicy
from ...video.processes.clip_stream import ClipStream
from .clip_columns import with_clips
from .cluster import ray_library
from .job import Job


@dataclass
class _Reader:
    """A process's reader for a job, kept between blocks."""

    operator: VideoCaptioningFromVLMMapper
    """An operator with one decoding process and no loaded model."""
    seconds: float = 0.0
    """How long it was busy."""


_readers: dict[str, _Reader] = {}
"""This process's reader, by the key of its job."""
_process = uuid.uuid4().hex


def read_block(table: Any, job: Job) -> Iterator[Any]:
    """Read the videos of a table of rows; yields each row once it is read, with its plan and clips."""
    reader = _reader(job)
    policy = ray_library().get(job.ledger.policy.remote())
    plans = job.form.plans(table, job.form.planner(reader.operator.planner))
    planned = job.form.planned(table, plans)
    if policy is None:
        yield with_clips(planned, [[None] * len(plan.requests) for plan in plans])
        return
    for place, clips in _read(reader, plans, policy):
        yield with_clips(planned.slice(place, 1), [clips])
    job.ledger.tell_work.remote("decode", _process, reader.seconds)


def _reader(job: Job) -> _Reader:
    """This process's reader for a job."""
    if job.key not in _readers:
        for other in _readers.values():
            other.operator.close()
        _readers.clear()
        _readers[job.key] = _Reader(job.operator(num_proc=1))
    return _readers[job.key]


def _read(reader: _Reader, plans: Sequence[Plan], policy: FramePolicy) -> Iterator[tuple[int, list[Clip | Failure]]]:
    """Indices of rows and their clips, as rows are completed."""
    read: list[dict[RequestId, Clip | Failure]] = [{} for _ in plans]
    places = {request.id: place for place, plan in enumerate(plans) for request in plan.requests}
    for place, plan in enumerate(plans):
        if not plan.requests:
            yield place, []
    requests = [request for plan in plans for request in plan.requests]
    operator = reader.operator
    stream = ClipStream(operator.pool, requests, policy, limits=operator.limits, root=operator.video_root)
    with closing(stream):
        for request, outcome in stream:
            place = places[request.id]
            read[place][request.id] = outcome
            if len(read[place]) == len(plans[place].requests):
                done, read[place] = read[place], {}
                yield place, [done[one.id] for one in plans[place].requests]
    reader.seconds += stream.busy_seconds
