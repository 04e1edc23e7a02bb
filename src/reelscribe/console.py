"""Printing that cannot fail: a terminal that is gone or full never ends a run or changes its exit code."""

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
    """While it lasts, errors of writing to standard output and standard error are no errors."""
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
    """Give standard descriptors that were closed to nothing: the next file to be opened would get what is printed."""
    for descriptor in (0, *_STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)


class _Guarded:
    """A stream whose writing cannot fail; what it cannot print is left out.

    Args:
        stream: a text stream, or the binary one below it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _Guarded:
        """The binary stream below, which click takes where the encoding is ASCII."""
        return _Guarded(self._stream.buffer)

    def write(self, text: Any) -> int:
        """Write what can be written."""
        try:
            self._tried(lambda: self._stream.write(text))
        except UnicodeEncodeError:
            plain = text.encode(self._stream.encoding, "backslashreplace").decode(self._stream.encoding)
            self._tried(lambda: self._stream.write(plain))
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write what can be written."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Bring out what can be brought out."""
        self._tried(self._stream.flush)

    def _tried(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except UnicodeEncodeError:
            raise
        except BlockingIOError:
            return  # it is full at the moment
        except (OSError, ValueError):
            self._let_go()

    def _let_go(self) -> None:
        """Lead what is printed from here on to nothing, also what still waits to be flushed when Python ends."""
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            if descriptor in _STANDARD:
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, descriptor)
                os.close(nothing)
                self._stream.flush()
