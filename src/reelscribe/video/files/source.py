"""Open a sample's video value as a container and its video stream.

Only regular files and bytes are opened, only with demuxers that read one file; a video at an address is fetched first,
if that is allowed. Nothing here decodes.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from ...printable import printable
from ...ranges import Ranged, whole
from ...stores import STORES, StoredPath, scheme_of, shown
from ..limits import ReadLimits
from ..process_memory import check_memory
from ..rejection import RejectedError, reason
from .cache import cached
from .mp4_boxes import FIRST_BOXES, HEAD_BYTES, media_ranges
from .signatures import is_still_brand

DEMUXERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,gif,flv,live_flv,asf,ogg,nut,mxf,ivf,obu,av1,h264,hevc,vvc,m4v,vc1,"
    "dv,rm,wtv,ty,yuv4mpegpipe,apng,swf,3dostr,nsv,mjpeg,gxf,lxf,vivo,"
    "mp3,wav,w64,flac,aac,ac3,eac3,aiff,caf,amr,au,ape,tta,wv,dts,truehd"
)
"""Demuxers that may open a file. Playlists and image sequences are left out: they make the decoder open other files."""

_BESIDE_THE_PICTURE = (
    Disposition.timed_thumbnails
    | Disposition.non_diegetic
    | Disposition.metadata
    | Disposition.dependent
    | Disposition.still_image
)
_PICTURE_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "tiff", "webp", "jpegxl", "ppm", "targa"})
"""Decoders of covers and thumbnails, if another stream has a video codec."""
_PICTURE_BRANDS = frozenset({"avif", "avis"})
"""Files whose streams are the picture and its alpha plane; the amount of data does not distinguish them."""
_THUMBNAIL_SHARE = 4
"""A stream is a thumbnail of another that has so many times its pixels."""

FETCH_SHARE = 0.8
"""Share of the time limit for a read within which a remote file must be fetched."""
LEFT_OUT_BYTES = 4 << 20
"""A smaller remote file is fetched without looking into it first."""
TIMES_IN_HEADER = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9", "mpeg4"})
"""Decoders whose packets in an mp4 file get times and key frames from the header alone."""
_UNKNOWN_KIND = "it is a picture, a playlist or another type of file that is not supported"
"""FFmpeg's "invalid argument": the file is for a demuxer that is not allowed."""
_NAME_CHARS = 80
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ROOM_PIXELS = 1 << 20
"""Padding that decoders may need around a picture; for a thin picture it exceeds twice its size."""


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video that can be opened any number of times."""

    data: Path | bytes | Ranged
    """An absolute path, the file's bytes, or where it is stored."""
    limits: ReadLimits
    """What reading may cost."""
    address: str | None = None
    """Where it was fetched from."""
    fetched: IO[bytes] | None = None
    """The anonymous file that `data` refers to, until it is closed."""
    media: Sequence[tuple[int, int]] = ()
    """Start and end of the parts of a remote file that hold no times."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        if isinstance(self.data, bytes):
            return f"the video of {len(self.data)} bytes"
        text = printable(self.address or str(self.data))
        return text if len(text) <= _NAME_CHARS else "…" + text[1 - _NAME_CHARS :]

    def close(self) -> None:
        """Release what was fetched."""
        if self.fetched is not None:
            self.fetched.close()
        if isinstance(self.data, Ranged):
            self.data.close()

    def check_arrived(self) -> None:
        """Check that all that was read has arrived: decoders mistake missing data for damage.

        Raises:
            RejectedError: something did not.
        """
        lost = self.data.lost if isinstance(self.data, Ranged) else None
        if isinstance(lost, (OSError, ValueError)):
            kind = "timeout" if isinstance(lost, TimeoutError) else "unreadable"
            raise RejectedError(kind, f"{self.name} did not arrive: {reason(lost)}") from lost

    def check_pixels(self, height: int, width: int) -> None:
        """Refuse a picture of more pixels than the limit.

        Raises:
            RejectedError: `too_large`.
        """
        if height * width > self.limits.max_source_pixels:
            raise RejectedError(
                "too_large",
                f"{self.name} has frames of {height}x{width} pixels; the limit is {self.limits.max_source_pixels} "
                "pixels",
            )

    def check_frames(self, count: int) -> None:
        """Refuse a video of more frames than the limit.

        Raises:
            RejectedError: `too_long`.
        """
        if count > self.limits.max_source_frames:
            raise RejectedError(
                "too_long", f"{self.name} has more frames than the limit of {self.limits.max_source_frames}"
            )

    def check_seconds(self, seconds: float | None) -> None:
        """Refuse a video that exceeds the limit, if its length is known.

        Raises:
            RejectedError: `too_long`.
        """
        limit = self.limits.max_source_seconds
        if seconds is not None and seconds > limit:
            raise RejectedError("too_long", f"{self.name} is longer than the limit of {limit:g} seconds")

    @contextmanager
    def open(self, *, times_only: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its video stream, ready to be decoded with one thread.

        Args:
            times_only: packets are read for their times, not for their content: of a remote file whose header has all
                times, the media is not fetched.

        Raises:
            RejectedError: it has no container, no video stream or no decoder.
        """
        file = self._file()
        with self._container(file) as container:
            stream = _video_stream(container)
            if not len(container.streams):
                raise RejectedError("unreadable", f"{self.name} holds no streams: its header is damaged")
            if stream is None:
                raise RejectedError("no_video_stream", f"{self.name} has no video stream")
            if stream.codec_context is None:
                raise RejectedError("unreadable", f"{self.name} uses a codec that no installed decoder supports")
            for other in container.streams:
                other.discard = Discard.none if other is stream else Discard.all
            stream.codec_context.thread_count = 1
            stream.codec_context.options = self._decoder_options()
            if times_only and self.leaves_media_out(container, stream):
                file.raw.leave_out(self.media)
            yield container, stream

    def file(self) -> IO[bytes]:
        """The bytes of the video, from their start; to be closed.

        A local file is checked again once it is open, and is not opened through a link created since the source was
        found.

        Raises:
            RejectedError: it no longer exists, or may not be read.
        """
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        if isinstance(self.data, Ranged):
            return self.data.open()
        if self.fetched is not None:
            self.fetched.seek(0)
            return self.fetched
        return _opened(self, self.data)

    def leaves_media_out(self, container: InputContainer, stream: VideoStream) -> bool:
        """Whether packets that are read for their times are zeros, since the header has all the information."""
        is_told = container.format.name.startswith("mov,") and stream.codec_context.name in TIMES_IN_HEADER
        return is_told and bool(self.media)

    def header_size(self) -> tuple[int, int]:
        """Height and width from the header: if they are too large to decode, `open` gives 0 x 0."""
        with self._container(self._file(), codec_whitelist="none") as container:
            stream = _video_stream(container)
            context = stream and stream.codec_context
            return (context.height, context.width) if context else (0, 0)

    def size(self) -> int:
        """Bytes of the file."""
        if isinstance(self.data, bytes):
            return len(self.data)
        return int(self.data.stat().st_size)

    def raw(self) -> IO[bytes]:
        """The bytes of the file, open for reading."""
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        return self.data.open("rb")

    def _container(self, file: Any, **more_options: str) -> InputContainer:
        in_memory = not isinstance(self.data, Path)
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "pipe" if in_memory else "file"}
        if self.fetched is not None:  # reopening it would share its position
            self.fetched.seek(0)
        try:
            container: InputContainer = av.open(
                file,
                mode="r",
                options=self._decoder_options(),
                container_options=options | more_options,
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as exc:
            check_memory(exc)
            why = _UNKNOWN_KIND if isinstance(exc, av.error.ArgumentError) else reason(exc)
            raise RejectedError("unreadable", f"{self.name} cannot be opened as a video: {why}") from exc
        return container

    def _file(self) -> Any:
        """What FFmpeg reads: it opens nothing but local files itself."""
        if isinstance(self.data, Ranged):
            return self.data.open()
        return io.BytesIO(self.data) if isinstance(self.data, bytes) else f"file:{self.data}"

    def _decoder_options(self) -> dict[str, str]:
        """Decode no picture much larger than allowed, whatever the header declares, even while probing."""
        return {"max_pixels": str(2 * self.limits.max_source_pixels + _ROOM_PIXELS)}


def _video_stream(container: InputContainer) -> VideoStream | None:
    """The stream a player would show: not a cover, and if there are several, not a still, thumbnail or alpha plane."""
    there = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not there:
        return None
    marks = [_marks_of_no_picture(stream) for stream in there]
    likely = [stream for stream, mark in zip(there, marks, strict=True) if mark == min(marks)]
    largest = max(likely, key=_pixels)
    best = container.streams.best("video")
    shown = next((stream for stream in likely if best is not None and stream.index == best.index), largest)
    is_picture_file = container.metadata.get("major_brand") in _PICTURE_BRANDS
    return largest if is_picture_file or _pixels(largest) >= _THUMBNAIL_SHARE * _pixels(shown) else shown


def _marks_of_no_picture(stream: VideoStream) -> tuple[bool, bool, bool, bool]:
    """Signs that a stream only accompanies the picture, the surest first: its label in the file, a single frame, a
    codec of still pictures, and grey values, as in an alpha plane."""
    context = stream.codec_context
    return (
        bool(stream.disposition & _BESIDE_THE_PICTURE),
        stream.frames == 1,
        context is not None and context.name in _PICTURE_CODECS,
        context is not None and context.format is not None and len(context.format.components) == 1,
    )


def _pixels(stream: VideoStream) -> int:
    context = stream.codec_context
    return context.width * context.height if context is not None else 0


def find_source(video: Any, *, root: Path | StoredPath | None, limits: ReadLimits) -> VideoSource:
    """The source of a sample's video value: a path, a URL, bytes, or `{'path': …, 'bytes': …}`.

    Raises:
        RejectedError: the value is not a video, the file does not exist, or it may not be read.
    """
    if isinstance(video, Mapping):
        data = video.get("bytes")
        video = video.get("path") if data is None else data
        if data is None and isinstance(video, bytes | bytearray | memoryview):
            message = "the 'path' of a video must be a string; got bytes, which belong in 'bytes'"
            raise RejectedError("bad_sample", message)
    if isinstance(video, bytes | bytearray | memoryview):
        data = bytes(video)
        return _of_size(VideoSource(data, limits), len(data), limits)
    text = os.fspath(video) if isinstance(video, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise RejectedError(
            "bad_sample", f"a video must be a path, bytes or a mapping with 'path' or 'bytes'; got {_describe(video)}"
        )
    if isinstance(root, StoredPath) and not _SCHEME.match(text) and not text.startswith("/"):
        text, root = (root / text).url, None
    if _SCHEME.match(text) and not text.lower().startswith("file://"):
        return _remote(text, limits)
    folder = None if isinstance(root, StoredPath) else root
    source = VideoSource(_allowed(_local_path(text, folder), limits), limits)
    return _of_size(source, _file_size(source), limits)


def _describe(value: Any) -> str:
    return "an empty path" if value == "" else "nothing" if value is None else f"a {type(value).__name__}"


def _of_size(source: VideoSource, size: int, limits: ReadLimits) -> VideoSource:
    if size == 0:
        raise RejectedError("unreadable", f"{source.name} is empty")
    if limits.max_source_bytes is not None and size > limits.max_source_bytes:
        raise RejectedError("too_large", f"{source.name} has {size} bytes; the limit is {limits.max_source_bytes}")
    return source


def _remote(url: str, limits: ReadLimits) -> VideoSource:
    if not limits.allow_remote:
        raise RejectedError(
            "not_allowed", f"{shown(url)} is remote: copy the file here, or allow it with allow_remote (--allow-remote)"
        )
    if scheme_of(url) in STORES:
        return _stored(url, limits)
    from .https import RemoteFile, open_remote, refusals  # its packages make every start of a reader slower

    file = open_remote(url, max_bytes=limits.max_source_bytes, seconds=FETCH_SHARE * limits.max_read_seconds)
    if not isinstance(file, RemoteFile):
        return _here(file, url, limits)
    with refusals(url):
        return _elsewhere(file, limits)


def _stored(url: str, limits: ReadLimits) -> VideoSource:
    """A video in an object store: from the local cache if there is one, else in ranges or as a whole."""
    path = StoredPath(url, FETCH_SHARE * limits.max_read_seconds)
    try:
        _of_size(VideoSource(path, limits, address=shown(url)), int(path.stat().st_size), limits)
        return _elsewhere(path, limits)
    except FileNotFoundError:
        raise RejectedError("not_found", f"{shown(url)} does not exist") from None
    except TimeoutError as exc:
        raise RejectedError("timeout", f"{shown(url)} did not arrive in time: {reason(exc)}") from exc
    except (OSError, ValueError) as exc:
        raise RejectedError("unreadable", f"{shown(url)} cannot be read: {reason(exc)}") from exc


def _elsewhere(file: Ranged, limits: ReadLimits) -> VideoSource:
    """A file that is read in place, or fetched now."""
    if media := _media_to_leave(file, limits):
        return VideoSource(file, limits, address=shown(file.url), media=media)
    return _here(_fetched(file, limits), file.url, limits)


def _here(file: IO[bytes], url: str, limits: ReadLimits) -> VideoSource:
    """An open anonymous file."""
    return VideoSource(Path(f"/dev/fd/{file.fileno()}"), limits, address=shown(url), fetched=file)


def _media_to_leave(file: Ranged, limits: ReadLimits) -> Sequence[tuple[int, int]]:
    """The parts of a file that need not be fetched if only times are read; none if it is better fetched at once: a
    small one, one without a single index of its pictures, a still picture, or one for the cache."""
    if limits.video_cache is not None or file.stat().st_size < LEFT_OUT_BYTES:
        return ()
    head = file.read_range(0, HEAD_BYTES)
    return media_ranges(file) if head[4:8] in FIRST_BOXES and not is_still_brand(head[8:12]) else ()


def _fetched(file: Ranged, limits: ReadLimits) -> IO[bytes]:
    """A local copy; from the cache, or stored there, if a change of the file can be detected."""
    with closing(file):
        if limits.video_cache is None or not file.is_versioned:
            return whole(file)
        return cached(file, limits.video_cache, max_bytes=limits.video_cache_mib << 20)


def _local_path(text: str, root: Path | None) -> Path:
    if text.lower().startswith("file://"):
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise RejectedError("unreadable", f"{text} is on another machine; only local files are read")
        text = unquote(url.path, errors="surrogateescape")
    return Path.cwd() / (root or "") / text


def _allowed(path: Path, limits: ReadLimits) -> Path:
    """The path, or, if files must be inside a folder, its resolved target."""
    if limits.media_root is None:
        return path
    try:
        real = Path(os.path.realpath(path))
    except (OSError, ValueError) as exc:
        raise RejectedError("unreadable", f"{path} cannot be read: {reason(exc)}") from exc
    if not real.is_relative_to(os.path.realpath(limits.media_root)):
        raise RejectedError("not_allowed", f"{path} is outside media_root, {limits.media_root}")
    return real


def _file_size(source: VideoSource) -> int:
    assert isinstance(source.data, Path)
    try:
        status = source.data.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise RejectedError("not_found", f"{source.name} does not exist") from None
    except (OSError, ValueError) as exc:
        raise RejectedError("unreadable", f"{source.name} cannot be read: {reason(exc)}") from exc
    return _size(source, status)


def _opened(source: VideoSource, path: Path) -> IO[bytes]:
    """A local file, checked again to be a regular one of an allowed size now that nothing can replace it."""
    try:
        file = os.fdopen(_descriptor(path, source.limits.media_root), "rb")
    except FileNotFoundError:
        raise RejectedError("not_found", f"{source.name} does not exist") from None
    except (OSError, ValueError) as exc:
        raise RejectedError("unreadable", f"{source.name} cannot be read: {reason(exc)}") from exc
    try:
        _of_size(source, _size(source, os.fstat(file.fileno())), source.limits)
    except RejectedError:
        file.close()
        raise
    return file


def _descriptor(path: Path, media_root: Path | None) -> int:
    """The file opened for reading: below a root, folder by folder, since a link may have been added to the path."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would block
    if media_root is None:
        return os.open(path, flags)
    root = os.path.realpath(media_root)
    *folders, name = path.relative_to(root).parts
    folder = os.open(root, _FOLDER)
    try:
        for part in folders:
            above, folder = folder, os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(above)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def _size(source: VideoSource, status: os.stat_result) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise RejectedError("unreadable", f"{source.name} is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise RejectedError("unreadable", f"{source.name} is not a regular file")
    return status.st_size
