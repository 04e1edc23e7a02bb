"""Remote files that are read in ranges, so that only what is needed is fetched."""

from __future__ import annotations

import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, Any

BUFFER_BYTES = 1 << 20
"""Fewest bytes of one request."""


class Ranged(ABC):
    """A file that returns the bytes between two positions."""

    url: str
    """Its address."""

    @property
    def is_versioned(self) -> bool:
        """Whether `stat` tells one content from another."""
        return True

    @abstractmethod
    def stat(self) -> SimpleNamespace:
        """`st_size` in bytes, and in `st_mtime_ns` a value that changes with the content, if the store provides one."""

    @abstractmethod
    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`.

        Raises:
            TimeoutError: they do not arrive in time.
            OSError: they do not arrive.
        """

    def open(self, _mode: str = "rb") -> io.BufferedReader:
        """The file, read in ranges; `raw` is a `RangeFile`."""
        return io.BufferedReader(RangeFile(self), BUFFER_BYTES)

    def close(self) -> None:  # noqa: B027 (most hold no resources)
        """Release resources."""

    def lose(self, exc: BaseException) -> None:
        """Record that a range did not arrive: the reader may mistake that for the end of the file."""
        self.__dict__.setdefault("_lost", exc)

    @property
    def lost(self) -> BaseException | None:
        """Why a range did not arrive; None: all did."""
        return self.__dict__.get("_lost")


class RangeFile(io.RawIOBase):
    """A remote file, of which only what is read is fetched."""

    def __init__(self, path: Ranged) -> None:
        super().__init__()
        self._path = path
        self._size = path.stat().st_size
        self._position = 0
        self._left_out: Sequence[tuple[int, int]] = ()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def leave_out(self, ranges: Sequence[tuple[int, int]]) -> None:
        """From now on, return zeros for these ranges without fetching them."""
        self._left_out = ranges

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as possible."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position or self._path.lost is not None:
            return 0
        for begin, stop in self._left_out:
            if begin <= self._position < stop:
                return self._zeros(buffer, min(end, stop) - self._position)
            if self._position < begin < end:
                end = begin
        try:
            data = self._path.read_range(self._position, end)
        except BaseException as exc:
            self._path.lose(exc)
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _zeros(self, buffer: Any, count: int) -> int:
        buffer[:count] = bytes(count)
        self._position += count
        return count


def whole(path: Ranged) -> IO[bytes]:
    """Fetch a whole file into an anonymous temporary file.

    Raises:
        OSError: it does not arrive, or the disk is full.
    """
    with nameless_file() as file:
        for _ in copy_to(path, file):
            pass
    return file


@contextmanager
def nameless_file() -> Iterator[IO[bytes]]:
    """An anonymous temporary file, to be written in the body: then flushed, and left open for the caller, unless the
    body raises."""
    file = tempfile.TemporaryFile(prefix="reelscribe-")  # noqa: SIM115 (the caller's)
    try:
        yield file
        file.flush()
    except BaseException:
        file.close()
        raise


def copy_to(path: Ranged, file: IO[bytes], *, piece: int = 8 * BUFFER_BYTES) -> Iterator[int]:
    """Copy a file in pieces; yields how much has arrived."""
    size, at = int(path.stat().st_size), 0
    while at < size:
        data = path.read_range(at, min(at + piece, size))
        if not data:
            raise OSError(f"only {at} of {size} bytes arrived")
        file.write(data)
        at += len(data)
        yield at
