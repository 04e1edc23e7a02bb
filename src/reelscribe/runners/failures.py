"""The file of failures beside an output: a line for every video without a caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Sink, open_sink
from ..data.rows import RowForm
from ..record import Failure, Sample

FAILURES_SUFFIX = ".failures.jsonl"
"""Added to the output's name."""


class FailureLog:
    """The file of failures: written like an output, and not there when nothing failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sink: Sink | None = None

    def __enter__(self) -> FailureLog:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._sink is not None:
            self._sink.__exit__(*error)

    def write(self, row: Sample) -> None:
        """Add one failure."""
        if self._sink is None:
            self._sink = open_sink(self.path).__enter__()
        self._sink.write(row)

    def commit(self, path: Path | None = None) -> None:
        """Give the file its name, or another one in the same folder; without failures remove the one of an earlier
        run."""
        path = path or self.path
        if self._sink is not None:
            self._sink.commit(path.name)
            return
        path.unlink(missing_ok=True)


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
        entry["id"] = row["id"] if isinstance(row["id"], (str, int)) else str(row["id"])
    return {
        **entry,
        "video": describe_video(video),
        "video_index": video_index,
        "kind": failure.kind,
        "message": failure.message,
    }


def describe_video(video: Any) -> str | None:
    """A video's path, or what there is instead of one."""
    if isinstance(video, dict):
        return video.get("path") or describe_video(video.get("bytes"))
    if isinstance(video, (bytes, bytearray)):
        return f"<{len(video):,} bytes>"
    return None if video is None else str(video)


def failures_path(output: Path) -> Path:
    """Where the failures of a run with this output go."""
    return output.with_name(output.name + FAILURES_SUFFIX)
