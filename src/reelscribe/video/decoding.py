"""Wanted frames of an open container, in order, decoding as little as is safe.

What comes out is checked against the timeline: a file whose times or key frames mislead is found out, not misread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .source import RejectedError
from .timeline import Timeline, decoded, packets

SEEK_FRAMES = 16
"""Frames that a seek must save, so that it pays."""


class MismatchError(Exception):
    """The decoder's frames are not those the timeline tells."""


def frames_at(
    container: InputContainer, stream: VideoStream, timeline: Timeline, chosen: NDArray[np.int64], *, seeks: bool
) -> Iterator[VideoFrame]:
    """The frames at these ascending positions of the timeline.

    Raises:
        MismatchError: where a frame does not come out of the decoder, or frames come in another order.
        RejectedError: where decoding twice gives different frames.
    """
    if timeline.ticks is None:
        yield from _by_order(container, stream, chosen.tolist())
        return
    yield from _by_time(container, stream, timeline.ticks, timeline.keys if seeks else chosen[:0], chosen.tolist())


def _by_order(container: InputContainer, stream: VideoStream, chosen: Sequence[int]) -> Iterator[VideoFrame]:
    wanted, position = deque(chosen), 0
    for packet in packets(container, stream):
        for frame in decoded(stream, packet):
            if wanted and position == wanted[0]:
                wanted.popleft()
                yield frame
            position += 1
        if not wanted:
            return
    raise RejectedError("unreadable", "the decoder gives other frames the second time")


def _by_time(
    container: InputContainer,
    stream: VideoStream,
    ticks: NDArray[np.int64],
    keys: NDArray[np.int64],
    chosen: Sequence[int],
) -> Iterator[VideoFrame]:
    """Decode from the start, or from a key frame where that saves enough, up to the last wanted frame."""
    decoding, last = _decode_on(container, stream), -1
    for wanted in chosen:
        key = _key_before(keys, wanted)
        if key - last > SEEK_FRAMES:
            decoding, last = _decode_from(container, stream, int(ticks[key])), -1
        for frame in decoding:
            at = _position(ticks, frame)
            if at <= last or at > wanted:
                raise MismatchError
            last = at
            if at == wanted:
                yield frame
                break
        else:
            raise MismatchError


def _key_before(keys: NDArray[np.int64], position: int) -> int:
    """The last key frame up to this position, or the start."""
    index = int(np.searchsorted(keys, position, side="right")) - 1
    return int(keys[index]) if index >= 0 else 0


def _position(ticks: NDArray[np.int64], frame: VideoFrame) -> int:
    if frame.pts is None:
        raise MismatchError
    at = int(np.searchsorted(ticks, frame.pts))
    if at == len(ticks) or ticks[at] != frame.pts:
        raise MismatchError
    return at


def _decode_on(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for packet in packets(container, stream):
        yield from decoded(stream, packet)


def _decode_from(container: InputContainer, stream: VideoStream, key_ticks: int) -> Iterator[VideoFrame]:
    """Frames from the key frame at `key_ticks` or an earlier one; demuxers that seek elsewhere are found out."""
    try:
        container.seek(key_ticks, stream=stream)
    except (av.FFmpegError, OSError) as exc:
        raise MismatchError from exc
    following = packets(container, stream)
    first = next(following, None)
    if first is None or first.pts is None or not first.is_keyframe or first.pts > key_ticks:
        raise MismatchError
    yield from decoded(stream, first)
    for packet in following:
        yield from decoded(stream, packet)
