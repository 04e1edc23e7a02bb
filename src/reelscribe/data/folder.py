"""A folder of videos, or a single one: one row per file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..stores import AnyPath, StoredPath
from ..types import Sample
from ..video.files.signatures import HEAD_BYTES, is_animated_webp, is_source_or_music, still_kind
from .base import Format, LeaveOut

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".gif", ".flv", ".wmv",
    ".3gp", ".3g2", ".asf", ".mxf", ".ogv", ".vob",
    ".f4v", ".mp4v", ".mpg4", ".qt", ".mqv", ".mj2", ".ismv", ".3gpp", ".3gp2", ".3gpp2",
    ".insv", ".lrv", ".lrf", ".360", ".mk3d", ".divx", ".xvid", ".amv", ".wm", ".ogm", ".ogx",
    ".mpe", ".m1v", ".m2v", ".mpv", ".mp2v", ".mpg2", ".mpeg2", ".m2p", ".mod", ".vro", ".evo",
    ".tod", ".trp", ".tp", ".m2t", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".h266", ".266", ".vvc",
    ".ivf", ".obu", ".av1", ".vc1", ".y4m", ".mjpeg", ".mjpg", ".dv", ".dif", ".rm", ".rmvb", ".nut", ".wtv", ".nsv",
    ".gxf", ".lxf", ".ty", ".viv", ".apng", ".avif", ".webp",
)  # fmt: skip
"""Suffixes of videos, in any case."""
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
"""Suffixes of still pictures, if those are captioned."""
_IS_OTHER: dict[str, Callable[[bytes], bool]] = {
    **dict.fromkeys((".mod", ".nut", ".dif", ".tp", ".ty"), is_source_or_music),
    ".avif": lambda head: still_kind(head) is not None,
    ".webp": lambda head: not is_animated_webp(head),
}
"""Suffixes that files other than videos also have, and the test that detects those by their first bytes."""
DOUBTFUL_SUFFIXES = frozenset(_IS_OTHER)
"""Suffixes of videos and of other things."""
VIDEO_FIELD = "video"
SUFFIXES_TOLD = 12
"""Most suffixes of skipped files that are listed individually."""


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


@dataclass(frozen=True, slots=True)
class Listing:
    """The files in a folder, without hidden ones."""

    files: list[Any]
    """Paths of the files that are taken, sorted."""
    passed_over: dict[str, int]
    """How many files are not, by lower-case suffix; empty for names without one."""


def is_video(suffix: str, head: Callable[[], bytes]) -> bool:
    """Whether a file counts as a video.

    Args:
        suffix: in lower case.
        head: returns the first bytes; called only if the suffix is ambiguous.
    """
    return suffix in VIDEO_SUFFIXES and not (suffix in _IS_OTHER and _IS_OTHER[suffix](head()))


def list_stored(
    root: StoredPath, suffixes: Collection[str], *, images: bool = False, leave_out: LeaveOut | None = None
) -> Listing:
    """Like `list_files`, for a folder in an object store; `.webp` counts as a still picture without being read."""
    shown = (path for path in root.files() if not any(part.startswith(".") for part in path.url.split("/")))
    return _listing(_without(shown, leave_out), suffixes, images=images, head=_stored_head)


def list_files(
    root: Path, suffixes: Collection[str], *, images: bool = False, leave_out: LeaveOut | None = None
) -> Listing:
    """Files under a folder that are videos, or whose names end in one of the suffixes; absolute, sorted by path.

    Files and folders whose name starts with a dot are left out; links are followed, each folder once.

    Args:
        root: the folder.
        suffixes: suffixes taken besides those of videos, in any case.
        images: whether still pictures are taken too.
        leave_out: files that are neither taken nor counted.

    Raises:
        DataError: a folder cannot be listed.
    """
    root = root.resolve()
    listing = _listing(_without(_walk(root), leave_out), suffixes, images=images, head=_head)
    listing.files.sort(key=lambda path: path.relative_to(root).parts)
    return listing


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Numbers of files by suffix, as one string.

    >>> passed_over_text({".psd": 1, ".txt": 2})
    '3 files (.txt 2, .psd 1)'
    """
    by_count = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{suffix or 'without a suffix'} {count:,}" for suffix, count in by_count[:SUFFIXES_TOLD]]
    more = sum(count for _, count in by_count[SUFFIXES_TOLD:])
    told += [f"others {more:,}"] if more else []
    count = sum(passed_over.values())
    return f"{count:,} file{'' if count == 1 else 's'} ({', '.join(told)})"


def _without(paths: Iterable[Any], leave_out: LeaveOut | None) -> Iterable[Any]:
    return paths if leave_out is None else (path for path in paths if not leave_out(path))


def _listing(paths: Iterable[Any], suffixes: Collection[str], *, images: bool, head: Callable[[Any], bytes]) -> Listing:
    taken, passed_over = {*suffixes, *(IMAGE_SUFFIXES if images else ())}, Counter[str]()
    files = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in taken or is_video(suffix, partial(head, path)):
            files.append(path)
        else:
            passed_over[suffix] += 1
    return Listing(files, dict(passed_over))


def _head(path: Path) -> bytes:
    """The first bytes of a file; empty if it is not a file or cannot be read: its row will report that."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _stored_head(path: StoredPath) -> bytes:
    if path.suffix.lower() == ".webp":  # a request per file would take long if there are many
        return b""
    try:
        return path.read_range(0, HEAD_BYTES)
    except (OSError, ValueError):
        return b""


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


FORMAT = Format(name="video", suffixes=(*VIDEO_SUFFIXES, *IMAGE_SUFFIXES), source=VideoFileSource)
