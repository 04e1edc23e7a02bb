"""The videos of rows, for outputs that include them: only captioned ones, with the same checks as reading.

Remote videos are never fetched for an output.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..stores import StoredPath, scheme_of
from ..types import Sample
from .base import Layout, reading
from .folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def captioned_video(row: Sample, layout: Layout) -> Any:
    """The value of a row's video if videos are included in the output and this one has captions, else None."""
    if not layout.with_videos or layout.video_field is None or layout.caption_field is None:
        return None
    return row.get(layout.video_field) if row.get(layout.caption_field) else None


def video_suffix(video: Any) -> str | None:
    """The lower-case suffix of a video value, without its dot; None: it has no suffix of videos or still pictures."""
    if isinstance(video, bytes):
        return "mp4"
    name = video.get("path") if isinstance(video, dict) else video
    suffix = Path(name).suffix.lower() if isinstance(name, str) else ""
    return suffix[1:] if suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) else None


@contextmanager
def opened_video(video: Any, layout: Layout) -> Iterator[IO[bytes] | None]:
    """The bytes of a video value; None if it is not on this machine, or may not or cannot be read as a video.

    The file is checked once it is open (`VideoSource.file`): a later replacement is not what is copied.

    Raises:
        DataError: an open file cannot be read.
    """
    from ..video.files.source import find_source
    from ..video.rejection import RejectedError

    name = video.get("path") if isinstance(video, dict) and video.get("bytes") is None else video
    if isinstance(name, str) and _is_elsewhere(name, layout):
        yield None
        return
    try:
        file = find_source(video, root=layout.root, limits=layout.limits).file()
    except RejectedError:
        yield None
        return
    with file, reading(Path(name) if isinstance(name, str) else Path("the video of a row")):
        yield file


def copy_video(video: Any, layout: Layout, target: Path) -> bool:
    """Copy a video value to a file; False, and nothing is done, if `opened_video` returns None."""
    with opened_video(video, layout) as file:
        if file is None:
            return False
        with target.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return True


def _is_elsewhere(name: str, layout: Layout) -> bool:
    return scheme_of(name) is not None or (isinstance(layout.root, StoredPath) and not name.startswith("/"))
