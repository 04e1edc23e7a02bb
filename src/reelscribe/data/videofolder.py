"""Captions as trainers of video models expect them: a `.txt` beside each clip, and `metadata.jsonl` or `metadata.csv`.

The table is in the `videofolder` layout of the `datasets` library: `file_name` relative to its folder, `caption`, and
the fields of the row. A video that got no caption is in neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..record import Sample
from ..stores import StoredPath
from .base import Layout, writing
from .delimited import join_delimited
from .jsonl import JsonlSink, JsonlSource, join_lines
from .media import copy_video
from .temporary import TemporaryFile

METADATA = "metadata.jsonl"
"""The table, where the output is named by its folder."""
NAMES = (METADATA, "metadata.csv")
"""What the table can be called."""
FILE_NAME, CAPTION = "file_name", "caption"


def metadata_path(output: Path) -> Path:
    """The table of an output that is named by it or by its folder.

    Raises:
        DataError: it is a file of another name.
    """
    if output.name in NAMES:
        return output
    if output.suffix and not output.is_dir():
        raise DataError(f"a videofolder is named by its folder, or by {' or '.join(NAMES)} in it; got {str(output)!r}")
    return output / METADATA


def join_videofolder(parts: Sequence[Path], output: Path, layout: Layout) -> None:
    """Captions beside the videos, then the table."""
    with _lines(output) as lines:
        for part in parts:
            for row in JsonlSource(part, max_row_bytes=None):
                made = _placed(row, output.parent, layout)
                if made is not None:
                    lines.write(made)
        lines.commit()
        (join_delimited if output.suffix == ".csv" else join_lines)([lines.path], output)


def check_videos(rows: Iterable[Sample], output: Path, layout: Layout, *, fresh: bool) -> None:
    """Stop before videos are captioned whose captions could not be placed.

    Args:
        rows: the rows of the source.
        output: the table.
        layout: which field holds the video.
        fresh: whether a `.txt` that is there is none of this run's own.

    Raises:
        DataError: a video is no file, or lies elsewhere; two share a name; a `.txt` is there already.
    """
    if layout.video_field is None:
        raise DataError("a videofolder needs rows with one video each; these have lists of videos")
    taken: dict[Path, Any] = {}
    for row in rows:
        video = row.get(layout.video_field)
        if video in (None, ""):
            continue
        text = sidecar(output.parent / planned_name(video, output.parent, layout))
        if taken.setdefault(text, video) != video:
            raise DataError(f"the captions of {taken[text]!r} and {video!r} would share the file {str(text)!r}")
        if fresh and text.exists():
            raise DataError(f"{str(text)!r} is there already: move it away, or replace it (--overwrite)")


@contextmanager
def _lines(output: Path) -> Iterator[JsonlSink]:
    path = TemporaryFile(output).path.with_suffix(".jsonl")
    try:
        with JsonlSink(path) as lines:
            yield lines
    finally:
        path.unlink(missing_ok=True)


def _placed(row: Sample, folder: Path, layout: Layout) -> Sample | None:
    """The row of the table, once its caption lies beside its video."""
    assert layout.video_field is not None
    assert layout.caption_field is not None
    captions = row.pop(layout.caption_field)
    video = row.pop(layout.video_field)
    if not captions:
        return None
    name = planned_name(video, folder, layout)
    _copy(video, layout, folder.resolve() / name)
    _write_text(sidecar(folder / name), "\n".join(" ".join(text.splitlines()) for text in captions))
    more = {layout.caption_field: captions} if len(captions) > 1 else {}
    return {FILE_NAME: name, CAPTION: captions[0], **row, **more}


def sidecar(video: Path) -> Path:
    """Where the captions of a video go."""
    return video.with_suffix(".txt")


def planned_name(video: Any, folder: Path, layout: Layout) -> str:
    """The path of a video relative to the folder, where it lies or will be copied to.

    Raises:
        DataError: it lies elsewhere and is not to be copied, or is no path.
    """
    path, base = video_path(video, layout), folder.resolve()
    if path.is_relative_to(base):
        return path.relative_to(base).as_posix()
    if not layout.with_videos:
        raise DataError(
            f"the video {str(path)!r} lies outside of {str(folder)!r}: name the folder with the videos as the output, "
            "or have them copied (--with-videos)"
        )
    root = (layout.root if isinstance(layout.root, Path) else path.parent).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def video_path(video: Any, layout: Layout) -> Path:
    """The file of a video value.

    Raises:
        DataError: it is no path.
    """
    if isinstance(video, dict) and video.get("bytes") is None:
        video = video.get("path")
    if not isinstance(video, str) or "://" in video:
        raise DataError("a videofolder needs videos that are files; these are bytes, or remote")
    if isinstance(layout.root, StoredPath) and not video.startswith("/"):
        raise DataError("a videofolder needs videos that are files; these are remote")
    path = Path(layout.root if isinstance(layout.root, Path) else "", video)
    return path.parent.resolve() / path.name


def _copy(video: Any, layout: Layout, target: Path) -> None:
    """Copy a video that is not there yet, if it may still be read."""
    path = video_path(video, layout)
    if target.exists() and target.stat().st_size == path.stat().st_size:
        return
    temporary = TemporaryFile(target)
    temporary.create()
    try:
        with writing(target):
            if not copy_video(str(path), layout, temporary.path):
                raise DataError(f"cannot copy {str(path)!r}: it is gone, or may not be read any more")
        temporary.commit()
    finally:
        temporary.discard()


def _write_text(path: Path, text: str) -> None:
    temporary = TemporaryFile(path)
    temporary.create()
    try:
        with writing(path):
            temporary.path.write_text(text, "utf-8", "backslashreplace")
            temporary.path.replace(path)
    finally:
        temporary.discard()
