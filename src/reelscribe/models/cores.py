"""The processor's cores between the model and what is prepared beside it.

On a CPU a model that computes on every core loses more to a thread that computes beside it than that thread gains, and
most where both divide their work over all cores.
"""

from __future__ import annotations

import threading

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
