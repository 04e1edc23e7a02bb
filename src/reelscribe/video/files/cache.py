"""A local cache of videos from object stores and servers, bounded in bytes; the least recently used go first.

Shared by all processes: a file gets its name when it is complete, and an open file stays readable after removal.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ...ranges import Ranged, copy_to

SUFFIX = ".video"
"""Suffix of cached files; nothing else in the folder is touched."""


def cached(path: Ranged, folder: Path, *, max_bytes: int) -> BinaryIO:
    """The file at an address, open for reading; fetched if it is not cached, or has changed.

    Raises:
        OSError: it cannot be fetched, or the folder cannot be written.
    """
    status = path.stat()
    digest = hashlib.blake2b(repr((path.url, status.st_size, status.st_mtime_ns)).encode(), digest_size=16)
    place = folder / f"{digest.hexdigest()}{SUFFIX}"
    with suppress(FileNotFoundError):
        file = place.open("rb")
        os.utime(place)
        return file
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{place.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("wb") as target:
            for _ in copy_to(path, target):
                pass
        _make_room(folder, max_bytes - status.st_size)
        opened = temporary.open("rb")
        if status.st_size <= max_bytes:
            temporary.replace(place)
        return opened
    finally:
        temporary.unlink(missing_ok=True)


def _make_room(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used files until the others have no more than these bytes."""
    there = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            there.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in there)
    for _, size, path in sorted(there):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
