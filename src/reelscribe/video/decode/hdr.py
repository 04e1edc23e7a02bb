"""Convert HDR video (PQ and HLG) to BT.709 for a screen of ordinary brightness.

A cube of colours is computed once; frames are looked up in it. The curve is `mobius` of FFmpeg's `tonemap`: it keeps
everything darker than 30 % of white and bends the rest up to the video's peak.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from .filters import Kind, kind_of, pull_all, source_for

PQ, HLG = 16, 18
"""AVColorTransferCharacteristic of FFmpeg."""
WHITE_NITS = 203.0
"""Luminance of white in HDR video, in nits: Recommendation ITU-R BT.2408."""
USUAL_PEAK_NITS = 1000.0
"""Peak luminance, in nits, if the file gives none; also that of HLG's reference display."""
MOST_NITS = 10_000.0
DISPLAY_GAMMA = 2.4
"""Recommendation ITU-R BT.1886."""
_LEVEL = 7
"""Side of the cube: 49 values of each colour."""
_STEPS = _LEVEL * _LEVEL
_HLG_GAMMA = 1.2
_BT709 = 1
_PRIMARIES = {
    _BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""AVColorPrimaries to x and y of red, green and blue; white is D65 in all."""
_BT2020 = 9
_D65 = (0.3127, 0.3290)
_WHOLE_FORMAT = "rgb48le"
"""FFmpeg's `haldclut` swaps colour planes."""

Pixels = NDArray[np.float64]


def is_hdr(frame: VideoFrame) -> bool:
    """Whether a frame is marked as PQ or HLG."""
    return int(frame.color_trc) in (PQ, HLG)


def peak_nits(frame: VideoFrame) -> float:
    """The peak luminance that the video declares: `MaxCLL`, else that of its mastering display."""
    if int(frame.color_trc) == HLG:
        return USUAL_PEAK_NITS
    try:
        side_data: Any = frame.side_data
    except ValueError:  # as in `Orientation.of`
        return USUAL_PEAK_NITS
    if Type.CONTENT_LIGHT_LEVEL in side_data:
        brightest = float(np.frombuffer(side_data[Type.CONTENT_LIGHT_LEVEL], np.uint32)[0])
        if brightest > 0:
            return min(max(brightest, WHITE_NITS), MOST_NITS)
    if Type.MASTERING_DISPLAY_METADATA in side_data:
        # Eight pairs of chromaticities, the least and the most light as fractions, then which of the two are present.
        fields = np.frombuffer(side_data[Type.MASTERING_DISPLAY_METADATA], np.int32)
        numerator, denominator, has_light = fields[18], fields[19], fields[21]
        if has_light and numerator > 0 and denominator > 0:
            return min(max(float(numerator / denominator), WHITE_NITS), MOST_NITS)
    return USUAL_PEAK_NITS


class ToneMapper:
    """Converts HDR frames to SDR at the requested size; one peak for a whole clip, so that nothing flickers."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._peak_nits: float | None = None
        self._made_for: tuple[Kind, int, int] | None = None
        self._count = 0

    def map(self, frame: VideoFrame, *, height: int, width: int) -> VideoFrame:
        """The frame as 16-bit RGB of BT.709, `height` x `width`."""
        if self._peak_nits is None:
            self._peak_nits = peak_nits(frame)
        scaled = self._scaler.reformat(
            frame, width=width, height=height, format=_WHOLE_FORMAT, interpolation=Interpolation.BICUBIC, threads=1
        )
        kind, trc, primaries = kind_of(scaled), int(frame.color_trc), int(frame.color_primaries)
        if self._made_for != (kind, trc, primaries):
            self._make(kind, trc, primaries)
            self._made_for = (kind, trc, primaries)
        scaled.pts = self._count
        self._count += 1
        self._source.push(scaled)
        return pull_all(self._sink)[-1]

    def _make(self, kind: Kind, trc: int, primaries: int) -> None:
        assert self._peak_nits is not None
        graph = Graph()
        graph.threads = 1
        cube = _frame_of_cube(trc, primaries, self._peak_nits)
        self._source, self._sink = source_for(graph, kind), graph.add("buffersink")
        table, look_up = source_for(graph, kind_of(cube)), graph.add("haldclut", "interp=tetrahedral:clut=first")
        self._source.link_to(look_up, 0, 0)
        table.link_to(look_up, 0, 1)
        look_up.link_to(self._sink)
        graph.configure()
        table.push(cube)
        table.push(None)
        self._graph, self._count = graph, 0


def _frame_of_cube(trc: int, primaries: int, peak: float) -> VideoFrame:
    cube = _cube(trc, primaries if primaries in _PRIMARIES else _BT2020, peak)
    side = _LEVEL**3
    frame = VideoFrame.from_ndarray(cube.reshape(side, side, 3), format=_WHOLE_FORMAT)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    return frame


@lru_cache(maxsize=8)
def _cube(trc: int, primaries: int, peak: float) -> NDArray[np.uint16]:
    """The output of every colour, uint16 `[B, G, R, 3]`."""
    steps = np.linspace(0, 1, _STEPS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    signal = np.stack([red, green, blue], axis=-1)
    light = (_light_of_pq if trc == PQ else _light_of_hlg)(signal, _to_xyz(primaries)[1])
    shown = np.maximum(light @ (np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(primaries)).T / WHITE_NITS, 0)
    mapped = _tone_mapped(shown, peak=peak / WHITE_NITS)
    return np.round(np.clip(mapped, 0, 1) ** (1 / DISPLAY_GAMMA) * 65535).astype(np.uint16)


def _light_of_pq(signal: Pixels, _luminance: Pixels) -> Pixels:
    """Nits, by the EOTF of Recommendation ITU-R BT.2100 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    nits: Pixels = MOST_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return nits


def _light_of_hlg(signal: Pixels, luminance: Pixels) -> Pixels:
    """Nits on the reference display, by the inverse OETF and the OOTF of Recommendation ITU-R BT.2100."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    whole = (scene @ luminance)[..., None]
    nits: Pixels = USUAL_PEAK_NITS * np.maximum(whole, 1e-9) ** (_HLG_GAMMA - 1) * scene
    return nits


def _to_xyz(primaries: int) -> Pixels:
    """The matrix from linear RGB to CIE XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in _PRIMARIES[primaries]]).T
    x, y = _D65
    matrix: Pixels = columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))
    return matrix


def _tone_mapped(light: Pixels, *, peak: float) -> Pixels:
    """The light `[…, 3]`, white 1, up to `peak`, bent to at most 1 by FFmpeg; the hue stays."""
    side = _LEVEL**3
    frame = VideoFrame.from_ndarray(light.astype(np.float32).reshape(side, side, 3), format="gbrpf32le")
    frame.color_trc = 8  # linear
    graph = Graph()
    graph.threads = 1
    source, sink = source_for(graph, kind_of(frame)), graph.add("buffersink")
    graph.link_nodes(source, graph.add("tonemap", f"mobius:peak={max(peak, 1.0001)}:desat=0"), sink).configure()
    source.push(frame)
    bent: Pixels = pull_all(sink)[-1].to_ndarray().astype(np.float64).reshape(light.shape)
    return bent
