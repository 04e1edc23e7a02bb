"""Which frames of a file every reader must give, and whether it gave them.

The positions are those reelscribe chooses. What is there is told by decoding everything, small copies of the frames
before and after included: a reader one frame off is found out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from reelscribe.video.frames.policy import FramePolicy

BLOCK = 4
"""Side of the squares of pixels that small copies keep the mean of."""
MAX_DIFFERENCE = 4.0
"""Grey levels by which small copies of one frame may differ on average, a shift of the whole picture left aside:
scaling and colour matrices are not alike."""
NEIGHBOUR_SLACK = 0.1
"""Grey levels by which a frame may be nearer to a neighbour of the wanted one: pictures that stand still are alike."""
MAX_SHIFT_SECONDS = 1e-3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every reader is asked for."""

    path: str
    """The file."""
    indices: tuple[int, ...]
    """Positions in the order of display, ascending."""
    height: int
    """Height to scale to, in pixels."""
    width: int
    """Width to scale to, in pixels."""


def choose(path: Path, policy: FramePolicy) -> Wanted:
    """What reelscribe gives of a file."""
    from reelscribe.types import Failure
    from reelscribe.video.reader import read_clip

    clip = read_clip(str(path), policy)
    if isinstance(clip, Failure):
        raise RuntimeError(f"{path}: {clip.message}: take it out of the folder")
    return Wanted(str(path), _positions(path, clip.pts_seconds), *clip.frames.shape[1:3])


def _positions(path: Path, pts_seconds: np.ndarray) -> tuple[int, ...]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        ticks = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
        times = np.sort(np.array(ticks)) * float(stream.time_base)
    positions = np.abs(times - pts_seconds[:, None]).argmin(axis=1)
    if np.abs(times[positions] - pts_seconds).max() > MAX_SHIFT_SECONDS:
        raise RuntimeError(f"{path}: its packets tell other times than its frames: take it out of the folder")
    return tuple(np.unique(positions).tolist())


def small(frames: np.ndarray) -> np.ndarray:
    """Small grey copies, float32 `[n, H / BLOCK, W / BLOCK]`, of uint8 `[n, H, W, 3]`."""
    count, height, width, _ = frames.shape
    squares = frames.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK * 3)
    return squares.mean(axis=(2, 4), dtype=np.float32)


def write_plan(plan: list[Wanted], file: Path, *, read: Callable[[Wanted], np.ndarray]) -> None:
    """Save what is wanted, and small copies `[3, n, …]` of the frames before, at and after each position, as `read`
    gives them."""
    copies = {}
    for number, wanted in enumerate(plan):
        around = np.array(wanted.indices) + np.array([[-1], [0], [1]])
        seen = np.unique(around.clip(0, wanted.indices[-1]))
        frames = read(Wanted(wanted.path, tuple(seen.tolist()), wanted.height, wanted.width))
        copies[str(number)] = small(frames)[np.searchsorted(seen, around.clip(0, seen[-1]))].astype(np.float16)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}")
    with unfinished.open("wb") as out:
        np.savez(out, plan=json.dumps([asdict(wanted) for wanted in plan]), **copies)
    unfinished.rename(file)


def read_plan(file: Path) -> Iterator[tuple[Wanted, np.ndarray]]:
    """What is wanted, and the small copies."""
    with np.load(file) as saved:
        for number, fields in enumerate(json.loads(str(saved["plan"]))):
            yield Wanted(**fields | {"indices": tuple(fields["indices"])}), saved[str(number)].astype(np.float32)


def compare(frames: np.ndarray, wanted: Wanted, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each frame whether it is the right one, and how far it is from it in grey levels, both `[n]`."""
    shape = (len(wanted.indices), wanted.height, wanted.width, 3)
    if frames.shape != shape or frames.dtype != np.uint8:
        raise RuntimeError(f"frames must be uint8 {shape}; got {frames.dtype} {frames.shape}")
    apart = small(frames) - copies
    before, at, after = np.abs(apart - apart.mean(axis=(2, 3), keepdims=True)).mean(axis=(2, 3))
    right = (at < MAX_DIFFERENCE) & (at <= np.minimum(before, after) + NEIGHBOUR_SLACK)
    return right, at
