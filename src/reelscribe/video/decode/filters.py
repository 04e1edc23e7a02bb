"""FFmpeg's filters on single frames."""

from __future__ import annotations

from fractions import Fraction

import av
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

_TICK = Fraction(1, 25)
"""Arbitrary: times are not changed."""

Kind = tuple[str, int, int, int, int]
"""Pixel format, height, width, colour space and range of a frame: the input of a filter chain."""


def kind_of(frame: VideoFrame) -> Kind:
    """The format of this frame, for which a filter chain is built."""
    return frame.format.name, frame.height, frame.width, int(frame.colorspace), int(frame.color_range)


def source_for(graph: Graph, kind: Kind) -> FilterContext:
    """The source through which frames of a format enter a graph."""
    name, height, width, matrix, color_range = kind
    return graph.add(
        "buffer",
        video_size=f"{width}x{height}",
        pix_fmt=name,
        time_base=str(_TICK),
        pixel_aspect="1/1",
        colorspace=str(matrix),
        range=str(color_range),
    )


def pull_all(sink: FilterContext) -> list[VideoFrame]:
    """The frames that are ready."""
    ready: list[VideoFrame] = []
    while True:
        try:
            frame = sink.pull()
        except av.error.BlockingIOError:
            return ready
        assert isinstance(frame, VideoFrame)
        ready.append(frame)


class FirstField:
    """Takes one field of interlaced frames: the one captured at the frame's time."""

    def __init__(self) -> None:
        self._kind: Kind | None = None
        self._source: FilterContext
        self._sink: FilterContext

    def of(self, frame: VideoFrame) -> VideoFrame:
        """The frame's first field by its own field order, half as high and not copied."""
        kind = kind_of(frame)
        if kind != self._kind:
            self._make(kind)
        self._source.push(frame)
        return pull_all(self._sink)[-1]  # before it, the other field of the frame that was pushed last

    def _make(self, kind: Kind) -> None:
        graph = Graph()
        self._source, self._sink = source_for(graph, kind), graph.add("buffersink")
        steps = [graph.add("crop", "iw:ih-1:0:0:exact=1")] if kind[1] % 2 else []
        graph.link_nodes(self._source, *steps, graph.add("separatefields"), self._sink).configure()
        self._kind, self._graph = kind, graph
