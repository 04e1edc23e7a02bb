"""A video that is read for its times, then for its frames; reopened only if necessary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ..files.source import VideoSource
from .clock import clock_of, packets

KEPT_BYTES = 16 << 20
"""Packets of a file up to this size are kept for the second pass: reopening it costs more than the memory. For a larger
file, opening is a small part of the cost."""


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
        """The container and its video stream, for reading packet times, and how many bytes of packets may be kept;
        nothing may be decoded."""
        container, stream = self._scanned = self._open(times_only=True)
        return container, stream, 0 if self.source.leaves_media_out(container, stream) else KEPT_BYTES

    def from_start(
        self, kept: list[Packet[VideoStream]] | None
    ) -> tuple[InputContainer, VideoStream, Iterator[Packet[VideoStream]]]:
        """The container, its video stream, and the packets from the file's start.

        Args:
            kept: those that were kept; they can be used once, for a new decoder.
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
