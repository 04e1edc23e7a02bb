"""From a decoded frame to upright 8-bit RGB at the size the model will see."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 6, 9
"""AVColorSpace of FFmpeg."""
_SCALABLE = frozenset((BT709, 4, 5, BT601, 7, BT2020))
_BT2020_CONSTANT = 10
_WITH_ALL_ROWS = {"yuv420p": "yuv422p", "yuvj420p": "yuvj422p", "yuv422p": "yuv422p", "yuvj422p": "yuvj422p"}
"""Pixel formats with half the chroma to those with all of its rows, which FFmpeg has fast code for."""
_EVEN = 64


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Height and width of the frame as it is shown."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


class RgbConverter:
    """Makes frames upright uint8 `[height, width, 3]`: bicubic, more bits cut to 8, alpha dropped, wide colour not
    tone-mapped.

    Pixels are scaled in the decoder's colour space and become RGB afterwards, at the size that is wanted. FFmpeg has
    fast code for each of the two steps, not for both in one, and what comes is nearer to what a model's own processor
    sees, which makes the whole picture RGB first: on real clips half a grey level from it on average, against one.

    Args:
        height: of the upright frame, in pixels.
        width: likewise.
    """

    def __init__(self, *, height: int, width: int, source_size: tuple[int, int] | None = None) -> None:
        self._height, self._width = height, width
        self._scaler, self._to_rgb = VideoReformatter(), VideoReformatter()

    def write(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        out[:] = self.convert(frame)

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """One frame."""
        transposed, flip_rows, flip_columns = _orientation(frame)
        height, width = (self._width, self._height) if transposed else (self._height, self._width)
        keeps_size = (frame.height, frame.width) == (height, width)
        frame.colorspace = _colorspace(frame)
        scaled = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format=frame.format.name if keeps_size else _format_to_scale_in(frame.format),
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        packed = self._to_rgb.reformat(scaled, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        stored: NDArray[np.uint8] = np.asarray(packed.to_ndarray(), np.uint8)
        pixels = stored.transpose(1, 0, 2) if transposed else stored
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _format_to_scale_in(stored: VideoFormat) -> str:
    """Pixel format of FFmpeg in which a frame takes another size."""
    has_full_chroma = stored.chroma_width(_EVEN) == _EVEN and stored.chroma_height(_EVEN) == _EVEN
    return "gbrp" if has_full_chroma else _WITH_ALL_ROWS.get(stored.name, "rgb24")


def _colorspace(frame: VideoFrame) -> int:
    """The matrix to convert with. Where the file names none, HD is BT.709 and SD BT.601, as players do; swscale alone
    would take BT.601 for both."""
    named = int(frame.colorspace)
    if frame.format.is_rgb or named in _SCALABLE:
        return named
    if named == _BT2020_CONSTANT:
        return BT2020
    return BT709 if frame.width >= 1280 or frame.height > 576 else BT601


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes upright: swap rows and columns, then reverse rows, then reverse columns.

    From the display matrix `(a b u, c d v, x y w)` of the file, which takes a pixel to (a x + c y, b x + d y); turns
    that are not quarters go to the nearest one.
    """
    side_data: Any = frame.side_data
    if Type.DISPLAYMATRIX not in side_data:
        return False, False, False
    a, b, _, c, d = np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
