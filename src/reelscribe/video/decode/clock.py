"""One clock for packets whose timestamps jump, as in transport streams that were joined end to end.

Players follow the order of the file: where the clock steps back, or ahead by more than a pause, it is continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.video.stream import VideoStream

from ..process_memory import check_memory

BACK_SECONDS = 0.1
"""Decoding times never go back; a smaller step back than this is a muxer's jitter."""
AHEAD_SECONDS = 10.0
"""A larger step ahead than this is another clock, in containers whose clock may jump; FFmpeg's threshold."""
WRAPPING = frozenset({"mpegts", "mpeg"})
"""Containers whose timestamps have 33 bits and wrap to zero after 26.5 hours."""
APPENDED = frozenset({"flv", "live_flv"})
"""Other containers that are joined end to end, or written by recorders that reconnect."""
RESTARTED = "matroska,"
"""A container whose decoding times FFmpeg guesses; of files that were joined, each begins with a key frame."""
_TURN = 1 << 33


def may_jump(container: InputContainer) -> bool:
    """Whether the container's clock has no zero and may jump; FFmpeg's length is then a guess from it."""
    return Flags.ts_discont in Flags(container.format.flags)


def clock_of(container: InputContainer, stream: VideoStream) -> Clock | RestartedClock | None:
    """What puts the packets of the stream on one clock; None if the container has an index, or its times cannot
    jump."""
    if may_jump(container) or container.format.name in APPENDED:
        return Clock(container, stream)
    return RestartedClock(stream) if container.format.name.startswith(RESTARTED) else None


def packets(
    container: InputContainer, stream: VideoStream, *, clock: Clock | RestartedClock | None
) -> Iterator[Packet[VideoStream]]:
    """The packets of the stream from here on, on one clock, and the empty one that flushes the decoder.

    Ends early where the file is damaged. Where the clock jumps, times are right only from the file's start.
    """
    try:
        if clock is None:
            yield from container.demux(stream)
            return
        for packet in container.demux(stream):
            clock.set(packet)
            yield packet
    except (av.FFmpegError, OSError) as exc:
        check_memory(exc)


class Clock:
    """Timestamps of a stream's packets in the order of the file."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        base = stream.time_base or Fraction(1)
        self.shift = 0
        """Ticks that are added to the file's own."""
        self._back = round(BACK_SECONDS / base)
        self._ahead = round(AHEAD_SECONDS / base) if may_jump(container) else None
        self._wraps = container.format.name in WRAPPING
        self._last: int | None = None
        self._step = 0
        self._delay: int | None = None

    def set(self, packet: Packet[VideoStream]) -> None:
        """Move the packet's times to the clock that started with the first packet."""
        dts, pts = self._decoding_time(packet.dts, packet.pts), packet.pts
        if dts is not None:
            if self._last is not None:
                self._go_on(dts, self._last)
            self._last = dts
            length = packet.duration or 0
            if length and not length <= 2 * self._step <= 4 * length:  # after a pause, or at the start
                self._step = length
        if not self.shift:
            return
        if pts is not None:
            packet.pts = (pts if dts is None else dts + self._moved(dts, pts)) + self.shift
        if dts is not None:
            packet.dts = dts + self.shift

    def _decoding_time(self, dts: int | None, pts: int | None) -> int | None:
        """The dts on the clock of the pts: FFmpeg guesses that of the first packet after a jump from those before."""
        if dts is None or pts is None:
            return dts
        ahead = self._moved(dts, pts)
        if self._delay is None:
            self._delay = ahead
        elif ahead < -self._back or (self._ahead is not None and ahead > self._ahead):
            return pts - self._delay
        return dts

    def _go_on(self, raw: int, last: int) -> None:
        moved = self._moved(last, raw)
        if moved < -self._back or (self._ahead is not None and moved > self._ahead):
            moved = self._step
        elif moved > 0:
            self._step = moved
        self.shift += moved - (raw - last)

    def _moved(self, begin: int, end: int) -> int:
        """Ticks from one time to another, the shorter way round."""
        return (end - begin + _TURN // 2) % _TURN - _TURN // 2 if self._wraps else end - begin


class RestartedClock:
    """Timestamps of a stream's packets where a key frame may begin another file, on a clock that starts again."""

    def __init__(self, stream: VideoStream) -> None:
        self.shift = 0
        """Ticks that are added to the file's own."""
        self._back = round(BACK_SECONDS / (stream.time_base or Fraction(1)))
        self._first: int | None = None
        self._last = 0
        self._step = 0

    def set(self, packet: Packet[VideoStream]) -> None:
        """Move the packet's times to the clock that started with the first packet."""
        pts, dts = packet.pts, packet.dts
        if pts is None:
            return
        if self._first is None:
            self._first = self._last = pts
        if packet.is_keyframe and pts <= self._first + self._back and pts + self.shift < self._last - self._back:
            self.shift = self._last + self._step - pts
        if self.shift:
            packet.pts = pts + self.shift
            packet.dts = None if dts is None else dts + self.shift
        moved = pts + self.shift - self._last
        if moved > 0:
            self._step = packet.duration or moved
            self._last += moved
