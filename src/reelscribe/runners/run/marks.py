"""State of a video file when it was captioned, so that one replaced under the same name is detected."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...stores import AnyPath, StoredPath, is_address

UNKNOWN = "unknown"
"""In place of a video's mark: the answer predates marks, or the video is not a file."""


def video_mark(video: Any, root: AnyPath | None) -> Any:
    """Size and modification time of a video file.

    Args:
        video: a video's value in a row.
        root: folder that relative paths are relative to.

    Returns:
        Plain values; None if the file does not exist; `UNKNOWN` for bytes, which are part of their row, and for videos
        at addresses, which would cost a request each.
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
    if video.endswith("/"):  # a `Path` would drop the slash
        return str(Path(root or "", video))
    return os.path.join(root or "", video)  # noqa: PTH118 - a `Path` remembers its parts
