"""The shared description of a job, and the ledger through which its processes communicate."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SettingsError
from ...operator import VideoCaptioningFromVLMMapper
from ...settings import FailureLimit
from ...stores import AnyPath
from ...timing import Stage, StageTimes
from ...video.frames.moments import FramePolicy
from ..report.summary import Counts
from ..run.identity import named, portable_parameters
from .cluster import ray_library
from .forms import BlockForm
from .suspects import Suspects

ADVICE = {
    "decode": "more cores in the cluster, or fewer frames (--fps, --max-frames, --time-tolerance)",
    "model": "more --ray-captioners, faster devices, fewer or smaller frames, or shorter captions (--max-tokens)",
}
"""Stage to advice on speeding it up."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs."""

    key: str
    """Key of this job among those of a process."""
    parameters: dict[str, Any]
    """The operator's parameters, with absolute paths."""
    form: BlockForm
    """Layout of rows in tables."""
    ledger: Any
    """Handle of the `Ledger`."""
    checks: tuple[str, ...]
    """Names of the driver's checks."""

    def operator(self, **changes: Any) -> VideoCaptioningFromVLMMapper:
        """The operator, built here."""
        return VideoCaptioningFromVLMMapper(**{**self.parameters, **changes})


class Ledger:
    """Shared state of a job's processes; an actor on the driver's node that ends with the driver."""

    def __init__(self, max_failures: FailureLimit) -> None:
        self._max_failures = max_failures
        self._suspects = Suspects()
        self._counts = Counts()
        self._policy: FramePolicy | None = None
        self._known = asyncio.Event()
        self._error: tuple[str, str] | None = None
        self._work: dict[str, dict[str, float]] = {"decode": {}, "model": {}}
        self._began = self._last_work = 0.0

    async def tell_policy(self, policy: FramePolicy | None) -> None:
        """Set the model's frame policy, once the first captioner has loaded it."""
        self._policy = policy
        self._began = self._began or time.monotonic()
        self._known.set()

    async def policy(self) -> FramePolicy | None:
        """The frame policy, once it is known."""
        await self._known.wait()
        return self._policy

    async def begin(self, holder: str, videos: list[Hashable]) -> tuple[dict[Hashable, int], str | None]:
        """See `Suspects.begin`; and a message if the job must stop."""
        stop = self._max_failures.is_passed(self._counts)
        told = f"{self._counts.failed_rows:,} of {self._counts.rows_in:,} rows failed, more than --max-failures allows"
        return self._suspects.begin(holder, videos), told if stop else None

    async def try_alone(self, video: Hashable) -> None:
        """See `Suspects.try_alone`."""
        self._suspects.try_alone(video)

    async def end(self, videos: list[Hashable]) -> None:
        """See `Suspects.end`."""
        self._suspects.end(videos)

    async def count(self, rows: int, failures: list[str], failed_rows: int) -> None:
        """Count finished rows; rows that Ray recomputes count again."""
        self._counts.merge({"rows_in": rows, "failed_rows": failed_rows, "failures": failures})

    async def counts(self) -> Counts:
        """The counts so far."""
        return self._counts

    async def tell_work(self, stage: str, holder: str, seconds: float) -> None:
        """Record how long a process was busy with a stage so far."""
        self._work[stage][holder] = seconds
        self._last_work = time.monotonic()

    async def stages(self) -> StageTimes | None:
        """How long the stages were busy, from the first ready captioner to the last answer; None if there was nothing
        to do."""
        if not self._last_work:
            return None
        told = [Stage(name, sum(work.values()), len(work), ADVICE[name]) for name, work in self._work.items() if work]
        return StageTimes(self._last_work - self._began, tuple(told))

    async def blame(self, name: str, message: str) -> None:
        """Record an error of this package that ended a captioner; the first one is reported to the user."""
        self._error = self._error or (name, message)

    async def error(self) -> tuple[str, str] | None:
        """The recorded error, as class and text."""
        return self._error


def new_job(
    operator: VideoCaptioningFromVLMMapper,
    form: BlockForm,
    *,
    root: AnyPath | None = None,
    max_failures: FailureLimit | None = None,
) -> Job:
    """A job for this operator, with a ledger on the driver's node.

    Args:
        operator: rebuilt in every process.
        form: layout of rows in tables.
        root: folder that relative video paths are relative to, unless the operator sets one.
        max_failures: how many rows may fail.

    Raises:
        SettingsError: the operator cannot be sent to other processes.
    """
    ray = ray_library()
    parameters = _travelling(operator, root=operator.video_root or root or Path())
    beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    ledger = ray.remote(num_cpus=0, scheduling_strategy=beside)(Ledger)
    return Job(
        uuid.uuid4().hex,
        parameters,
        form,
        ledger.remote(max_failures or FailureLimit()),
        tuple(operator.planner.acceptance.checks),
    )


def _travelling(operator: VideoCaptioningFromVLMMapper, *, root: AnyPath) -> dict[str, Any]:
    """The operator's parameters for processes of the cluster.

    Raises:
        SettingsError: they cannot be sent to other processes.
    """
    from ray import cloudpickle

    given = portable_parameters(operator)
    given["video_root"] = named(root)
    try:
        cloudpickle.dumps(given)
    except Exception as exc:  # a user's captioner may raise anything
        raise SettingsError(
            f"this operator cannot be sent to another process ({type(exc).__name__}: {exc}); use a ModelSpec, or a "
            "captioner that can be pickled"
        ) from exc
    return given
