"""How much private memory this process has, and a bound on it; neither is available on macOS.

A bound makes allocations fail. Not every decoder reports that: some return no picture and call the file damaged; and a
damaged file may ask for more memory than any machine has. So whoever meets a damaged file checks whether memory
`is_short`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOM_BYTES = 32 << 20
"""Memory that must be left; with less, what looks like damage may be lack of memory."""
_STATUS = Path("/proc/self/status")


def private_bytes() -> int | None:
    """Writable memory of this process that no other shares, as `RLIMIT_DATA` counts it; None if the system does not
    report it."""
    try:
        lines = _STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), None)


@contextmanager
def memory_bound(max_bytes: int | None) -> Iterator[None]:
    """Bound this process's private memory: an allocation beyond it fails with ENOMEM, a `MemoryError`.

    `RLIMIT_DATA`, not `RLIMIT_AS`: that also counts what is only reserved, such as arenas and thread stacks.
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
    """Whether less than `ROOM_BYTES` and `more_bytes` can still be allocated."""
    return not has_room(ROOM_BYTES + more_bytes)


def has_room(size: int) -> bool:
    """Whether so many bytes can still be allocated; they are reserved for a moment, not used."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return True
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def check_memory(cause: Exception, more_bytes: int = 0) -> None:
    """Distinguish lack of memory from damage.

    Raises:
        MemoryError: memory is short, so this is why a decoder failed.
    """
    if is_short(more_bytes):
        raise MemoryError from cause


def leave_no_core() -> None:
    """Disable core dumps of this process."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
