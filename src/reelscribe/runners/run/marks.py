"""What a video file was when it was captioned, so that one that was replaced under its name can be found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...stores import AnyPath, StoredPath, is_address

UNKNOWN = "unknown"
"""Instead of a video's mark: the answer is from before marks were kept, or the video is no file."""


def video_mark(video: Any, root: AnyPath | None) -> Any:
    """Size and time of change of a video that is a file.

    Args:
        video: a video's value, as a row has it.
        root: what relative paths are relative to.

    Returns:
        Plain values; None where the file does not exist; `UNKNOWN` for bytes, which are part of their row, and for
        videos at addresses, where asking costs a request for each.
    """
    path = _file_of(video, root)
    if path is None:
        return UNKNOWN
    try:
        status = os.stat(path)  # noqa: PTH116 - a `Path` remembers its parts
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _file_of(video: Any, root: AnyPath | None) -> str | None:
    if isinstance(video, Mapping):
        video = video.get("path") if video.get("bytes") is None else None
    if not isinstance(video, str):
        return None
    if video.lower().startswith("file://"):
        return unquote(urlsplit(video).path, errors="surrogateescape")
    if is_address(video) or "://" in video:
        return None
    if isinstance(root, StoredPath):
        return video if video.startswith("/") else None
    if video.endswith("/"):  # which a `Path` leaves out
        return str(Path(root or "", video))
    return os.path.join(root or "", video)  # noqa: PTH118 - a `Path` remembers its parts
