"""A film of ten minutes with short and long groups of pictures, cheaply: a few rendered parts, several times in a row.

The packets are copied with their times moved on, so the file is what an encoder would have written of it.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from benchmarks.clips import ClipKind, render_clip

PART_SECONDS = 30
PARTS = tuple(
    ClipKind(360, 640, PART_SECONDS, key_frame_every=every, scene_cuts=False) for every in (48, 120, 250, 250)
)
TURNS = 5


def make_long_clip(folder: Path) -> Path:
    """Render the parts and join them; a film that is there already is kept."""
    film = folder / f"{len(PARTS) * TURNS * PART_SECONDS}s.mp4"
    if film.exists():
        return film
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f".part{seed}.mp4" for seed in range(len(PARTS))]
    for seed, (path, kind) in enumerate(zip(parts, PARTS, strict=True)):
        render_clip(path, kind, seed=seed)
    unfinished = film.with_name(f".{film.name}")
    _join(parts * TURNS, unfinished)
    unfinished.rename(film)
    for path in parts:
        path.unlink()
    return film


def _join(parts: list[Path], film: Path) -> None:
    with av.open(str(film), "w", format="mp4") as output:
        with av.open(str(parts[0])) as first:
            stream = output.add_stream_from_template(first.streams.video[0])
        for number, path in enumerate(parts):
            _append(path, output, stream, start_seconds=number * PART_SECONDS)


def _append(path: Path, output: OutputContainer, stream: VideoStream, *, start_seconds: int) -> None:
    with av.open(str(path)) as part:
        source = part.streams.video[0]
        if source.codec_context.extradata != stream.codec_context.extradata:
            raise RuntimeError(f"{path} has other parameter sets than the first part: render all with one FFmpeg")
        shift = int(Fraction(start_seconds) / source.time_base)
        for packet in part.demux(source):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                output.mux(packet)
