"""From a sample's video value to an open container and its video stream.

Only local files and bytes are opened, only with demuxers that read one file; nothing here decodes.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from ..record import Failure

DEMUXERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,gif,flv,live_flv,asf,ogg,nut,mxf,ivf,obu,av1,h264,hevc,vvc,m4v,vc1,"
    "dv,rm,wtv,ty,yuv4mpegpipe,apng,webp,swf,3dostr,nsv,mjpeg,gxf,lxf,viv,"
    "mp3,wav,w64,flac,aac,ac3,eac3,aiff,caf,amr,au,ape,tta,wv,dts,truehd"
)
"""Demuxers that may open a file. Playlists and image sequences are left out: they make the decoder open other files."""

MESSAGE_CHARS = 280
_NAME_CHARS = 80
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class RejectedError(Exception):
    """A video that gives no clip; never leaves the package."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message if len(message) <= MESSAGE_CHARS else message[: MESSAGE_CHARS - 1] + "…")


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video that can be opened any number of times."""

    data: Path | bytes
    """An absolute path or the file's bytes."""

    @property
    def name(self) -> str:
        """How messages call it."""
        if isinstance(self.data, bytes):
            return f"the video of {len(self.data)} bytes"
        text = str(self.data)
        return text if len(text) <= _NAME_CHARS else "…" + text[1 - _NAME_CHARS :]

    @contextmanager
    def open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its video stream, ready to be decoded with one thread.

        Raises:
            RejectedError: where there is no container, no video stream or no decoder.
        """
        with self._container() as container:
            stream = _video_stream(container)
            if not len(container.streams):
                raise RejectedError("unreadable", f"{self.name} holds no streams: its header is damaged")
            if stream is None:
                raise RejectedError("no_video_stream", f"{self.name} has no video stream")
            if stream.codec_context is None:
                raise RejectedError("unreadable", f"{self.name} is in a codec that no decoder here reads")
            for other in container.streams:
                other.discard = Discard.none if other is stream else Discard.all
            stream.codec_context.thread_count = 1
            yield container, stream

    def _container(self) -> InputContainer:
        in_memory = isinstance(self.data, bytes)
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "pipe" if in_memory else "file"}
        file: Any = io.BytesIO(self.data) if isinstance(self.data, bytes) else f"file:{self.data}"
        try:
            container: InputContainer = av.open(file, mode="r", container_options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as exc:
            raise RejectedError("unreadable", f"{self.name} cannot be opened as a video: {reason(exc)}") from exc
        return container


def reason(exc: BaseException) -> str:
    """What an exception says, in a few words."""
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return " ".join(str(text).split())[:120]


def _video_stream(container: InputContainer) -> VideoStream | None:
    """The stream a player would show; pictures attached as cover art are none."""
    best = container.streams.best("video")
    for stream in (best, *container.streams.video):
        if isinstance(stream, VideoStream) and not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def find_source(video: Any, *, root: Path | None, max_bytes: int | None) -> VideoSource:
    """The source of a sample's video value: a path, a `file://` URL, bytes, or `{'path': …, 'bytes': …}`.

    Raises:
        RejectedError: where the value is no video, the file is not there, or it is over `max_bytes`.
    """
    if isinstance(video, Mapping):
        data = video.get("bytes")
        video = video.get("path") if data is None else data
    if isinstance(video, bytearray | memoryview):
        video = bytes(video)
    if isinstance(video, bytes):
        source, size = VideoSource(video), len(video)
    elif isinstance(video, str | os.PathLike) and isinstance(os.fspath(video), str) and os.fspath(video):
        path = _local_path(os.fspath(video), root)
        source = VideoSource(path)
        size = _file_size(source, path)
    else:
        raise RejectedError(
            "bad_sample", f"a video must be a path, bytes or a mapping with 'path' or 'bytes'; got {_describe(video)}"
        )
    if size == 0:
        raise RejectedError("unreadable", f"{source.name} is empty")
    if max_bytes is not None and size > max_bytes:
        raise RejectedError("too_large", f"{source.name} has {size} bytes; the limit is {max_bytes}")
    return source


def _describe(value: Any) -> str:
    return "an empty path" if value == "" else "nothing" if value is None else f"a {type(value).__name__}"


def _local_path(text: str, root: Path | None) -> Path:
    if text.lower().startswith("file://"):
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise RejectedError("unreadable", f"{text} is on another machine; only local files are read")
        text = unquote(url.path)
    elif _SCHEME.match(text):
        raise RejectedError("unreadable", f"{text}: remote reading is not available; copy the file here first")
    return Path.cwd() / (root or "") / text


def _file_size(source: VideoSource, path: Path) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise RejectedError("not_found", f"{source.name} does not exist") from None
    except (OSError, ValueError) as exc:
        raise RejectedError("unreadable", f"{source.name} cannot be read: {reason(exc)}") from exc
    if stat.S_ISDIR(status.st_mode):
        raise RejectedError("unreadable", f"{source.name} is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise RejectedError("unreadable", f"{source.name} is not a regular file")
    return status.st_size
