"""Convert a decoded frame to upright 8-bit RGB at the size the model will see."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..frames.policy import FramePolicy
from .filters import FirstField
from .hdr import ToneMapper, is_hdr
from .orientation import Orientation

BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 6, 9
"""AVColorSpace of FFmpeg."""
LIMITED = 1
"""AVColorRange of FFmpeg: black is 16 and white 235."""
SQUARE = Fraction(1)
MOST_ASPECT = 8
"""Larger pixel aspect ratios than this, either way, are treated as damage: pixels count as square."""
SAME_SHAPE = 0.02
"""Relative difference up to which a frame is scaled to another's shape."""
_SCALABLE = frozenset((BT709, 4, 5, BT601, 7, BT2020))
_BT2020_CONSTANT = 10
_WITH_ALL_ROWS = {"yuv420p": "yuv422p", "yuvj420p": "yuvj422p", "yuv422p": "yuv422p", "yuvj422p": "yuvj422p"}
"""Pixel formats with half the chroma to those with all of its rows, which FFmpeg has fast code for."""
_EVEN = 64


@dataclass(frozen=True, slots=True)
class Look:
    """How frames are shown, where that is not as they are stored."""

    aspect: Fraction = SQUARE
    """Width of a stored pixel over its height, as it is shown."""
    tone_map: bool = False
    """Whether HDR becomes SDR."""
    deinterlace: bool = False
    """Whether one field of an interlaced frame is shown."""

    @classmethod
    def of(cls, policy: FramePolicy, stream: VideoStream) -> Look:
        """What a policy asks for, of a stream whose first frame was decoded."""
        aspect = pixel_aspect(stream) if policy.pixel_aspect == "display" else SQUARE
        return cls(aspect=aspect, tone_map=policy.tone_map, deinterlace=policy.deinterlace)


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width over height of a stored pixel: the container's, else the pictures', as in players; 1 if that is
    nonsense."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return ratio if ratio and Fraction(1, MOST_ASPECT) <= ratio <= MOST_ASPECT else SQUARE


def upright_size(frame: VideoFrame, *, aspect: Fraction = SQUARE) -> tuple[int, int]:
    """Height and width of the frame as it is shown; `aspect`: width over height of a stored pixel."""
    return Orientation.of(frame).size(frame.height, _shown_width(frame, aspect))


def _shown_width(frame: VideoFrame, aspect: Fraction) -> int:
    return frame.width if aspect == 1 else max(1, round(frame.width * aspect))


class _Reformatters(threading.local):
    """FFmpeg's scalers, per thread. They keep the tables of the last sizes and formats, so that a similar clip need not
    rebuild them: 0.2 ms, a twentieth of decoding four seconds of 320x240."""

    def __init__(self) -> None:
        self.scaler, self.to_rgb = VideoReformatter(), VideoReformatter()


_of_thread = _Reformatters()


class RgbConverter:
    """Makes frames upright uint8 `[height, width, 3]`: bicubic, more bits cut to 8, alpha dropped.

    Pixels are scaled in the decoder's colour space and become RGB afterwards, at the requested size. FFmpeg has fast
    code for each of the two steps, not for both in one, and the result is nearer to that of a model's own processor,
    which converts the whole picture to RGB first: on real clips half a grey level from it on average, against one.

    Args:
        height: of the upright frame, in pixels.
        width: likewise.
        source_size: height and width of an upright frame that fills it; one of another shape is scaled to fit, centred
            on black. None: every frame fills it.
        look: how frames are shown.
    """

    def __init__(
        self, *, height: int, width: int, source_size: tuple[int, int] | None = None, look: Look | None = None
    ) -> None:
        self._height, self._width, self._source_size = height, width, source_size
        self._look = look or Look()
        self._first_field = FirstField() if self._look.deinterlace else None
        self._tone_mapper = ToneMapper() if self._look.tone_map else None

    def write(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write one frame into `out`, uint8 `[height, width, 3]`."""
        orientation = Orientation.of(frame)
        place = self._place(frame, orientation, out)
        height, width = orientation.size(*place.shape[:2])
        frame.colorspace = _colorspace(frame)
        if self._first_field is not None and frame.interlaced_frame:
            frame = self._first_field.of(frame)
        orientation.write(self._stored(frame, height=height, width=width), place)

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """One frame, in an array of its own."""
        out = np.empty((self._height, self._width, 3), np.uint8)
        self.write(frame, out)
        return out

    def _place(self, frame: VideoFrame, orientation: Orientation, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of `out` that the frame fills; the rest becomes black."""
        if self._source_size is None:
            return out
        wanted_height, wanted_width = self._source_size
        height, width = orientation.size(frame.height, _shown_width(frame, self._look.aspect))
        if abs(height * wanted_width / (width * wanted_height) - 1) <= SAME_SHAPE:
            return out
        scale = min(wanted_height / height, wanted_width / width)
        rows = max(1, round(height * scale / wanted_height * self._height))
        columns = max(1, round(width * scale / wanted_width * self._width))
        top, left = (self._height - rows) // 2, (self._width - columns) // 2
        out[...] = 0
        return out[top : top + rows, left : left + columns]

    def _stored(self, frame: VideoFrame, *, height: int, width: int) -> NDArray[np.uint8]:
        """The frame as RGB `[height, width, 3]`, not rotated."""
        if self._tone_mapper is not None and is_hdr(frame):
            return self._rgb(self._tone_mapper.map(frame, height=height, width=width))
        bits = _bits_of_limited_grey(frame)
        if bits is not None:
            return self._grey(frame, bits, height=height, width=width)
        keeps_size = (frame.height, frame.width) == (height, width)
        name = frame.format.name if keeps_size else _format_to_scale_in(frame.format)
        return self._rgb(self._scaled(frame, height=height, width=width, name=name))

    def _grey(self, frame: VideoFrame, bits: int, *, height: int, width: int) -> NDArray[np.uint8]:
        """FFmpeg treats grey as full range, whatever the frame's own range."""
        scaled = self._scaled(frame, height=height, width=width, name="gray" if bits == 8 else "gray16le")
        levels = _levels_of_limited(bits)[scaled.to_ndarray()]
        return np.broadcast_to(levels[..., None], (height, width, 3))

    def _scaled(self, frame: VideoFrame, *, height: int, width: int, name: str) -> VideoFrame:
        return _of_thread.scaler.reformat(
            frame, width=width, height=height, format=name, interpolation=Interpolation.BICUBIC, threads=1
        )

    def _rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        packed = _of_thread.to_rgb.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        (plane,) = packed.planes
        strides = plane.line_size, 3, 1
        return np.ndarray((packed.height, packed.width, 3), np.uint8, buffer=memoryview(plane), strides=strides)


def _format_to_scale_in(stored: VideoFormat) -> str:
    """Pixel format of FFmpeg in which a frame is scaled."""
    has_full_chroma = stored.chroma_width(_EVEN) == _EVEN and stored.chroma_height(_EVEN) == _EVEN
    return "gbrp" if has_full_chroma else _WITH_ALL_ROWS.get(stored.name, "rgb24")


def _colorspace(frame: VideoFrame) -> int:
    """The matrix to convert with. If the file names none, HD is BT.709 and SD BT.601, as in players; swscale alone
    would use BT.601 for both."""
    named = int(frame.colorspace)
    if frame.format.is_rgb or named in _SCALABLE:
        return named
    if named == _BT2020_CONSTANT:
        return BT2020
    return BT709 if frame.width >= 1280 or frame.height > 576 else BT601


def _bits_of_limited_grey(frame: VideoFrame) -> int | None:
    """Bits of a value, if the frame is grey, with or without alpha, and marked as limited range."""
    if frame.color_range != LIMITED or not frame.format.name.startswith(("gray", "ya")):
        return None
    bits = frame.format.components[0].bits
    return bits if 8 <= bits <= 16 else None


@lru_cache(maxsize=8)
def _levels_of_limited(bits: int) -> NDArray[np.uint8]:
    """Value of a plane to its level in full range: of 8 bits, or of `bits` that were stretched to 16."""
    values = np.arange(1 << 8) if bits == 8 else np.arange(1 << 16) / 65535 * ((1 << bits) - 1)
    unit = 1 << (bits - 8)
    levels = (values - 16 * unit) * 255 / (219 * unit)
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
