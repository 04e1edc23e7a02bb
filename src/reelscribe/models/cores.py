"""The processor's cores between the model and what goes on beside it.

On a CPU a model that computes on every core loses more to a thread that computes beside it than that thread gains, and
most where both divide their work over all cores.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from types import TracebackType
from typing import Self

import torch

from ..video.workers import usable_processors


def leaves_a_core(device: torch.device) -> bool:
    """Whether a model on `device`, called from this thread, leaves a core to others."""
    return device.type != "cpu" or int(torch.get_num_threads()) < usable_processors()


def keep_to_one_core() -> None:
    """Let torch compute on one core in this thread; other threads, also those to come, keep what they have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # The number is each thread's own, but the last one that was set is what new threads begin with.
    last = threading.Thread(target=torch.set_num_threads, args=(before,))
    last.start()
    last.join()


WAITED_SHARE = 0.1
"""Share of the time waiting for clips from which the model gives cores up."""
REMEMBERED_BATCHES, FEWEST_BATCHES = 4, 2
"""Batches over which that is told, at most and at least: one late clip says nothing of reading."""
SHORT_WAIT_SECONDS = 0.05
"""A wait below this says nothing either: it takes as long to hand over clips that are there."""


class ModelCores:
    """How many cores a model on the CPU computes on: all while it is what binds the run, fewer while it waits for clips
    that are read on the same cores. A context: the number is as before when it ends.

    Args:
        device: where the model runs; elsewhere than on a CPU nothing is changed, nor where the user set
            `OMP_NUM_THREADS`.
    """

    def __init__(self, device: torch.device) -> None:
        self._most = int(torch.get_num_threads())
        self._count = self._most
        self._shares = device.type == "cpu" and self._most > 1 and "OMP_NUM_THREADS" not in os.environ
        self._last: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_BATCHES)

    @property
    def count(self) -> int:
        """Cores it computes on now."""
        return self._count

    def note(self, *, waited_seconds: float, busy_seconds: float) -> None:
        """Before a batch: how long the model waited for it, and how long it ran before that."""
        if not self._shares or not busy_seconds:  # the first batch of a run is waited for
            return
        self._last.append((waited_seconds if waited_seconds > SHORT_WAIT_SECONDS else 0.0, busy_seconds))
        waited, busy = (sum(seconds) for seconds in zip(*self._last, strict=True))
        if len(self._last) >= FEWEST_BATCHES:
            self._change(-1 if waited > WAITED_SHARE * (waited + busy) else 1)

    def _change(self, direction: int) -> None:
        count = max(1, min(self._most, self._count + direction * max(1, self._most // 4)))
        if count != self._count:
            self._count = count
            torch.set_num_threads(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count != self._most:
            torch.set_num_threads(self._most)
