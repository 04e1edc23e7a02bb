"""Read pictures that FFmpeg's video demuxers do not, with Pillow: still pictures, and animated WebP.

A still picture is a clip of one frame, where that is allowed; an animated one is sampled by its own times, as a video
is. Pillow opens the one file and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ...types import Clip, TimeWindow
from ..files.signatures import HEAD_BYTES, READABLE, is_animated_webp, still_format
from ..files.source import VideoSource
from ..frames.moments import FramePolicy, frames_in_window, lay_out, shown_frames, shown_size, span_seconds
from ..limits import ReadLimits
from ..process_memory import check_memory
from ..rejection import RejectedError, reason
from .pixels import RgbConverter
from .timeline import FALLBACK_FPS

if TYPE_CHECKING:
    from PIL.Image import Image

UNTIMED_MS = 100
"""Display time of a picture whose length is zero, as in browsers."""
_WHOLE = TimeWindow()
_DEEP_GREY = "I;16"


@dataclass(frozen=True, slots=True)
class _Pictures:
    """What is known about the pictures of a file before one is decoded."""

    formats: tuple[str, ...]
    """The format as which Pillow may open the file."""
    seconds: NDArray[np.float64]
    """Time of each, `[N]`, ascending."""
    duration_seconds: float
    """Up to the end of the last."""

    @property
    def fps(self) -> float:
        """Average rate."""
        return len(self.seconds) / self.duration_seconds


def picture_clip(
    source: VideoSource,
    policy: FramePolicy,
    *,
    window: TimeWindow,
    limits: ReadLimits,
    allocate: Callable[..., NDArray[Any]] = np.empty,
) -> Clip | None:
    """The clip of a still picture or of an animated WebP; None: the file is neither.

    Args:
        source: the file.
        policy: which frames, at which size.
        window: the part to look at.
        limits: what is refused.
        allocate: gives the memory that frames are written to, for a shape and a type.

    Raises:
        RejectedError: a still picture is not allowed, of an unsupported type, over the limits, or damaged.
    """
    with _opened(source) as file:
        pictures = None if file is None else _pictures(source, file, limits)
        if file is None or pictures is None:
            return None
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _clip(pictures, _Decoder(source, file), policy, window=window, allocate=allocate)


@contextmanager
def _opened(source: VideoSource) -> Iterator[IO[bytes] | None]:
    """The file; None if it cannot be opened, or is read in ranges, which pictures are not."""
    file = None
    if isinstance(source.data, bytes | Path):
        with suppress(OSError, ValueError):
            file = source.raw()
    if file is None:
        yield None
        return
    with file:
        file.seek(0)  # one that was fetched may share its position
        yield file


def _pictures(source: VideoSource, file: IO[bytes], limits: ReadLimits) -> _Pictures | None:
    head = file.read(HEAD_BYTES)
    if is_animated_webp(head):
        return _animated_webp(source, file, head)
    file.seek(0)
    kind = still_format(file)
    if kind is None:
        return None
    if kind not in READABLE:
        message = f"{source.name} is a still picture of type {kind}, which is not supported: convert it to JPEG or PNG"
        raise RejectedError("unreadable", message)
    if not limits.allow_images:
        message = (
            f"{source.name} is a still picture ({kind}), not a video: leave it out, or caption it as a one-frame clip "
            "with allow_images (--allow-images)"
        )
        raise RejectedError("not_allowed", message)
    return _Pictures(READABLE[kind], np.zeros(1), 1 / FALLBACK_FPS)


def _animated_webp(source: VideoSource, file: IO[bytes], head: bytes) -> _Pictures:
    """Times and number of the pictures, from their headers."""
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    source.check_pixels(height, width)
    lengths = []
    for length in _webp_lengths(file):
        lengths.append(length or UNTIMED_MS)
        source.check_frames(len(lengths))
    if not lengths:
        raise RejectedError("no_frames", f"{source.name} is an animated WebP picture without frames")
    ends = np.cumsum(lengths, dtype=np.int64)
    duration = float(ends[-1]) / 1000
    source.check_seconds(duration)
    return _Pictures(READABLE["WebP"], (ends - lengths) / 1000, duration)


def _webp_lengths(file: IO[bytes]) -> Iterator[int]:
    """Display time of each picture, in milliseconds."""
    at = 12
    while True:
        file.seek(at)
        head = file.read(24)
        if len(head) < 8:
            return
        if head[:4] == b"ANMF" and len(head) == 24:
            yield int.from_bytes(head[20:23], "little")
        size = int.from_bytes(head[4:8], "little")
        at += 8 + size + size % 2


def _clip(
    pictures: _Pictures,
    decoder: _Decoder,
    policy: FramePolicy,
    *,
    window: TimeWindow,
    allocate: Callable[..., NDArray[Any]],
) -> Clip:
    seconds, fps, end = pictures.seconds, pictures.fps, pictures.duration_seconds
    shown = shown_frames(policy, seconds, fps=fps, window=window, end_seconds=end)
    if not len(shown):
        raise RejectedError("no_frames", f"no frame of {decoder.source.name} lies in the time window")
    decoding = decoder.decoded(pictures, np.unique(shown).tolist())
    first = next(decoding)
    source_size = (first.shape[0], first.shape[1])
    height, width = shown_size(policy, shown, *source_size)
    converter = RgbConverter(height=height, width=width, source_size=source_size)
    frames = allocate((len(shown), height, width, 3), np.uint8)
    for index, picture in enumerate(chain([first], decoding)):
        converter.write(VideoFrame.from_ndarray(picture, format="rgb24"), frames[index])
    lay_out(frames, shown)
    inside = frames_in_window(seconds, fps=fps, window=window, end_seconds=end)
    span = span_seconds(seconds, inside, fps=fps, window=window, end_seconds=end)
    return Clip(
        frames=frames,
        pts_seconds=seconds[shown],
        duration_seconds=end,
        source_fps=fps,
        source_height=source_size[0],
        source_width=source_size[1],
        window_seconds=None if window == _WHOLE else span,
    )


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Pillow, on one file and under the limits."""

    source: VideoSource
    file: IO[bytes]

    def decoded(self, pictures: _Pictures, chosen: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The pictures at these ascending positions, upright."""
        from PIL import Image

        name = self.source.name
        try:
            with Image.open(self.file, formats=pictures.formats) as image:
                self.source.check_pixels(image.height, image.width)
                if (found := getattr(image, "n_frames", 1)) < len(pictures.seconds):
                    message = f"{name} is damaged: {found} of {len(pictures.seconds)} frames can be decoded"
                    raise RejectedError("unreadable", message)
                for position in chosen:
                    if position:
                        image.seek(position)
                    yield _upright(image)
        except (RejectedError, MemoryError):
            raise
        except Image.DecompressionBombError as exc:
            raise RejectedError("too_large", f"{name} is too large a picture: {reason(exc)}") from exc
        except Exception as exc:  # damaged pictures reach every corner of the decoders, and each has its own exception
            check_memory(exc)
            message = f"{name} cannot be decoded as a picture: {type(exc).__name__}: {reason(exc)}"
            raise RejectedError("unreadable", message) from exc


def _upright(image: Image) -> NDArray[np.uint8]:
    """The picture as uint8 RGB `[height, width, 3]`, rotated by its EXIF data; alpha is dropped."""
    from PIL import ImageOps

    image.load()
    turned: Any = image
    with suppress(SyntaxError, ValueError, TypeError, KeyError, OSError):  # damaged EXIF data are ignored
        turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith(_DEEP_GREY):
        grey = (np.asarray(turned) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if turned.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, for which no conversion to grey levels is defined")
    return np.ascontiguousarray(turned.convert("RGB"), dtype=np.uint8)
