"""Printing that cannot fail: a closed terminal or a full disk never ends a run or changes its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_STANDARD = (1, 2)
"""Descriptors of standard output and standard error."""


@contextmanager
def words_come_second() -> Iterator[None]:
    """Ignore errors of writing to standard output and standard error while the body runs."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    guarded = [_Guarded(stream) if stream is not None else None for stream in before]
    sys.stdout, sys.stderr = guarded
    try:
        yield
    finally:
        for stream in guarded:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open closed standard descriptors on the null device: the next opened file would receive what is printed."""
    for descriptor in (0, *_STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)


class _Guarded:
    """A stream whose writes cannot fail; what it cannot print is dropped.

    Args:
        stream: a text stream, or the binary one below it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _Guarded:
        """The underlying binary stream, which click uses if the encoding is ASCII."""
        return _Guarded(self._stream.buffer)

    def write(self, text: Any) -> int:
        """Write as much as possible."""
        try:
            self._tried(lambda: self._stream.write(text))
        except UnicodeEncodeError:
            plain = text.encode(self._stream.encoding, "backslashreplace").decode(self._stream.encoding)
            self._tried(lambda: self._stream.write(plain))
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write as much as possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush as much as possible."""
        self._tried(self._stream.flush)

    def _tried(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except UnicodeEncodeError:
            raise
        except BlockingIOError:
            return  # it is full right now
        except (OSError, ValueError):
            self._let_go()

    def _let_go(self) -> None:
        """Discard everything printed from here on, including what Python flushes at exit."""
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            if descriptor in _STANDARD:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, descriptor)
                os.close(nothing)
                self._stream.flush()
