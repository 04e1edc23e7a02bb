"""When the frames of a file are shown: their true times, count and rate.

Times come from packets, which costs no decoding; where packets do not tell, from decoding everything. Nothing here
chooses frames or keeps pixels.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .memory import check_memory
from .sampling import is_constant_rate
from .source import VideoSource

FALLBACK_FPS = 25.0
"""Rate of a stream that has neither times nor a rate."""
_SHOWN_BIT = 0x10
"""In the first byte of a VP8 frame; without it the frame is only referred to."""
_LONG_LAST_FRAME = 1.5
"""A last frame that stays longer than so many frames is no rounding: slide shows end so."""
_MAX_DRIFT_FRAMES = 1.01
"""A header's rate is believed while it leaves the true times by no more than this over the whole file: muxers often
get the length of the last frame wrong."""
_FRAMES_HELD, _PIXEL_BYTES = 4, 4
"""Frames that a decoder may be about to ask for, and what a pixel of theirs takes."""
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Timeline:
    """All frames of a file in display order."""

    seconds: NDArray[np.float64]
    """Time of each frame in seconds, `[N]`, strictly ascending."""
    ticks: NDArray[np.int64] | None
    """The decoder's pts of each frame, `[N]`; None where frames can only be told by their order."""
    keys: NDArray[np.int64]
    """Positions of the key frames, ascending; empty where they are not known."""
    anchors: NDArray[np.int64]
    """Positions of the frames that are shown later than all those before them in the file, ascending: key frames and
    those that others refer to; empty where they are not known."""
    fps: float
    """Average frame rate."""
    duration_seconds: float
    """From the first frame's start to the last frame's end."""


@dataclass(slots=True)
class PacketTimes:
    """What one pass over the packets of a stream tells."""

    ticks: array[int] = field(default_factory=lambda: array("q"))
    """pts of packets that hold a shown frame, in file order, those without one left out."""
    keys: set[int] = field(default_factory=set)
    """pts of key frames."""
    count: int = 0
    """Packets that hold a shown frame."""
    reordered: bool = False
    """Whether some packet's pts differs from its dts."""
    encrypted: bool = False
    """Whether some packet is; decoding it would give noise."""
    last_ticks: int | None = None
    """Greatest pts."""
    last_length: int = 0
    """Duration of the packet with the greatest pts, in ticks."""


def scan_packets(
    container: InputContainer,
    stream: VideoStream,
    *,
    max_seconds: float,
    max_packets: int,
    keys: frozenset[int] | None = None,
) -> PacketTimes:
    """Read the packet times of a file, up to its end, to where it is damaged, or to one packet over a limit.

    Args:
        container: the open file.
        stream: its video.
        max_seconds: limit.
        max_packets: limit.
        keys: dts of packets that hold key frames; None: they say so themselves.
    """
    times = PacketTimes()
    shown = _SHOWN_BIT if stream.codec_context.name in ("vp8", "libvpx") else 0
    max_ticks = max_seconds / (stream.time_base or 1)
    for packet in packets(container, stream):
        if not packet.size or packet.is_discard or (shown and not memoryview(packet)[0] & shown):
            continue
        _note(times, packet, is_key=packet.is_keyframe if keys is None else packet.dts in keys)
        too_long = times.last_ticks is not None and times.last_ticks - times.ticks[0] > max_ticks
        if too_long or times.count > max_packets:
            break
    return times


def index_keys(stream: VideoStream) -> frozenset[int]:
    """dts of the packets that the file's index calls key frames."""
    return frozenset(entry.timestamp for entry in stream.index_entries if entry.is_keyframe)


def _note(times: PacketTimes, packet: Packet[VideoStream], *, is_key: bool) -> None:
    times.count += 1
    times.encrypted |= packet.has_sidedata("encryption_info")
    pts = packet.pts
    if pts is None:
        return
    times.ticks.append(pts)
    times.reordered |= pts != packet.dts
    if is_key:
        times.keys.add(pts)
    if times.last_ticks is None or pts > times.last_ticks:
        times.last_ticks, times.last_length = pts, packet.duration or 0


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of the stream and the empty one that flushes the decoder; ends early where the file is damaged."""
    try:
        yield from container.demux(stream)
    except (av.FFmpegError, OSError) as exc:
        check_memory(exc)


def decoded(stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
    """The frames a packet brings out, or with None those still in the decoder; none where data are damaged.

    Raises:
        MemoryError: there is no more, or no more is allowed.
    """
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError as exc:
        context = stream.codec_context
        check_memory(exc, _FRAMES_HELD * _PIXEL_BYTES * context.height * context.width)
        return []


def packet_timeline(times: PacketTimes, container: InputContainer, stream: VideoStream) -> Timeline | None:
    """The timeline the packets tell, or None where they do not: times missing or equal, as in raw streams, or
    guessed from the order of decoding, as in AVI with B-frames."""
    if not times.count or len(times.ticks) != times.count or (_stores_no_pts(container) and times.reordered):
        return None
    in_file = np.frombuffer(times.ticks, np.int64)
    ticks = np.sort(in_file)
    if (np.diff(ticks) <= 0).any():
        return None
    keys = np.searchsorted(ticks, np.array(sorted(times.keys), np.int64))
    anchors = np.searchsorted(ticks, in_file[np.maximum.accumulate(in_file) == in_file])
    frames = _Frames(_to_seconds(ticks, container, stream), ticks, keys, anchors)
    return _timeline(frames, stream, last_length=times.last_length)


def decoded_timeline(source: VideoSource, times: PacketTimes) -> Timeline | None:
    """The timeline of the frames that come out when everything is decoded, or None where none does."""
    with source.open() as (container, stream):
        pts = [frame.pts for packet in packets(container, stream) for frame in decoded(stream, packet)]
        if not pts:
            return None
        ticks = _ascending(pts) if not _stores_no_pts(container) else None
        if ticks is None:
            ticks = _ascending(sorted(times.ticks)) if len(times.ticks) == len(pts) else None
            ticks = ticks - ticks[0] if ticks is not None else None
        if ticks is not None:
            seconds = _to_seconds(ticks, container, stream)
        else:
            seconds = np.arange(len(pts)) / _header_rate(stream)
        return _timeline(_Frames(seconds), stream, last_length=times.last_length)


def _ascending(pts: list[int | None] | list[int]) -> NDArray[np.int64] | None:
    if any(value is None for value in pts):
        return None
    ticks = np.array(pts, np.int64)
    return ticks if (np.diff(ticks) > 0).all() else None


def _stores_no_pts(container: InputContainer) -> bool:
    return container.format.name == "avi"


def _to_seconds(ticks: NDArray[np.int64], container: InputContainer, stream: VideoStream) -> NDArray[np.float64]:
    """Seconds on the file's clock; where a container's clock has no zero, from the container's start."""
    base = stream.time_base or Fraction(1)
    start = 0
    if Flags.ts_discont in Flags(container.format.flags) and container.start_time is not None:
        start = round(Fraction(container.start_time, av.time_base) / base)
    elif _stores_no_pts(container):
        start = int(ticks[0])
    seconds: NDArray[np.float64] = (ticks - start) * base.numerator / base.denominator
    return seconds


def _header_rate(stream: VideoStream) -> float:
    for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate):
        if rate:
            return float(rate)
    return FALLBACK_FPS


class _Frames(NamedTuple):
    """What is known of each frame, before rate and length are."""

    seconds: NDArray[np.float64]
    ticks: NDArray[np.int64] | None = None
    keys: NDArray[np.int64] = _NONE
    anchors: NDArray[np.int64] = _NONE


def _timeline(frames: _Frames, stream: VideoStream, *, last_length: int) -> Timeline:
    seconds, count = frames.seconds, len(frames.seconds)
    length = float(last_length * (stream.time_base or 0))
    if count == 1:
        fps = float(stream.average_rate or 0) or (1 / length if length else _header_rate(stream))
        return Timeline(*frames, fps, length or 1 / fps)
    step = float(np.median(np.diff(seconds)))
    if is_constant_rate(seconds):
        header_fps = float(stream.average_rate or 0)
        fps = _constant_rate(seconds, header_fps)
        if fps == header_fps or length <= _LONG_LAST_FRAME * step:
            return Timeline(*frames, fps, count / fps)
    duration = float(seconds[-1] - seconds[0]) + (length or step)
    return Timeline(*frames, count / duration, duration)


def _constant_rate(seconds: NDArray[np.float64], header_fps: float) -> float:
    """The header's rate where it fits the times, which is the rate other readers see; else the measured one."""
    steps = len(seconds) - 1
    measured = steps / float(seconds[-1] - seconds[0])
    if header_fps and math.isfinite(header_fps) and abs(measured / header_fps - 1) * steps <= _MAX_DRIFT_FRAMES:
        return header_fps
    return measured
