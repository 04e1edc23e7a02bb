"""A video that is gone through for its times, then for its frames; opened again only where it must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .clock import clock_of, packets
from .memory import check_memory
from .source import VideoSource
from .timeline import FirstPacket

REWINDS = frozenset({"mov", "matroska"})
"""Containers, by FFmpeg's name up to the first comma, that are sought to their start: opening costs more."""

PALETTE = "pal8"
"""Pixel format whose colours come once, with the first packet after opening."""


class OpenedVideo:
    """A source and the container that was opened last, if any.

    Args:
        source: the video.
    """

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        self._stack = ExitStack()
        self._scanned: tuple[InputContainer, VideoStream] | None = None

    def close(self) -> None:
        """Close the container."""
        self._scanned = None
        self._stack.close()

    def to_scan(self) -> tuple[InputContainer, VideoStream]:
        """The container and its video stream, to be gone through for packets' times; nothing may be decoded."""
        container, stream = self._open(times_only=True)
        if container.format.name.split(",")[0] in REWINDS and not self.source.leaves_media_out(container, stream):
            self._scanned = container, stream
        return container, stream

    def from_start(self, first: FirstPacket) -> tuple[InputContainer, VideoStream, Iterator[Packet[VideoStream]]]:
        """The container, its video stream, and the packets from the file's start.

        Args:
            first: what was seen of the first packet.
        """
        scanned, self._scanned = self._scanned, None
        if scanned is not None and (following := _rewound(*scanned, first)) is not None:
            return *scanned, following
        container, stream = self._open()
        return container, stream, packets(container, stream, clock=clock_of(container, stream))

    def _open(self, *, times_only: bool = False) -> tuple[InputContainer, VideoStream]:
        self.close()
        return self._stack.enter_context(self.source.open(times_only=times_only))


def _rewound(
    container: InputContainer, stream: VideoStream, first: FirstPacket
) -> Iterator[Packet[VideoStream]] | None:
    """The packets from the start, or None where seeking leads elsewhere."""
    if first.pts is None or stream.codec_context.pix_fmt == PALETTE:
        return None
    try:
        container.seek(first.pts, stream=stream)
    except (av.FFmpegError, OSError) as exc:
        check_memory(exc)
        return None
    following = packets(container, stream, clock=clock_of(container, stream))
    packet = next(following, None)
    if packet is None or FirstPacket.of(packet) != first:
        return None
    return chain([packet], following)
