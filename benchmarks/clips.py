"""Clips like those of a data set: a moving camera, moving things, sensor noise, H.264 with B-frames.

Two looks, which differ where it costs or saves time. `WEB`: little noise and a slower encoder, as sites deliver videos.
Five real clips have 0.04 to 0.10 bits a pixel, and in four of them no frame refers to 42 to 74 % of the frames; these
here have 0.04 to 0.10 bits and 27 to 49 %. `CAMERA`: much noise and a fast encoder, as files come from cameras, with
0.3 to 0.5 bits a pixel and few such frames. `python -m benchmarks.clips FOLDER` tells both for any folder.

The same seed gives the same file content on the same build of FFmpeg.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

DRIFT = 0.02
"""Largest shake of the camera from frame to frame, as a share of the picture's height."""


@dataclass(frozen=True, slots=True)
class Look:
    """The look of pictures, and their encoding."""

    noise: float
    """Standard deviation of the sensor noise, in grey levels."""
    cells: tuple[int, ...]
    """Details of a side of the picture, coarse and fine ones."""
    preset: str
    """Of the encoder."""
    crf: int
    """Quality that the encoder keeps; a lower number is better."""


WEB = Look(noise=2.0, cells=(4, 16, 64, 256), preset="medium", crf=20)
CAMERA = Look(noise=6.0, cells=(4, 16, 64), preset="veryfast", crf=23)


@dataclass(frozen=True, slots=True)
class ClipKind:
    """One kind of file."""

    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    seconds: float
    """Length."""
    fps: int = 24
    """Frames per second."""
    key_frame_every: int = 48
    """Frames between two key frames."""
    scene_cuts: bool = True
    """Whether the encoder also inserts key frames where it mistakes noise for a cut."""
    look: Look = WEB
    """Pictures and encoding."""


SMALL = (
    ClipKind(360, 640, 10),
    ClipKind(480, 854, 12, key_frame_every=250),
    ClipKind(360, 640, 20, fps=30, key_frame_every=120),
    ClipKind(640, 360, 15, key_frame_every=24),
)
"""10-20 s, 360p to 480p, landscape and portrait, short and long groups of pictures."""
REALISTIC = (*SMALL, ClipKind(720, 1280, 12, fps=25, key_frame_every=125), ClipKind(1080, 1920, 10, fps=30))
"""10-20 s, 360p to 1080p, as sites deliver them."""
FROM_CAMERAS = (
    ClipKind(360, 640, 10, look=CAMERA),
    ClipKind(1080, 1920, 10, fps=30, key_frame_every=60, look=CAMERA),
    ClipKind(480, 854, 20, key_frame_every=250, look=CAMERA),
    ClipKind(720, 1280, 12, fps=25, key_frame_every=125, look=CAMERA),
)
"""The same, as they come from cameras."""


def make_clips(folder: Path, count: int, *, kinds: tuple[ClipKind, ...]) -> list[Path]:
    """Render `count` clips, kinds in turn; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        kind = kinds[seed % len(kinds)]
        path = folder / f"{seed:04d}_{kind.width}x{kind.height}_{kind.seconds:g}s.mp4"
        if not path.exists():
            unfinished = path.with_name(f".{path.name}")
            render_clip(unfinished, kind, seed=seed)
            unfinished.rename(path)
        paths.append(path)
    return paths


def render_clip(path: Path, kind: ClipKind, *, seed: int) -> None:
    """Encode one clip."""
    rng = np.random.default_rng(seed)
    scene = _scene(rng, kind)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=kind.fps)
        stream.height, stream.width, stream.pix_fmt = kind.height, kind.width, "yuv420p"
        stream.time_base = Fraction(1, kind.fps)
        cuts = {} if kind.scene_cuts else {"sc_threshold": "0"}
        keys = {"g": str(kind.key_frame_every), **cuts}
        stream.options = {"preset": kind.look.preset, "crf": str(kind.look.crf), "bf": "3", **keys, "threads": "2"}
        for picture in _pictures(rng, scene, kind):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _scene(rng: np.random.Generator, kind: ClipKind) -> np.ndarray:
    """A picture larger than the frame, with structure of all sizes, uint8 `[H, W, 3]`."""
    height, width = kind.height * 3 // 2, kind.width * 3 // 2
    scene = np.zeros((height, width, 3), np.float32)
    for cells in kind.look.cells:
        coarse = rng.normal(0, 40 / np.sqrt(cells / 4), (cells + 1, cells + 1, 3)).astype(np.float32)
        rows = np.linspace(0, cells, height, dtype=np.float32)
        columns = np.linspace(0, cells, width, dtype=np.float32)
        scene += _between(_between(coarse, rows, axis=0), columns, axis=1)
    return np.clip(scene + 120, 0, 255).astype(np.uint8)


def _between(values: np.ndarray, places: np.ndarray, *, axis: int) -> np.ndarray:
    low = np.minimum(places.astype(int), values.shape[axis] - 2)
    share = (places - low).reshape([-1 if one == axis else 1 for one in range(3)])
    return np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share


def _pictures(rng: np.random.Generator, scene: np.ndarray, kind: ClipKind):
    count = round(kind.seconds * kind.fps)
    room = np.array(scene.shape[:2]) - (kind.height, kind.width)
    start, end = rng.uniform(0, 1, (2, 2)) * room
    shake = np.cumsum(rng.normal(0, DRIFT * kind.height / 20, (count, 2)), axis=0)
    noise = rng.normal(0, kind.look.noise, (kind.height + 64, kind.width + 64)).astype(np.int16)
    colour, thing = rng.integers(0, 255, 3), rng.uniform(0.1, 0.9, (2, 2))
    side = kind.height // 5
    for index in range(count):
        share = index / max(count - 1, 1)
        y, x = np.clip(start + (end - start) * share + shake[index], 0, room).astype(int)
        picture = scene[y : y + kind.height, x : x + kind.width].astype(np.int16)
        top, left = ((thing[0] + (thing[1] - thing[0]) * share) * (kind.height - side, kind.width - side)).astype(int)
        picture[top : top + side, left : left + side] = colour
        dy, dx = rng.integers(0, 64, 2)
        picture += noise[dy : dy + kind.height, dx : dx + kind.width, None]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def make_scenes(folder: Path, count: int, *, height: int = 240, width: int = 320, seconds: int = 4) -> list[Path]:
    """Clips of the kind that the bundled model knows, coloured shapes at 25 frames a second; kept if they exist."""
    from reelscribe.demo.render import encode_mp4, render
    from reelscribe.demo.scenes import sample_scene

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:04d}_{width}x{height}_{seconds}s.mp4" for seed in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            scene = sample_scene(np.random.default_rng(seed), aspect=width / height)
            frames = render(scene, np.linspace(0, 1, 25 * seconds), height=height, width=width)
            encode_mp4(path, frames, fps=25)
    return paths


def properties(path: Path) -> tuple[float, float]:
    """Bits a pixel of a file, and the share of its frames that no other refers to."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        sizes = [packet.size for packet in container.demux(stream) if packet.size]
        pixels = len(sizes) * stream.height * stream.width
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONREF"
        referred = sum(1 for _ in container.decode(stream))
    return 8 * sum(sizes) / pixels, 1 - referred / len(sizes)


def main() -> None:
    """Describe files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    for path in sorted(parser.parse_args().folder.glob("*.mp4")):
        bits, alone = properties(path)
        print(f"{path.name}: {bits:.3f} bits a pixel, {alone:.0%} of frames no other refers to")


if __name__ == "__main__":
    main()
