"""A folder of videos, or a single one: a row for each file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..record import Sample
from ..stores import AnyPath, StoredPath

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".gif", ".flv", ".wmv",
    ".3gp", ".3g2", ".asf", ".mxf", ".ogv", ".vob",
)  # fmt: skip
"""What counts as a video by its name, in any case."""
VIDEO_FIELD = "video"


class VideoFileSource:
    """Rows `{"video": absolute path}` for a video, or for the videos of a folder."""

    def __init__(self, path: AnyPath, files: Sequence[AnyPath] | None = None) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._files = [path.parent.resolve() / path.name] if files is None else list(files)

    def __iter__(self) -> Iterator[Sample]:
        return ({VIDEO_FIELD: path.url if isinstance(path, StoredPath) else str(path)} for path in self._files)

    def fields(self) -> list[str] | None:
        """One field."""
        return [VIDEO_FIELD]

    def count(self) -> int | None:
        """The number of files."""
        return len(self._files)

    def schema(self) -> Any:
        """Not needed: the one field is a string."""
        return None

    def files(self) -> Sequence[AnyPath]:
        """The videos."""
        return self._files


def list_stored(root: StoredPath, suffixes: tuple[str, ...]) -> list[StoredPath]:
    """The same for a folder of an object store."""
    found = [path for path in root.files() if path.name.lower().endswith(suffixes)]
    return [path for path in found if not any(part.startswith(".") for part in path.url.split("/"))]


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files under a folder whose names end in one of the suffixes, in any case; absolute, sorted by path.

    Files and folders whose name starts with a dot are left out; links are followed, each folder once.

    Raises:
        DataError: a folder cannot be listed.
    """
    root = root.resolve()
    found = [path for path in _walk(root) if path.name.lower().endswith(suffixes)]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _walk(root: Path) -> Iterator[Path]:
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if _first_time(Path(folder, name), seen)]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _first_time(folder: Path, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def _cannot_list(exc: OSError) -> None:
    raise DataError(f"cannot list the folder {exc.filename!r}: {exc.strerror}") from exc
