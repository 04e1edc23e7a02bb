"""The parts of videos that rows are about: their names, and where they are stored until the output is made. Nothing
here reads a video."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..types import TimeWindow
from .temporary import TemporaryFile

CUTS = ("copy", "exact")
"""How a part is cut out: `copy` copies the encoded frames from the preceding key frame on, `exact` re-encodes."""
SECOND_DIGITS = 5
"""Fewest digits of whole seconds in a name, so that names within a day sort by time."""
OPEN_END = "end"
RECEIPT = ".json"
"""Suffix of receipts for parts that this run put into the output."""
KEPT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".mts", ".m2ts"})
"""Containers that a copied part keeps; any other becomes Matroska, which supports nearly every codec."""


def piece_name(window: TimeWindow) -> str:
    """What a part's name adds to the video's, without its suffix: unique for every window.

    Seconds have at least five digits before the decimal point, which is written `_`, and as many after it as needed; an
    open start is left out, an open end is `end`. Names of one video sort by start, then by end.

    >>> piece_name(TimeWindow(10, 20)), piece_name(TimeWindow(10.25, None)), piece_name(TimeWindow(None, 0.5))
    ('00010-00020', '00010_25-end', '-00000_5')
    """
    start, end = window.start_seconds, window.end_seconds
    return f"{'' if start is None else _seconds(start)}-{OPEN_END if end is None else _seconds(end)}"


def _seconds(value: float) -> str:
    whole, _, rest = format(Decimal(repr(float(value) + 0.0)), "f").partition(".")
    digits = rest.rstrip("0")
    return f"{whole:0>{SECOND_DIGITS}}" + (f"_{digits}" if digits else "")


def piece_suffix(suffix: str, cut: str) -> str:
    """The suffix of a part of a video with this suffix."""
    if cut == "exact":
        return ".mp4"
    return suffix if suffix.lower() in KEPT_SUFFIXES else ".mkv"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a video to be cut out, and its temporary and final place."""

    source: Path
    """The video."""
    window: TimeWindow
    """The part."""
    cut: str
    """How it is cut, one of `CUTS`."""
    target: Path
    """Its name in the output."""
    waiting: Path
    """Where it is stored until the output is made."""

    @property
    def is_there(self) -> bool:
        """Whether it need not be cut: it is stored, or in the output as this run put it there; and its video has not
        changed since."""
        return self._waits or self._kept() == [self.cut, _state(self.source), _state(self.target)]

    @property
    def is_own(self) -> bool:
        """Whether the file in the output is the one this run put there, whether or not its video has changed."""
        state = _state(self.target)
        return state is not None and self._kept()[-1:] == [state]

    @property
    def _waits(self) -> bool:
        made, changed = _state(self.waiting), _changed_ns(self.source)
        return made is not None and (changed is None or made[-1] >= changed)

    def _kept(self) -> list[Any]:
        """The receipt: how it was cut, and the states of the video and the part."""
        try:
            kept = json.loads(self._receipt.read_text("ascii"))
        except (OSError, ValueError):
            return []
        return kept if isinstance(kept, list) else []

    def _note(self, made: Path) -> None:
        self._receipt.write_text(json.dumps([self.cut, _state(self.source), _state(made)]), "ascii")

    def place(self) -> None:
        """Move it to its name in the output; a crash at any moment leaves one of the two."""
        self._note(self.waiting)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.waiting.replace(self.target)
        except OSError:  # another file system is mounted inside the output's folder
            self._copy_over()

    def _copy_over(self) -> None:
        temporary = TemporaryFile(self.target, follow=False)
        temporary.create()
        try:
            shutil.copy2(self.waiting, temporary.path)
            temporary.commit()
        finally:
            temporary.discard()
        self._note(self.target)
        self.waiting.unlink(missing_ok=True)

    @property
    def _receipt(self) -> Path:
        return self.waiting.with_name(self.waiting.name.partition(".")[0] + RECEIPT)


def waiting_path(folder: Path, target: Path, cut: str) -> Path:
    """Where a part is stored until the output is made.

    Args:
        folder: the run's folder for them.
        target: its name in the output.
        cut: how it is cut.
    """
    digest = hashlib.blake2b(os.fsencode(target.name) + b"/" + os.fsencode(target.parent), digest_size=16)
    return folder / f"{digest.hexdigest()}.{cut}{target.suffix}"


def remove_waiting(folder: Path) -> None:
    """Remove parts that are not in the output because their captions failed."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.suffix != RECEIPT:
            path.unlink()


def _changed_ns(video: Path) -> int | None:
    """When a video, or its name, last changed: an older file may have replaced it. None: it does not exist."""
    try:
        status = video.stat()
        return max(status.st_mtime_ns, status.st_ctime_ns, video.lstat().st_ctime_ns)
    except OSError:
        return None


def _state(path: Path) -> Any:
    """A value that changes when a file does; None: it does not exist. Renaming keeps it."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]
