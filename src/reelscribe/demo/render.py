"""Render a scene to pixels and to an mp4 file.

`render` draws the frames of a scene at any moments and any size; `render_clip` draws, encodes and writes a whole clip
that is determined by its seed. Nothing here knows a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scenes import Background, Kind, Scene, Thing, caption, sample_scene

Frames = NDArray[np.uint8]
Plane = NDArray[np.float32]

CLIP_STREAM = 1
"""First word of every clip's seed sequence; training uses another, so a clip's seed is never a training seed."""
EVALUATION_SEEDS = 1_000_000
"""First seed of the clips for measuring accuracy."""
DEMO_SEEDS = 2_000_000
"""First seed of the clips of a demonstration."""

FRAME_RATES = (8, 10, 12, 15, 20, 24, 25, 30)


@dataclass(frozen=True)
class ClipFormat:
    """Size and timing of a clip."""

    height: int
    """Pixels, even."""
    width: int
    """Pixels, even."""
    fps: int
    """Frames per second."""
    frames: int
    """Number of frames."""


@dataclass(frozen=True)
class RenderedClip:
    """A clip on disk and what is true of it."""

    path: Path
    """The mp4 file."""
    scene: Scene
    """What it shows."""
    caption: str
    """The canonical true sentence."""
    fps: int
    """Frames per second."""
    frames: int
    """Number of frames."""
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def duration_seconds(self) -> float:
        """Length of the clip."""
        return self.frames / self.fps


def sample_format(
    rng: np.random.Generator,
    *,
    short_side: tuple[int, int] = (96, 240),
    seconds: tuple[int, int] = (2, 6),
) -> ClipFormat:
    """Draw a size, a frame rate and a length; the length is within a quarter second of a whole number of seconds."""
    aspect = float(rng.choice([1, 4 / 3, 3 / 4, 16 / 9, 9 / 16], p=[0.3, 0.25, 0.1, 0.25, 0.1]))
    short = int(rng.integers(short_side[0], short_side[1] + 1))
    height, width = (short, short * aspect) if aspect >= 1 else (short / aspect, short)
    fps = int(rng.choice(FRAME_RATES))
    duration = int(rng.integers(seconds[0], seconds[1] + 1)) + float(rng.uniform(-0.22, 0.22))
    return ClipFormat(int(height) // 2 * 2, int(width) // 2 * 2, fps, max(round(duration * fps), 8))


# ---- drawing ----------------------------------------------------------------------------------------------------


def render(
    scene: Scene,
    moments: ArrayLike,
    *,
    height: int,
    width: int,
    source_size: tuple[float, float] | None = None,
    softness: float = 0.0,
) -> Frames:
    """Draw the scene at normalised moments: uint8 `[T, height, width, 3]`.

    `source_size` is the height and width of a larger or smaller clip that is squeezed to this size, so that circles
    become ellipses as a resize would make them. `softness` widens the edges, in source pixels.
    """
    when = np.asarray(moments, np.float32)
    frames = _draw_background(scene.background, len(when), height, width)
    source_height, source_width = source_size or (height, width)
    rows = (np.arange(height, dtype=np.float32) + 0.5) * (source_height / height)
    columns = (np.arange(width, dtype=np.float32) + 0.5) * (source_width / width)
    edge = max(source_height / height, source_width / width) * (0.5 + softness)
    for thing in scene.things:
        _draw_thing(frames, thing, when, rows=rows, columns=columns, source=(source_height, source_width), edge=edge)
    return np.asarray(np.clip(frames + 0.5, 0, 255), np.uint8)


_NOISE = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)


def _draw_background(background: Background, count: int, height: int, width: int) -> Plane:
    frames = np.empty((count, height, width, 3), np.float32)
    frames[:] = background.rgb
    if background.style == "gradient":
        length = width if background.gradient_across else height
        ramp = np.linspace(-1, 1, length, dtype=np.float32) * background.gradient
        frames += ramp[:, None] if background.gradient_across else ramp[:, None, None]
    if background.style in ("noise", "static"):
        rng = np.random.default_rng(background.seed)
        still = _noise_plane(rng, height, width) * background.noise_sigma
        for frame in frames:
            frame += still
            if background.style == "noise":
                still = _noise_plane(rng, height, width) * background.noise_sigma
    return frames


def _noise_plane(rng: np.random.Generator, height: int, width: int) -> Plane:
    """A grey noise picture, cut from one fixed bank because drawing fresh noise for every frame is slow."""
    pixels = height * width
    if pixels >= len(_NOISE):
        return rng.standard_normal((height, width, 1), np.float32)
    offset = int(rng.integers(0, len(_NOISE) - pixels))
    return _NOISE[offset : offset + pixels].reshape(height, width, 1)


def _circle(across: Plane, down: Plane, radius: float) -> Plane:
    return np.asarray(np.sqrt(across * across + down * down) - radius)


def _square(across: Plane, down: Plane, radius: float) -> Plane:
    return np.asarray(np.maximum(np.abs(across), np.abs(down)) - radius * 0.89)


def _triangle(across: Plane, down: Plane, radius: float) -> Plane:
    """Upright, apex at the top; slanted sides of slope 2, whose unit normal is (0.8944, 0.4472)."""
    reach = radius * 1.12
    return np.asarray(np.maximum(0.8944 * np.abs(across) - 0.4472 * (down + reach), down - reach * 0.85))


_DISTANCES: dict[str, Callable[[Plane, Plane, float], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
}
"""Signed distance from the outline, negative inside, by shape."""


def _draw_thing(
    frames: Plane,
    thing: Thing,
    when: Plane,
    *,
    rows: Plane,
    columns: Plane,
    source: tuple[float, float],
    edge: float,
) -> None:
    """Paint one thing into every frame in which it is visible; only the pixels around it are touched."""
    track = thing.at(when)
    distance = _DISTANCES[thing.shape]
    rgb = np.array(thing.rgb, np.float32)
    for index in np.flatnonzero(track.visible):
        radius = float(track.radius[index]) * min(source)
        x, y = float(track.x[index]) * source[1], float(track.y[index]) * source[0]
        reach = radius * 1.25 + 2 * edge
        top, bottom = np.searchsorted(rows, (y - reach, y + reach))
        left, right = np.searchsorted(columns, (x - reach, x + reach))
        if top == bottom or left == right:
            continue
        outside = distance(columns[None, left:right] - x, rows[top:bottom, None] - y, radius)
        cover = np.clip(0.5 - outside / (2 * edge), 0, 1)[..., None]
        patch = frames[index, top:bottom, left:right]
        patch += cover * (rgb - patch)


# ---- files ------------------------------------------------------------------------------------------------------


def encode_mp4(path: str | Path, frames: Frames, *, fps: int, crf: int = 23) -> None:
    """Write frames `[T, H, W, 3]` as H.264 in mp4 (4:2:0, one thread so that the bytes repeat); H and W are even."""
    import av

    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"frames are {frames.shape[1]}x{frames.shape[2]}, but 4:2:0 video needs even sides; pad or crop"
        )
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    with av.open(str(partial), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(target)


def plan_clip(
    seed: int,
    *,
    novel: bool = False,
    kind: Kind | None = None,
    action: str | None = None,
    short_side: tuple[int, int] = (96, 240),
    seconds: tuple[int, int] = (2, 6),
) -> tuple[ClipFormat, Scene]:
    """What the clip that belongs to a seed will show, without drawing it; the arguments are those of `render_clip`."""
    rng = np.random.default_rng(np.random.SeedSequence((CLIP_STREAM, seed)))
    form = sample_format(rng, short_side=short_side, seconds=seconds)
    scene = sample_scene(
        rng, kind=kind, action=action, aspect=form.width / form.height, triples="novel" if novel else "trained"
    )
    return form, scene


def render_clip(
    path: str | Path,
    seed: int,
    *,
    novel: bool = False,
    kind: Kind | None = None,
    action: str | None = None,
    short_side: tuple[int, int] = (96, 240),
    seconds: tuple[int, int] = (2, 6),
) -> RenderedClip:
    """Render and encode the clip that belongs to a seed.

    The same arguments give the same clip. `novel` draws a colour, shape and action that training never showed together;
    otherwise only combinations that training may show. Seeds from `EVALUATION_SEEDS` are for measuring, from
    `DEMO_SEEDS` for demonstrations.
    """
    form, scene = plan_clip(seed, novel=novel, kind=kind, action=action, short_side=short_side, seconds=seconds)
    frames = render(scene, np.linspace(0, 1, form.frames), height=form.height, width=form.width)
    encode_mp4(path, frames, fps=form.fps)
    return RenderedClip(Path(path), scene, caption(scene), form.fps, form.frames, (form.height, form.width))
