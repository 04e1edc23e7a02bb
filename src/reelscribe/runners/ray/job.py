"""What every process of a job has, and what they tell each other."""

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
"""Stage to what lets a cluster do more of it."""


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    key: str
    """Of this job, among those that a process works for."""
    parameters: dict[str, Any]
    """Of the operator; paths are absolute."""
    form: BlockForm
    """How rows lie in tables."""
    ledger: Any
    """Handle of the `Ledger`."""
    checks: tuple[str, ...]
    """Names of the checks that the driver has."""

    def operator(self, **changes: Any) -> VideoCaptioningFromVLMMapper:
        """The operator, built here."""
        return VideoCaptioningFromVLMMapper(**{**self.parameters, **changes})


class Ledger:
    """What the processes of a job tell each other; an actor beside the driver, and ended with it."""

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
        """What the model wants to see, as soon as the first captioner has loaded it."""
        self._policy = policy
        self._began = self._began or time.monotonic()
        self._known.set()

    async def policy(self) -> FramePolicy | None:
        """The same, once it is known."""
        await self._known.wait()
        return self._policy

    async def begin(self, holder: str, videos: list[Hashable]) -> tuple[dict[Hashable, int], str | None]:
        """See `Suspects.begin`; and a sentence where the job is to stop."""
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
        """So many rows were done; those that Ray does again count again."""
        self._counts.merge({"rows_in": rows, "failed_rows": failed_rows, "failures": failures})

    async def counts(self) -> Counts:
        """What was done so far."""
        return self._counts

    async def tell_work(self, stage: str, holder: str, seconds: float) -> None:
        """How long a process was at work for a stage so far."""
        self._work[stage][holder] = seconds
        self._last_work = time.monotonic()

    async def stages(self) -> StageTimes | None:
        """How long the stages were at work, from the first captioner that was ready to the last answer; None: nothing
        was to do."""
        if not self._last_work:
            return None
        told = [Stage(name, sum(work.values()), len(work), ADVICE[name]) for name, work in self._work.items() if work]
        return StageTimes(self._last_work - self._began, tuple(told))

    async def blame(self, name: str, message: str) -> None:
        """An error of the package ended a captioner; the first one is told to the user."""
        self._error = self._error or (name, message)

    async def error(self) -> tuple[str, str] | None:
        """That one, as class and text."""
        return self._error


def new_job(
    operator: VideoCaptioningFromVLMMapper,
    form: BlockForm,
    *,
    root: AnyPath | None = None,
    max_failures: FailureLimit | None = None,
) -> Job:
    """A job for this operator, with a ledger beside the driver.

    Args:
        operator: rebuilt in every process.
        form: how rows lie in tables.
        root: what relative video paths are relative to, where the operator does not say.
        max_failures: how many rows may fail.

    Raises:
        SettingsError: the operator cannot travel.
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
        SettingsError: they cannot be sent there.
    """
    from ray import cloudpickle

    given = portable_parameters(operator)
    given["video_root"] = named(root)
    try:
        cloudpickle.dumps(given)
    except Exception as exc:  # whatever a captioner of the user's raises
        raise SettingsError(
            f"this operator cannot be sent to another process ({type(exc).__name__}: {exc}); give it a ModelSpec, or a "
            "captioner that can be pickled"
        ) from exc
    return given
