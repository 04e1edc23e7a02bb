"""The file of failures beside an output, a line for every video without a caption; and how many there may be."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data import BY_SUFFIX, by_suffix, open_sink
from ...data.arrow import scalar_value
from ...errors import SettingsError
from ...printable import redacted
from ...rows.forms import RowForm
from ...types import Failure, Sample
from ..report.summary import Counts

FAILURES_SUFFIX = ".failures.jsonl"
"""Added to the output's name."""
MAX_ID_BITS = 8192
"""Size of a number that goes into the file of failures as it is."""
FEWEST_ROWS = 100
"""Rows after which a share of failures says something."""


def write_failures(path: Path, entries: Iterable[Sample]) -> bool:
    """Write the file of failures; without any, remove the one of an earlier run.

    Returns:
        Whether there are any.

    Raises:
        DataError: it cannot be written.
    """
    if by_suffix(BY_SUFFIX, path, role="file of failures").has_types:
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


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many rows may fail before a run is stopped."""

    rows: int | None = None
    """At most this many; None: any number."""
    share: float | None = None
    """At most this share of the rows, 0 to 1; None: any. It counts from `FEWEST_ROWS` rows on, and at the end."""

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """From `100` or `2.5%`.

        Raises:
            SettingsError: it is neither.
        """
        number, percent, rest = text.strip().partition("%")
        try:
            if percent and not rest and 0 <= float(number) <= 100:
                return cls(share=float(number) / 100)
            if not percent and int(number) >= 0:
                return cls(rows=int(number))
        except ValueError:
            pass
        raise SettingsError(
            f"a limit of failures is a number of rows, such as 100, or a share, such as 2%; got {text!r}"
        )

    def is_passed(self, counts: Counts, *, at_end: bool = False) -> bool:
        """Whether more rows have failed than may."""
        if self.rows is not None and counts.failed_rows > self.rows:
            return True
        enough = at_end or counts.rows_in >= FEWEST_ROWS
        return self.share is not None and enough and counts.failed_rows > self.share * counts.rows_in


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
    """A video's path, an address without credentials, or what there is instead of one."""
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
    """A row's own name as it goes into a file; a number with thousands of digits cannot be written out."""
    if isinstance(value, int) and value.bit_length() <= MAX_ID_BITS:
        return value
    return redacted(value if isinstance(value, str) else str(scalar_value(value)))


def failures_path(output: Path) -> Path:
    """Where the failures of a run with this output go."""
    return output.with_name(output.name + FAILURES_SUFFIX)
