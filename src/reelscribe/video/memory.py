"""How much private memory this process has, and a bound on it; neither where the system does not tell (macOS).

A bound makes requests for memory fail. Not every decoder says so: some give no picture and call the file damaged. So
who meets a damaged file asks whether memory `is_short`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

ROOM_BYTES = 32 << 20
"""Memory that must be left, or it may be the lack of it that looks like damage."""
_STATUS = Path("/proc/self/status")


def private_bytes() -> int | None:
    """Writable memory of this process that no other shares, as `RLIMIT_DATA` counts it; None where it is not told."""
    try:
        lines = _STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), None)


@contextmanager
def memory_bound(max_bytes: int | None) -> Iterator[None]:
    """Let this process have so much private memory at most: a larger request fails with ENOMEM, a `MemoryError`.

    `RLIMIT_DATA`, not `RLIMIT_AS`: that also counts what is only reserved, such as arenas and stacks of threads.
    """
    if max_bytes is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (min([max_bytes, *_finite(before)]), before[1]))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, before)


def _finite(limits: tuple[int, int]) -> list[int]:
    import resource

    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def is_short(more_bytes: int = 0) -> bool:
    """Whether less than `ROOM_BYTES` and `more_bytes` can still be had; they are reserved for a moment, not used."""
    try:
        np.empty(ROOM_BYTES + more_bytes, np.uint8)
    except MemoryError:
        return True
    return False


def leave_no_core() -> None:
    """A process that crashes writes no image of its memory."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
