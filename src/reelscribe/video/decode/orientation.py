"""The orientation of a stored frame, from its display matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ...printable import logger

_log = logger(__name__)
_QUARTER = 90


class Orientation(NamedTuple):
    """How a stored frame becomes upright: swap rows and columns, then reverse rows, then reverse columns."""

    transposed: bool = False
    """Whether rows and columns are swapped."""
    flips_rows: bool = False
    """Whether the rows are reversed."""
    flips_columns: bool = False
    """Whether the columns are reversed."""

    @classmethod
    def of(cls, frame: VideoFrame) -> Orientation:
        """Orientation of a decoded frame: the container's matrix or, if a picture has its own (EXIF), the picture's."""
        try:
            side_data: Any = frame.side_data
        except ValueError:
            return _by_angle(frame.rotation)
        if Type.DISPLAYMATRIX not in side_data:
            return UPRIGHT
        return _by_matrix(np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32)[:5].tolist())

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a stored frame once it is upright, or the other way round."""
        return (width, height) if self.transposed else (height, width)

    def write(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Write stored pixels `[h, w, 3]` upright into `out`."""
        pixels = stored.transpose(1, 0, 2) if self.transposed else stored
        pixels = pixels[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]
        if not (self.transposed or self.flips_columns):
            out[...] = pixels
            return
        for channel in range(3):  # three times as fast as pixel by pixel
            out[..., channel] = pixels[..., channel]


UPRIGHT = Orientation()


def _by_matrix(matrix: list[int]) -> Orientation:
    """From `(a b u, c d v, x y w)`, which takes a pixel to (a x + c y, b x + d y); rotations are rounded to quarter
    turns."""
    a, b, _, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def _by_angle(degrees: int) -> Orientation:
    """From the counter-clockwise angle alone, which does not show mirroring."""
    _log.warning("PyAV %s cannot list the side data of a frame: a mirrored video is shown mirrored", av.__version__)
    turns = round(degrees / _QUARTER) % 4
    return (UPRIGHT, Orientation(True, True, False), Orientation(False, True, True), Orientation(True, False, True))[
        turns
    ]


def _unnamed(cls: type[Any], value: int) -> Any:
    kind = object.__new__(cls)
    kind._name_, kind._value_ = f"UNNAMED_{value}", value
    return kind


if "_missing_" not in vars(Type):
    # PyAV lists all side data of a frame or none: one type that FFmpeg has and it does not (EXIF, views of MV-HEVC)
    # would hide the display matrix.
    Type._missing_ = classmethod(_unnamed)  # type: ignore[assignment]
