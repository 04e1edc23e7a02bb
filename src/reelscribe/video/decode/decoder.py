"""Decode the requested frames of an open container, in order, decoding as little as is safe.

Three shortcuts, none of which changes a pixel (0017): frames that no other refers to are not decoded unless requested,
decoding jumps to a later key frame where that leaves frames out, and it ends at the last requested frame. The output is
checked against the timeline: a file whose times, key frames or references mislead is detected, not misread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..process_memory import check_memory
from ..rejection import RejectedError
from .clock import clock_of, packets
from .timeline import Timeline, decoded

LEAP_FRAMES = 3
"""Frames that a jump to a later key frame must leave out to be worth flushing the decoder."""
SEEK_FRAMES = 64
"""Frames left out from which on the reader seeks, instead of skipping their packets."""
SKIPS_UNREFERENCED = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
"""Decoders that skip unreferenced frames packet by packet. Others either ignore the setting or apply it to packets they
were given before (dav1d)."""


TELLS_FALSE_KEYS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video"})
"""Decoders that report it, or return nothing, when they continue at a frame that is wrongly marked as a key frame."""
MARKS_KEYS = frozenset({"mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "h263", "flv"})
"""Decoders whose frames tell whether they are key frames. No others jump: they would continue from an empty picture,
unnoticed."""


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """Which shortcuts are used."""

    seeks: bool
    """Whether the reader seeks; some containers seek to the wrong place."""
    skips: bool
    """Whether frames are left out, and key frames jumped to."""


WAYS = (Shortcuts(seeks=True, skips=True), Shortcuts(seeks=False, skips=True), Shortcuts(seeks=False, skips=False))
"""Ways to decode a file, the cheapest first; the last decodes everything up to the last requested frame."""


class MismatchError(Exception):
    """The decoder's frames are not those of the timeline."""


def frames_at(
    container: InputContainer,
    stream: VideoStream,
    timeline: Timeline,
    chosen: NDArray[np.int64],
    *,
    way: Shortcuts,
    following: Iterator[Packet[VideoStream]],
) -> Iterator[VideoFrame]:
    """The frames at these ascending positions of the timeline.

    Args:
        container: the open file.
        stream: its video.
        timeline: all its frames.
        chosen: positions.
        way: which shortcuts are used.
        following: the packets from the file's start.

    Raises:
        MismatchError: a frame does not come out of the decoder, or frames come in another order.
        RejectedError: decoding twice gives different frames.
    """
    if timeline.ticks is None:
        return _by_order(stream, following, chosen.tolist())
    if timeline.jumps:
        way = replace(way, seeks=False)
    return _by_time(_Feed(container, stream, timeline.ticks, way, following), timeline.keys, chosen.tolist())


def _by_order(
    stream: VideoStream, following: Iterator[Packet[VideoStream]], chosen: Sequence[int]
) -> Iterator[VideoFrame]:
    wanted, position = deque(chosen), 0
    for packet in following:
        for frame in decoded(stream, packet):
            if wanted and position == wanted[0]:
                wanted.popleft()
                yield frame
            position += 1
        if not wanted:
            return
    raise RejectedError("unreadable", "the decoder returned different frames on the second pass", doubtful=True)


def _by_time(feed: _Feed, keys: NDArray[np.int64], chosen: Sequence[int]) -> Iterator[VideoFrame]:
    """Decode leg by leg; nothing between two legs is decoded."""
    for start, wanted in _legs(keys if feed.may_leap else keys[:0], chosen):
        if start is not None:
            feed.leap(*start)
        yield from _in_order(feed, wanted)


Leg = tuple[tuple[int, int] | None, list[int]]


def _legs(keys: NDArray[np.int64], chosen: Sequence[int]) -> Iterator[Leg]:
    """The requested positions in groups; before each but perhaps the first, the position of the key frame to continue
    from, and how many frames that leaves out."""
    leg: Leg = (None, [])
    last = -1
    for wanted in chosen:
        key = _key_before(keys, wanted)
        left_out = key - last - 1
        if left_out >= LEAP_FRAMES:
            if leg[1]:
                yield leg
            leg = ((key, left_out), [])
        leg[1].append(wanted)
        last = wanted
    yield leg


def _key_before(keys: NDArray[np.int64], position: int) -> int:
    """The last key frame up to this position, or the start."""
    index = int(np.searchsorted(keys, position, side="right")) - 1
    return int(keys[index]) if index >= 0 else 0


def _in_order(feed: _Feed, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """The requested frames of a leg, picked from the decoder's output."""
    missing, last = deque(wanted), -1
    for frame in feed.decode(feed.packets_at(wanted)):
        at = feed.position(frame, after=last)
        if at <= last or at > missing[0]:
            raise MismatchError
        last = at
        if at == missing[0]:
            missing.popleft()
            yield frame
        if not missing:
            return
    raise MismatchError


@dataclass(slots=True)
class _Feed:
    """The packets of a file on their way to the decoder."""

    container: InputContainer
    stream: VideoStream
    ticks: NDArray[np.int64]
    way: Shortcuts
    following: Iterator[Packet[VideoStream]]
    leapt_to: int | None = None
    _key: Packet[VideoStream] | None = None
    _places: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._places = self.ticks.tolist()

    @property
    def may_leap(self) -> bool:
        """Whether it may continue at a later key frame."""
        context = self.stream.codec_context
        known = context.name in TELLS_FALSE_KEYS or context.name in MARKS_KEYS or bool(context.codec.intra_only)
        return self.way.skips and known and not self._has_palette

    @property
    def _has_palette(self) -> bool:
        """Whether a picture may need what came with an earlier packet."""
        return self.stream.codec_context.pix_fmt == "pal8"

    def position(self, frame: VideoFrame, *, after: int) -> int:
        """A frame's position on the timeline; the second of two with one time comes after the first."""
        if frame.pts is None or (self.leapt_to is not None and frame.is_corrupt):
            raise MismatchError
        at = bisect_left(self._places, frame.pts)
        if at <= after < len(self._places) - 1:
            at = after + 1
        if at == len(self._places) or self._places[at] != frame.pts:
            raise MismatchError
        if at == self.leapt_to and self.stream.codec_context.name in MARKS_KEYS and not frame.key_frame:
            raise MismatchError
        return at

    def packets_at(self, wanted: Sequence[int]) -> dict[int, int]:
        """The times of these positions, and how many packets have each."""
        times = np.unique(self.ticks[wanted])
        first, end = (np.searchsorted(self.ticks, times, side=side) for side in ("left", "right"))
        return dict(zip(times.tolist(), (end - first).tolist(), strict=True))

    def decode(self, wanted: dict[int, int]) -> Iterator[VideoFrame]:
        """Frames from here on: those with the requested pts, and others; the last packet that is needed flushes the
        decoder, unless nothing may be skipped.

        Args:
            wanted: pts, and how many packets have each.
        """
        context = self.stream.codec_context
        unreferenced = self.way.skips and context.name in SKIPS_UNREFERENCED
        alone = self.way.skips and bool(context.codec.intra_only) and not self._has_palette
        missing, skipping = sum(wanted.values()), None
        for packet in self._packets():
            found = packet.pts is not None and packet.pts in wanted
            needed = found or packet.pts is None
            missing -= found
            if alone and not needed:
                continue
            if unreferenced and skipping is not (not needed):
                skipping = not needed
                context.skip_frame = "NONREF" if skipping else "DEFAULT"
            yield from decoded(self.stream, packet)
            if self.way.skips and missing <= 0:
                yield from decoded(self.stream, None)
                return

    def leap(self, key: int, left_out: int) -> None:
        """Continue at the key frame at position `key`, by seeking or by skipping packets.

        Raises:
            MismatchError: it does not exist.
        """
        key_ticks = int(self.ticks[key])
        if self.way.seeks and left_out >= SEEK_FRAMES:
            self._seek(key_ticks)
        self.stream.codec_context.flush_buffers()
        for packet in self._packets():
            if packet.is_keyframe and packet.pts == key_ticks:
                self._key = packet
                self.leapt_to = key
                return
        raise MismatchError

    def _seek(self, key_ticks: int) -> None:
        """Move before the key frame, or anywhere earlier."""
        try:
            self.container.seek(key_ticks, stream=self.stream)
        except (av.FFmpegError, OSError) as exc:
            check_memory(exc)
            raise MismatchError from exc
        self.following = packets(self.container, self.stream, clock=clock_of(self.container, self.stream))

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Those from here on, with the key frame that was jumped to."""
        key, self._key = self._key, None
        return self.following if key is None else chain([key], self.following)
