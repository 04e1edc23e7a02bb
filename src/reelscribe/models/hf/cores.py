"""Dividing the CPU's cores between batches and the other threads.

On a CPU two batches side by side, each on half of the cores, are faster than one after the other on all of them (0024):
threads that share one computation wait for the slowest of them at each step, most of all when a reading process takes a
core from one.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from ...video.processes.clip_stream import usable_processors

LANES = 2
"""Batches that a CPU runs side by side, if possible."""


def lanes_for(model: Any) -> int:
    """Batches that may run side by side on `model`, each in its own thread.

    One on an accelerator, which is kept busy in other ways; for code that is not transformers' own, since it may keep
    state between calls; and for position embeddings that change with the longest prompt seen.
    """
    if model.device.type != "cpu" or not type(model).__module__.startswith("transformers."):
        return 1
    kinds = {str(getattr(module, "rope_type", "")) for module in model.modules()}
    if any("dynamic" in kind or "longrope" in kind for kind in kinds):
        return 1
    return max(1, min(LANES, int(torch.get_num_threads())))


def leaves_a_core(device: torch.device) -> bool:
    """Whether a model on `device`, called from this thread, leaves a core to others."""
    return device.type != "cpu" or int(torch.get_num_threads()) < usable_processors()


_setting = threading.Lock()


def compute_on(cores: int, *, others: int) -> None:
    """Make torch compute on so many cores in this thread.

    Args:
        cores: how many.
        others: how many threads that start later get; torch would give them the number that was set last.
    """
    if cores == torch.get_num_threads():
        return
    with _setting:
        torch.set_num_threads(cores)
        last = threading.Thread(target=torch.set_num_threads, args=(others,))
        last.start()
        last.join()


class SharedCores:
    """The cores that torch uses in the caller's thread, divided over lanes.

    Args:
        lanes: threads that compute side by side.
    """

    def __init__(self, lanes: int) -> None:
        self._most = int(torch.get_num_threads())
        self._lanes = lanes

    def take(self, lane: int, *, alone: bool) -> None:
        """In the thread of a lane, before a batch: compute on its share of the cores, or on all if no other lane will
        need them."""
        part = self._most // self._lanes + (lane < self._most % self._lanes)
        compute_on(self._most if alone else max(1, part), others=self._most)

    def keep_to_one(self) -> None:
        """In a thread next to the lanes: compute on one core."""
        compute_on(1, others=self._most)
