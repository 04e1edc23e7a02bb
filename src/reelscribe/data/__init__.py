"""Sources and sinks of rows: one module per format, chosen by the path's suffix."""

from __future__ import annotations

from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..stores import STORES, AnyPath, StoredPath, located, scheme_of
from ..video.files.signatures import still_format
from .base import MAX_ROW_BYTES, Bounded, Format, LeaveOut, NewFields, Pictured, Sink, Source, check_regular, reading
from .folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Listing, VideoFileSource, list_files, list_stored, passed_over_text
from .formats import BY_NAME, BY_SUFFIX, FORMATS, MANY, SINKS, SOURCES, by_suffix
from .hub_dataset import HubSource, is_hub_dataset
from .target import Target, schema_of

__all__ = [
    "BY_NAME",
    "BY_SUFFIX",
    "FORMATS",
    "SINKS",
    "SOURCES",
    "Format",
    "LeaveOut",
    "NewFields",
    "Sink",
    "Source",
    "Target",
    "by_suffix",
    "open_sink",
    "open_source",
    "passed_over",
    "passed_over_text",
    "schema_of",
]


_MANY_CALLED = {suffix: row.many for row in FORMATS.built_in.values() if row.many for suffix in row.suffixes}
"""Suffix of files that form one data set in a folder to their name in messages."""


def open_source(
    path: str | AnyPath,
    *,
    images: bool = False,
    leave_out: LeaveOut | None = None,
    is_output: LeaveOut | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Source:
    """The rows at a path or an address: a data file, a video, a folder, or a pattern such as `shards/*.tar`.

    Args:
        path: the location.
        images: whether still pictures of a folder, or of a tar shard's samples without a video, count as videos.
        leave_out: selects files of a folder or a pattern that are not part of the data set.
        is_output: selects data files that are not part of it if they are among videos.
        max_row_bytes: the largest row to read into memory.

    Raises:
        DataError: it does not exist, is not a regular file, has an unknown suffix, or is a folder with several kinds of
            files.
    """
    source = _source_at(located(path), images=images, leave_out=leave_out, is_output=is_output)
    if isinstance(source, Pictured):
        source.images = images
    if isinstance(source, Bounded):
        source.max_row_bytes = max_row_bytes
    return source


def passed_over(source: Source) -> Mapping[str, int]:
    """Number of files in a folder that are not part of the data set, by suffix; empty if the source is not a folder of
    files."""
    return getattr(source, "passed_over", {})


def _source_at(path: AnyPath, *, images: bool, leave_out: LeaveOut | None, is_output: LeaveOut | None) -> Source:
    if isinstance(path, StoredPath):
        return _stored_source(path, images=images, leave_out=leave_out)
    if not path.exists():
        return _matching(path, leave_out)
    if path.is_dir():
        return _folder_source(path, images=images, leave_out=leave_out, is_output=is_output)
    check_regular(path, role="input")
    if not images and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        _refuse_still(path)
    return by_suffix(SOURCES, path, role="input")(path)


def _refuse_still(path: Path) -> None:
    """Reject a still picture as the input file.

    Raises:
        DataError: it is a still picture.
    """
    with reading(path), path.open("rb") as file:
        kind = still_format(file)
    if kind is not None:
        raise DataError(
            f"{str(path)!r} is a still picture ({kind}), not a video: to caption it as a one-frame clip, use "
            "--allow-images (allow_images)"
        )


def _stored_source(path: StoredPath, *, images: bool, leave_out: LeaveOut | None) -> Source:
    """The source at an address."""
    if is_hub_dataset(path):
        return HubSource(path)
    with reading(path):
        there, is_folder = path.exists(), path.is_dir()
    if not there:
        raise DataError(f"{str(path)!r} does not exist")
    if is_folder:
        with reading(path):
            if scheme_of(path.url) in STORES and (saved := _saved(path)) is not None:
                return saved
            return _source_of(path, list_stored(path, MANY.built_in, images=images, leave_out=leave_out))
    return by_suffix(SOURCES, path, role="input")(path)


def _matching(pattern: Path, leave_out: LeaveOut | None) -> Source:
    """The files of a pattern, as one data set."""
    found = [Path(found) for found in sorted(glob(str(pattern)))]  # noqa: PTH207 (absolute patterns, too)
    files = [file for file in found if leave_out is None or not leave_out(file)]
    if not files:
        raise DataError(f"no file or folder matches {str(pattern)!r}")
    return by_suffix(MANY, pattern, role="pattern")(pattern, files)


def _folder_source(path: Path, *, images: bool, leave_out: LeaveOut | None, is_output: LeaveOut | None) -> Source:
    if saved := _saved(path):
        return saved
    listing = list_files(path, MANY.built_in, images=images, leave_out=leave_out)
    if is_output is not None and any(_is_video(file) for file in listing.files):
        listing.files[:] = [file for file in listing.files if _is_video(file) or not is_output(file)]
    return _source_of(path, listing)


def _is_video(file: AnyPath) -> bool:
    """Whether a file of a folder is a video rather than a data file."""
    return file.suffix.lower() not in MANY.built_in


def _saved(path: AnyPath) -> Source | None:
    """The source for a folder that is a data set itself; None: it is a folder of files."""
    tried = (row.folder_source(path) for row in FORMATS.built_in.values() if row.folder_source is not None)
    return next((source for source in tried if source is not None), None)


def _source_of(path: AnyPath, listing: Listing) -> Source:
    """The rows of the files of a folder."""
    files = listing.files
    kinds = {"video" if _is_video(file) else file.suffix.lower() for file in files}
    if not files:
        raise DataError(
            f"no videos, {' or '.join(_MANY_CALLED.values())} under {str(path)!r}, {_instead(listing)}; "
            f"videos are {', '.join(VIDEO_SUFFIXES)}"
        )
    if len(kinds) > 1:
        raise DataError(f"the folder {str(path)!r} contains {_listed(kinds)}; give the file itself, or a pattern")
    (kind,) = kinds
    source: Any = MANY[kind](path, files) if kind in MANY.built_in else VideoFileSource(path, files)
    source.passed_over = listing.passed_over
    return source  # type: ignore[no-any-return]


def _instead(listing: Listing) -> str:
    """What a folder contains instead of data."""
    if not listing.passed_over:
        return "which is empty"
    has_images = any(suffix in IMAGE_SUFFIXES for suffix in listing.passed_over)
    hint = "; still pictures are captioned with --allow-images (allow_images)" if has_images else ""
    return f"only {passed_over_text(listing.passed_over)}{hint}"


def _listed(kinds: set[str]) -> str:
    names = {**_MANY_CALLED, "video": "videos"}
    return " and ".join(names[kind] for kind in names if kind in kinds)


def open_sink(path: str | Path, *, schema: Any = None, new_fields: NewFields | None = None) -> Sink:
    """A sink for a path; an existing file is replaced at `commit`.

    Args:
        path: the final name; its suffix is the format.
        schema: Arrow schema of the source's rows, if there is one.
        new_fields: fields the run adds to the rows.

    Raises:
        DataError: the suffix is unknown.
    """
    path = Path(path)
    return by_suffix(SINKS, path, role="output")(path, schema=schema, new_fields=new_fields)
