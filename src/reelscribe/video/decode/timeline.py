"""When the frames of a file are shown: their true times, count and rate.

Times come from packets, which costs no decoding; if packets lack them, from decoding everything. Nothing here chooses
frames or keeps pixels.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..files.source import VideoSource
from ..frames.moments import LONG_LAST_FRAME, is_constant_rate
from ..process_memory import check_memory
from .clock import clock_of, may_jump, packets
from .partial_times import apart, filled, last_step, longest_ascent

FALLBACK_FPS = 25.0
"""Rate of a stream that has neither times nor a rate."""
_SHOWN_BIT = 0x10
"""In the first byte of a VP8 frame; without it the frame is only referred to."""
_MAX_DRIFT_FRAMES = 1.01
"""A header's rate is trusted while it differs from the true times by no more than this over the whole file: muxers
often get the length of the last frame wrong."""
MOST = 0.75
"""Share of the decoder's times that must be in order for only the others to be replaced."""
_FRAMES_HELD, _PIXEL_BYTES = 4, 4
"""Frames that a decoder may be about to allocate, and the bytes of one of their pixels."""
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Timeline:
    """All frames of a file in display order."""

    seconds: NDArray[np.float64]
    """Time of each frame in seconds, `[N]`, strictly ascending."""
    ticks: NDArray[np.int64] | None
    """The decoder's pts of each frame, `[N]`, ascending, perhaps with equal ones; None if only the order identifies
    frames."""
    keys: NDArray[np.int64]
    """Positions of the key frames, ascending, without those that share their time with another frame; empty if
    unknown."""
    anchors: NDArray[np.int64]
    """Positions of the frames that are shown later than all those before them in the file, ascending: key frames and
    those that others refer to; empty if unknown."""
    fps: float
    """Average frame rate."""
    duration_seconds: float
    """From the first frame's start to the last frame's end."""
    jumps: bool = False
    """Whether the file's clock jumps: then times are right only when it is read from its start."""

    @property
    def end_seconds(self) -> float:
        """When the last frame ends."""
        return float(self.seconds[0]) + self.duration_seconds


@dataclass(slots=True)
class PacketTimes:
    """What one pass over the packets of a stream shows."""

    ticks: array[int] = field(default_factory=lambda: array("q"))
    """pts of packets that hold a shown frame, in file order, those without one left out."""
    keys: set[int] = field(default_factory=set)
    """pts of key frames."""
    count: int = 0
    """Packets that hold a shown frame."""
    reordered: bool = False
    """Whether some packet's pts differs from its dts."""
    encrypted: bool = False
    """Whether some packet is encrypted; decoding it would give noise."""
    last_ticks: int | None = None
    """Greatest pts."""
    last_length: int = 0
    """Duration of the packet with the greatest pts, in ticks."""
    first_length: int = 0
    """Duration of the first packet, in ticks."""
    jumps: bool = False
    """Whether the file's clock jumps."""
    packets: list[Packet[VideoStream]] | None = None
    """All packets in file order, the empty one included; None: they are too large to keep, or incomplete."""


def scan_packets(
    container: InputContainer,
    stream: VideoStream,
    *,
    max_seconds: float,
    max_packets: int,
    keys: frozenset[int] | None = None,
    max_kept_bytes: int = 0,
) -> PacketTimes:
    """Read the packet times of a file, up to its end, to where it is damaged, or to one packet over a limit.

    Args:
        container: the open file.
        stream: its video.
        max_seconds: limit.
        max_packets: limit.
        keys: dts of packets that hold key frames; None: the packets' own flags count.
        max_kept_bytes: packets are kept, for the decoder, where all together have no more.
    """
    times, room = PacketTimes(packets=[]), max_kept_bytes
    shown = _SHOWN_BIT if stream.codec_context.name in ("vp8", "libvpx") else 0
    max_ticks = max_seconds / (stream.time_base or 1)
    clock = clock_of(container, stream)
    for packet in packets(container, stream, clock=clock):
        room -= packet.size
        if room < 0:
            times.packets = None
        elif times.packets is not None:
            times.packets.append(packet)
        if not packet.size or packet.is_discard or (shown and not memoryview(packet)[0] & shown):
            continue
        _note(times, packet, is_key=packet.is_keyframe if keys is None else packet.dts in keys)
        too_long = times.last_ticks is not None and times.last_ticks - times.ticks[0] > max_ticks
        if too_long or times.count > max_packets:
            break
    times.jumps = clock is not None and clock.shift != 0
    return times


def index_keys(stream: VideoStream) -> frozenset[int]:
    """dts of the packets that the file's index calls key frames."""
    return frozenset(entry.timestamp for entry in stream.index_entries if entry.is_keyframe)


def _note(times: PacketTimes, packet: Packet[VideoStream], *, is_key: bool) -> None:
    times.count += 1
    if is_key or times.count == 1:  # the query is slow; if anything is encrypted, key frames are
        times.encrypted |= packet.has_sidedata("encryption_info")
    pts = packet.pts
    if pts is None:
        return
    if not times.ticks:
        times.first_length = packet.duration or 0
    times.ticks.append(pts)
    times.reordered |= pts != packet.dts
    if is_key:
        times.keys.add(pts)
    if times.last_ticks is None or pts > times.last_ticks:
        times.last_ticks, times.last_length = pts, packet.duration or 0


def decoded(stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
    """The frames that decoding a packet gives, or with None those still in the decoder; none if data are damaged.

    Raises:
        MemoryError: memory has run out, or the limit is reached.
    """
    return _decoded(stream, packet) or []


def _decoded(stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame] | None:
    """The same; None where data are damaged."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError as exc:
        context = stream.codec_context
        check_memory(exc, _FRAMES_HELD * _PIXEL_BYTES * context.height * context.width)
        return None


def packet_timeline(times: PacketTimes, container: InputContainer, stream: VideoStream) -> Timeline | None:
    """The timeline from the packets, or None if they do not give one: times missing, as in raw streams, or guessed from
    the order of decoding, as in AVI with B-frames."""
    if not times.count or len(times.ticks) != times.count or (_stores_no_pts(container) and times.reordered):
        return None
    in_file = np.frombuffer(times.ticks, np.int64)
    ticks = np.sort(in_file)
    if not stream.codec_context.has_b_frames and (ticks != in_file).any():  # some time is wrong
        return None
    keys = _told_apart(ticks, np.array(sorted(times.keys), np.int64))
    anchors = np.unique(np.searchsorted(ticks, in_file[np.maximum.accumulate(in_file) == in_file]))
    frames = _Frames(_to_seconds(apart(ticks), container, stream), ticks, keys, anchors)
    return _timeline(frames, stream, times, length=_last_length(times, ticks))


def _told_apart(ticks: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the frames with these times, where only one frame has it."""
    first, end = (np.searchsorted(ticks, wanted, side=side) for side in ("left", "right"))
    positions: NDArray[np.int64] = first[end - first == 1]
    return positions


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of decoding everything."""

    timeline: Timeline
    """Its frames, identified only by their order."""
    lost: int
    """Frames that could not be decoded."""


def decode_times(source: VideoSource, times: PacketTimes) -> Decoded | None:
    """Decode everything for the times of its frames; None if no frame can be decoded."""
    with source.open() as (container, stream):
        pts: list[int | None] = []
        damaged: list[int | None] = []
        for packet in packets(container, stream, clock=clock_of(container, stream)):
            frames = _decoded(stream, packet)
            pts += [frame.pts for frame in frames or ()]
            if frames is None:
                damaged.append(packet.pts)
        if not pts:
            return None
        ticks = _frame_ticks(pts, times, container, stream)
        if ticks is None:
            seconds = np.arange(len(pts)) / _header_rate(stream)
        else:
            seconds = _to_seconds(apart(ticks), container, stream)
        timeline = _timeline(_Frames(seconds), stream, times, length=0 if ticks is None else _last_length(times, ticks))
        return Decoded(timeline, _lost(pts, damaged, times))


def _frame_ticks(
    pts: list[int | None], times: PacketTimes, container: InputContainer, stream: VideoStream
) -> NDArray[np.int64] | None:
    """Ticks of the decoded frames: their own, or, if these contradict their order, the packets'."""
    found = np.array([time for time in pts if time is not None], np.int64)
    is_clean = len(found) == len(pts) and bool((np.diff(found) > 0).all())
    if is_clean and not _stores_no_pts(container):
        return found
    is_whole = len(times.ticks) == len(pts)
    if _stores_no_pts(container):
        return np.sort(np.frombuffer(times.ticks, np.int64)) if is_whole else None
    if is_whole and len(longest_ascent(pts)) < MOST * len(pts):
        return np.sort(np.frombuffer(times.ticks, np.int64))
    return filled(pts, step=1 / _header_rate(stream) / float(stream.time_base or 1))


def _lost(pts: list[int | None], damaged: list[int | None], times: PacketTimes) -> int:
    """How many frames are lost: of damaged packets, and of packets that follow such a packet without giving a frame. A
    packet without a frame right after one with a frame may hold its second field."""
    if len(times.ticks) != times.count:
        return max(0, times.count - len(pts))
    shown, broken = set(pts), set(damaged)
    lost = fields = 0
    follows_frame = False
    for tick in times.ticks:
        has_frame = tick in shown
        is_field = not has_frame and follows_frame and tick not in broken
        fields += is_field
        lost += not has_frame and not is_field
        follows_frame = has_frame
    return lost // 2 if 2 * fields >= len(pts) else lost


def _stores_no_pts(container: InputContainer) -> bool:
    return container.format.name == "avi"


def _to_seconds(ticks: NDArray[np.float64], container: InputContainer, stream: VideoStream) -> NDArray[np.float64]:
    """Seconds on the file's clock; if the container's clock has no zero, from the container's start."""
    base = stream.time_base or Fraction(1)
    start = 0
    if may_jump(container) and container.start_time is not None:
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


def _last_length(times: PacketTimes, ticks: NDArray[np.int64]) -> int:
    """How long the last frame stays, in ticks, 0 if the file does not give it: some give every frame one usual length,
    or a tick."""
    steps = np.diff(ticks)
    if len(steps) and times.last_length == times.first_length != int(steps[0]):
        return 0
    if steps.any() and 2 * times.last_length < int(steps[steps > 0].min()):
        return 0
    return times.last_length


def _timeline(frames: _Frames, stream: VideoStream, times: PacketTimes, *, length: int) -> Timeline:
    seconds, count = frames.seconds, len(frames.seconds)
    own = float(length * (stream.time_base or 0))
    if count == 1:
        fps = float(stream.average_rate or 0) or (1 / own if own else _header_rate(stream))
        return Timeline(*frames, fps, own or 1 / fps, times.jumps)
    step = float(np.median(np.diff(seconds)))
    if is_constant_rate(seconds):
        header_fps = float(stream.average_rate or 0)
        fps = _constant_rate(seconds, header_fps)
        usual = step * (1 + _MAX_DRIFT_FRAMES if fps == header_fps else LONG_LAST_FRAME)
        if own <= usual:
            return Timeline(*frames, fps, count / fps, times.jumps)
    duration = float(seconds[-1] - seconds[0]) + (own or last_step(seconds))
    return Timeline(*frames, count / duration, duration, times.jumps)


def with_last_frame_until(timeline: Timeline, end_seconds: float) -> Timeline:
    """The timeline of a file that announces a later end: its last picture stays until then."""
    steps = np.diff(timeline.seconds)
    usual = LONG_LAST_FRAME * float(np.median(steps)) if len(steps) else timeline.duration_seconds
    if end_seconds - timeline.end_seconds <= usual:
        return timeline
    duration = end_seconds - float(timeline.seconds[0])
    return replace(timeline, fps=len(timeline.seconds) / duration, duration_seconds=duration)


def _constant_rate(seconds: NDArray[np.float64], header_fps: float) -> float:
    """The header's rate if it fits the times, which is the rate other readers see; else the measured one."""
    steps = len(seconds) - 1
    measured = steps / float(seconds[-1] - seconds[0])
    if header_fps and math.isfinite(header_fps) and abs(measured / header_fps - 1) * steps <= _MAX_DRIFT_FRAMES:
        return header_fps
    return float(f"{measured:.9g}")  # a rate of 25.000000000000004 is one of 25, for which one frame more is shown
