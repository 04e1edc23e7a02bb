"""A file, or a folder, that appears under its final name only when it is complete."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from ..errors import DataError
from .base import writing

LONGEST_LABEL = 200
"""Bytes of a final name that a temporary one includes: file systems allow 255 in all."""


_MARK = r"\.\d+-[0-9a-f]{6}"
"""The part of a name that is unique to a process."""


def remove_leftovers(*finals: Path) -> None:
    """Remove leftovers of killed processes for these files; only if no other process can be writing them."""
    for final in finals:
        target = final.resolve()
        ours = re.compile(rf"\.+{re.escape(_label(target.name))}{_MARK}\.(part|jsonl)({_MARK}\.part)?")
        for path in target.parent.glob(".*"):
            if not ours.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _beside(final: Path) -> Path:
    return final.with_name(f".{_label(final.name)}.{os.getpid()}-{secrets.token_hex(3)}.part")


def _label(name: str) -> str:
    """The name, or its digest if it is too long to extend."""
    data = os.fsencode(name)
    return name if len(data) <= LONGEST_LABEL else hashlib.blake2b(data, digest_size=16).hexdigest()


class FileSink:
    """A sink that writes to a temporary file, which is removed when its context ends without a commit."""

    path: Path
    _temporary: TemporaryFile

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        except DataError:
            if error is None:
                raise
        finally:
            self._temporary.discard()

    def _close(self) -> None:
        raise NotImplementedError


class TemporaryFile:
    """A temporary name next to the final one; `commit` renames it, `discard` removes it.

    Args:
        final: the final name.
        follow: whether a link of that name is followed, and its target replaced; otherwise the link itself is replaced.
    """

    def __init__(self, final: Path, *, follow: bool = True) -> None:
        self.final = final.resolve() if follow else final.parent.resolve() / final.name
        self.path = _beside(self.final)
        self._done = False

    def create(self) -> None:
        """Create the folder and the empty file, so that an unwritable place fails at once."""
        with writing(self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            if self.final.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            self.path.touch(exist_ok=False)

    def commit(self, name: str | None = None) -> None:
        """Flush the bytes to disk and give the file its final name, or another one in the same folder."""
        with writing(self.final):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self.final if name is None else self.final.with_name(name))
        self._done = True

    def discard(self) -> None:
        """Remove the file, unless it has its final name already."""
        if not self._done:
            self.path.unlink(missing_ok=True)


class TemporaryFolder:
    """The same for a folder; an existing one is replaced."""

    def __init__(self, final: Path) -> None:
        self.final = final.resolve()
        self.path = _beside(self.final)

    def create(self) -> None:
        """Create the folder, so that an unwritable place fails at once."""
        with writing(self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            if self.final.is_file():
                raise NotADirectoryError(None, "it is a file")
            self.path.mkdir()

    def commit(self) -> None:
        """Give the folder its final name."""
        old = _beside(self.final)
        with writing(self.final):
            if self.final.exists():
                self.final.replace(old)
            self.path.replace(self.final)
            shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder, unless it has its final name already."""
        shutil.rmtree(self.path, ignore_errors=True)
