"""How long each stage of a run is busy, and which of them limits it.

Thread-safe clocks for stages, and plain figures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self


class BusyClock:
    """Adds up the time during which its holders are busy.

    >>> clock = BusyClock()
    >>> with clock:
    ...     pass
    >>> clock.seconds >= 0
    True

    Args:
        now: seconds on a clock that only goes forward.
        places: how many can be busy at the same time; while one of two is, half of the time counts.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, places: int = 1) -> None:
        self._now = now
        self._places = places
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._holders = 0
        self._since = 0.0

    def __enter__(self) -> Self:
        self._hold(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold(-1)

    @contextmanager
    def held(self, places: int) -> Iterator[None]:
        """Occupy so many places while the body runs."""
        self._hold(places)
        try:
            yield
        finally:
            self._hold(-places)

    def _hold(self, places: int) -> None:
        with self._lock:
            self._count()
            self._holders += places

    def _count(self) -> None:
        now = self._now()
        self._seconds += (now - self._since) * min(self._holders, self._places) / self._places
        self._since = now

    @property
    def seconds(self) -> float:
        """Busy seconds so far, including unfinished spans."""
        with self._lock:
            self._count()
            return self._seconds


NEARLY_FULL = 0.8
"""A stage that is busy for this share of a run limits it; below that, the stages wait for one another."""
ADVICE = {
    "decode": "more --workers, or fewer frames (--fps, --max-frames, --time-tolerance)",
    "prepare": "fewer or smaller frames (--max-frames, --max-pixels)",
    "model": "a faster device, a larger --batch-size, fewer or smaller frames, or shorter captions (--max-tokens)",
    "rows": "a faster disk for the input, or Parquet",
    "write": "a faster disk for the output",
}
"""Stage to advice for speeding it up."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run."""

    name: str
    """`rows` (read and planned), `decode`, `prepare` (patches and tokens), `model`, or `write`."""
    busy_seconds: float
    """Busy time, summed over its workers."""
    workers: int = 1
    """How many work in parallel."""
    advice: str | None = None
    """Advice for speeding it up; None: the default for one machine."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """How long each stage of a run was busy."""

    seconds: float
    """Length of the run."""
    stages: tuple[Stage, ...]
    """The stages, in the order in which a row passes them."""

    def with_stage(self, stage: Stage, *, seconds: float) -> StageTimes:
        """The same run with one more stage at its end, its length included."""
        return StageTimes(seconds, (*self.stages, stage))

    def with_advice(self, name: str, advice: str) -> StageTimes:
        """The same run with other advice for the stage of this name."""
        told = (replace(stage, advice=advice) if stage.name == name else stage for stage in self.stages)
        return StageTimes(self.seconds, tuple(told))

    def share(self, stage: Stage) -> float:
        """The share of the run in which a stage was busy, 0 to 1."""
        return stage.busy_seconds / (self.seconds * stage.workers) if self.seconds else 0.0

    @property
    def binding(self) -> Stage | None:
        """The stage that was busy for the largest share; None without stages."""
        return max(self.stages, key=self.share, default=None)

    def line(self) -> str:
        """One line for the user: the limiting stage, the others, and what would help."""
        first = self.binding
        if first is None or not first.busy_seconds:
            return "nothing to do"
        others = sorted((stage for stage in self.stages if stage is not first), key=self.share, reverse=True)
        told = ", ".join([self._told(first), *(self._told(stage) for stage in others if self.share(stage) >= 0.05)])
        if self.share(first) < NEARLY_FULL:
            return f"mostly {first.name}, no stage was busy all the time: {told}"
        return f"{first.name}-bound: {told}: {first.advice or ADVICE[first.name]}"

    def _told(self, stage: Stage) -> str:
        who = f"{stage.workers} workers" if stage.workers > 1 else f"{stage.name}"
        return f"{who} at {100 * self.share(stage):.0f} %"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "seconds": self.seconds,
            "binding": self.binding.name if self.binding else None,
            "stages": {
                stage.name: {
                    "busy_seconds": stage.busy_seconds,
                    "workers": stage.workers,
                    "share": self.share(stage),
                }
                for stage in self.stages
            },
        }
