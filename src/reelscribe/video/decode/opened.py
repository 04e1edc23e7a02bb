"""A video that is gone through for its times, then for its frames; opened again only where it must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ..files.source import VideoSource
from .clock import clock_of, packets

KEPT_BYTES = 16 << 20
"""Packets of a file are kept from one time to the other if they have no more: opening it again costs more than
they take. Of a larger file opening is a small part of the cost."""


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

    def to_scan(self) -> tuple[InputContainer, VideoStream, int]:
        """The container and its video stream, to be gone through for packets' times, and how many bytes of packets
        may be kept; nothing may be decoded."""
        container, stream = self._scanned = self._open(times_only=True)
        return container, stream, 0 if self.source.leaves_media_out(container, stream) else KEPT_BYTES

    def from_start(
        self, kept: list[Packet[VideoStream]] | None
    ) -> tuple[InputContainer, VideoStream, Iterator[Packet[VideoStream]]]:
        """The container, its video stream, and the packets from the file's start.

        Args:
            kept: those that were kept; they are used once, since the decoder is a new one.
        """
        scanned = self._scanned
        if scanned is not None and kept is not None:
            self._scanned = None
            return *scanned, iter(kept)
        container, stream = self._open()
        return container, stream, packets(container, stream, clock=clock_of(container, stream))

    def _open(self, *, times_only: bool = False) -> tuple[InputContainer, VideoStream]:
        self.close()
        return self._stack.enter_context(self.source.open(times_only=times_only))
