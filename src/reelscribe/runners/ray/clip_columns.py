"""Convert the clips of a row's videos to columns of an Arrow table and back; frames are stored once, as bytes.

Independent of the cluster.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...types import Clip, Failure
from .shared_stream import Load

META = "__reelscribe_clips"
"""Column with each video's metadata, or why it could not be read."""
FRAMES = "__reelscribe_frames"
"""Column with the frames, one value per video."""
COLUMNS = (META, FRAMES)
_NOTHING = np.empty(0, np.uint8)


def with_clips(table: Any, clips: Sequence[Sequence[Clip | Failure | None]]) -> Any:
    """The table with the clips of each row, in the order of their requests; None: no clip was requested.

    Frames are copied once.
    """
    import pyarrow as pa

    meta = pa.array([pickle.dumps([_meta(one) for one in row]) for row in clips], pa.binary())
    return table.append_column(META, meta).append_column(FRAMES, _frames(clips))


def without_clips(table: Any) -> Any:
    """The table without the columns of clips."""
    return table.drop_columns(list(COLUMNS))


def clips_of(table: Any) -> list[list[Load | Failure]]:
    """For each row its videos' failures, or functions that load their clips and copy them only then."""
    frames = table[FRAMES]
    return [_row(pickle.loads(meta.as_py()), frames[i]) for i, meta in enumerate(table[META])]


def _row(metas: list[Any], frames: Any) -> list[Load | Failure]:
    return [meta if isinstance(meta, Failure) else partial(_clip, meta, frames, i) for i, meta in enumerate(metas)]


def _meta(one: Clip | Failure | None) -> Any:
    if not isinstance(one, Clip):
        return one
    source = (one.duration_seconds, one.source_fps, one.source_height, one.source_width, one.window_seconds)
    return (one.frames.shape, one.pts_seconds, source)


def _frames(clips: Sequence[Sequence[Clip | Failure | None]]) -> Any:
    """An Arrow array of lists of byte strings; empty for anything but a clip."""
    import pyarrow as pa

    pixels = [one.frames.reshape(-1) if isinstance(one, Clip) else _NOTHING for row in clips for one in row]
    ends = np.cumsum([0, *(len(one) for one in pixels)], dtype=np.int64)
    data = pa.py_buffer(np.concatenate([_NOTHING, *pixels]))
    values = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(pixels), [None, pa.py_buffer(ends), data])
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, clips)], dtype=np.int32), values)


def _clip(meta: Any, frames: Any, index: int) -> Clip | None:
    if meta is None:
        return None
    shape, pts_seconds, source = meta
    pixels = np.frombuffer(frames.values[index].as_buffer(), np.uint8).reshape(shape)
    return Clip(pixels.copy(), pts_seconds, *source)
