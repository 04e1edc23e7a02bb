"""Reuse the memory of clips that are no longer used.

The system clears each page of new memory before it is written: on the real clips of the benchmarks that is 6 % of what
reading costs.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_IDLE_BYTES = 128 << 20
"""Most memory that is kept while no clip uses it."""
MAX_SLACK = 1.5
"""A block serves arrays that are at most this many times smaller."""


class FrameBuffers:
    """Allocates arrays whose memory is reused once nothing refers to them; thread-safe.

    Args:
        max_idle_bytes: most memory that is kept while no array uses it.
    """

    def __init__(self, max_idle_bytes: int = MAX_IDLE_BYTES) -> None:
        self._max_idle_bytes = max_idle_bytes
        # No lock, since blocks come back whenever the collector runs; each step on the dictionary is atomic.
        self._idle: dict[int, mmap.mmap] = {}

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(map(len, tuple(self._idle.values())))

    def empty(self, shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
        """An uninitialised array, like `numpy.empty`.

        Raises:
            MemoryError: it does not fit.
        """
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        block = self._take(size) or _new(size)
        array = np.ndarray(shape, dtype, buffer=block)
        weakref.finalize(array, self._give_back, block).atexit = False  # parts of it refer to it, since it owns nothing
        return array

    def _take(self, size: int) -> mmap.mmap | None:
        """An idle block that fits."""
        for key, block in tuple(self._idle.items()):
            if size <= len(block) <= MAX_SLACK * size and self._idle.pop(key, None) is not None:
                return block
        return None

    def _give_back(self, block: mmap.mmap) -> None:
        self._idle[id(block)] = block
        excess = self.idle_bytes - self._max_idle_bytes
        for key, one in tuple(self._idle.items()):
            if excess <= 0:
                return
            if self._idle.pop(key, None) is not None:
                excess -= len(one)


def _new(size: int) -> mmap.mmap:
    """Memory of this process alone, in large pages where the system has them."""
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(f"no memory for {size} bytes of frames") from exc
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system may be built without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


BUFFERS = FrameBuffers()
"""Those of this process."""
