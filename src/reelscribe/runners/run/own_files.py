"""Files of a run inside its input folder: its output, failures, and earlier outputs that were kept.

They are not rows of the input, for the same command or for a retry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...stores import AnyPath, StoredPath
from .run_folder import run_folder


@dataclass(frozen=True)
class OwnFiles:
    """Recognises a run's own files; plain values, so that it can be sent to other processes."""

    places: frozenset[str]
    """Absolute paths, or addresses, of files and folders."""
    kept: tuple[str, ...] = ()
    """Patterns of the paths of earlier outputs."""

    @classmethod
    def of(cls, outputs: Iterable[AnyPath]) -> OwnFiles:
        """The files of a run with these outputs."""
        places: set[str] = set()
        for output in outputs:
            places |= _names(output)
        return cls(frozenset(places), tuple(_kept_pattern(place) for place in sorted(places)))

    def __call__(self, path: AnyPath) -> bool:
        """Whether a file is one of them, or is inside one that is a folder."""
        place = path.url if isinstance(path, StoredPath) else os.path.abspath(path)  # noqa: PTH100 - links stay
        return place in self.places or any(
            place.startswith(f"{own}/") or re.match(kept, place)
            for own, kept in zip(sorted(self.places), self.kept, strict=True)
        )


def kept_name(output: Path, number: int) -> Path:
    """Name under which an edited output is kept when a new one takes its name.

    >>> kept_name(Path("captions.jsonl.gz"), 2)
    PosixPath('captions.edited-2.jsonl.gz')
    """
    stem, dot, suffixes = output.name.partition(".") if not output.name.startswith(".") else (output.name, "", "")
    return output.with_name(f"{stem}.edited-{number}{dot}{suffixes}")


def is_output(path: AnyPath) -> bool:
    """Whether a run wrote this file, or its folder."""
    if isinstance(path, StoredPath):
        return False
    return run_folder(path).exists() or run_folder(path.parent).exists()


def _names(output: AnyPath) -> set[str]:
    """Every name that a folder listing may have for an output."""
    if isinstance(output, StoredPath):
        return {output.url}
    parent = Path(os.path.realpath(output.parent))
    return {os.path.abspath(output), str(parent / output.name), os.path.realpath(output)}  # noqa: PTH100 - links stay


def _kept_pattern(place: str) -> str:
    folder, slash, name = place.rpartition("/")
    stem, dot, suffixes = name.partition(".")
    return re.escape(f"{folder}{slash}{stem}") + r"\.edited-\d+" + re.escape(f"{dot}{suffixes}") + r"(/|$)"
