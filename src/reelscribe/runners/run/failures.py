"""The failures file next to an output, one line per video without a caption."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...data import BY_SUFFIX, by_suffix, open_sink
from ...data.arrow import scalar_value
from ...printable import redacted
from ...rows.forms import RowForm
from ...types import Failure, Sample

FAILURES_SUFFIX = ".failures.jsonl"
"""Appended to the output's name."""
MAX_ID_BITS = 8192
"""Largest number that is written to the failures file unchanged."""


def write_failures(path: Path, entries: Iterable[Sample]) -> bool:
    """Write the failures file; without failures, remove the one of an earlier run.

    Returns:
        Whether there are any.

    Raises:
        DataError: it cannot be written.
    """
    if by_suffix(BY_SUFFIX, path, role="failures file").has_types:
        entries = ({**entry, "id": str(entry["id"])} if "id" in entry else entry for entry in entries)
    first = next(rest := iter(entries), None)
    if first is None:
        path.unlink(missing_ok=True)
        return False
    with open_sink(path) as sink:
        sink.write(first)
        for entry in rest:
            sink.write(entry)
        sink.commit()
    return True


def failure_row(row: Sample, number: int, video_index: int, failure: Failure, form: RowForm) -> Sample:
    """A line of the failures file.

    Args:
        row: the row as the source has it.
        number: its index in the input, from 0.
        video_index: index of the video in the row.
        failure: what happened.
        form: the rows' form.
    """
    videos = form.videos(row)
    video = videos[video_index] if video_index < len(videos) else None
    entry: Sample = {"row": number}
    if row.get("id") is not None:
        entry["id"] = _name_of(row["id"])
    return {
        **entry,
        "video": describe_video(video),
        "video_index": video_index,
        "kind": failure.kind,
        "message": failure.message,
        "attempts": failure.attempts,
        "seconds": round(failure.seconds, 3),
    }


def describe_video(video: Any) -> str | None:
    """A video's path, an address without credentials, or a description of another value."""
    video = scalar_value(video)
    if isinstance(video, dict):
        path = scalar_value(video.get("path"))
        if path:
            return redacted(path) if isinstance(path, str) else reprlib.repr(path)
        return describe_video(video.get("bytes"))
    if isinstance(video, (bytes, bytearray)):
        return f"<{len(video):,} bytes>"
    if video is None:
        return None
    return redacted(str(video)) if isinstance(video, str | os.PathLike) else reprlib.repr(video)


def _name_of(value: Any) -> int | str:
    """A row's own id as written to a file; a number with thousands of digits cannot be formatted."""
    if isinstance(value, int) and value.bit_length() <= MAX_ID_BITS:
        return value
    return redacted(value if isinstance(value, str) else str(scalar_value(value)))


def failures_path(output: Path) -> Path:
    """The failures file of a run with this output."""
    return output.with_name(output.name + FAILURES_SUFFIX)
