"""What it brings that clips of different sizes share a batch, in families whose processors resize frames themselves.

`python -m benchmarks.mixed_sizes internvl llava_onevision` prints the ratio for each: the same clips and model, in
batches of clips of any size and of one shape, turn by turn in one process, on one thread. Models are the tiny ones of
the tests, so what is saved is calls; on an accelerator a step of eight rows takes about as long as one of one row.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.types import CaptionRequest, Clip, RequestId

SIZES = ((180, 320), (240, 320), (320, 240), (360, 480), (240, 240), (320, 180), (270, 480), (480, 360))
FRAMES = 4
CLIPS = 16
TOKENS = 64
ROUNDS = 3


def jobs() -> list[tuple[CaptionRequest, Clip]]:
    """Clips of noise, sizes by turns."""
    made = []
    for row in range(CLIPS):
        height, width = SIZES[row % len(SIZES)]
        pixels = np.random.default_rng(row).integers(0, 256, (FRAMES, height, width, 3), np.uint8)
        clip = Clip(
            pixels, np.arange(FRAMES) / 2, duration_seconds=FRAMES / 2, source_fps=2.0, source_height=height,
            source_width=width,
        )  # fmt: skip
        made.append((CaptionRequest(RequestId(row, 0), "v.mp4", "What happens?", None, 1, seed=row), clip))
    return made


def seconds(captioner: Any, asked: Sequence[Any], *, by_shape: bool) -> float:
    """Wall time of captioning all clips."""
    usual = captioner._alike
    if by_shape:
        captioner._alike = None
    started = time.perf_counter()
    failures = [one.failure for one in captioner.caption(asked) if one.failure is not None]
    taken = time.perf_counter() - started
    captioner._alike = usual
    if failures:
        raise RuntimeError(f"{len(failures)} clips failed: {failures[0]}")
    return taken


def ratio(folder: Path) -> float:
    """Time of batches by shape over that of batches of any size: the median of neighbours."""
    generation = generation_config({"max_tokens": TOKENS, "temperature": 0})
    captioner: Any = load_captioner(
        ModelSpec("hf", str(folder), options={"max_batch_size": 8, "max_batch_tokens": 10**7}, generation=generation)
    )
    captioner._eos_ids = frozenset()
    asked = jobs()
    seconds(captioner, asked, by_shape=False)
    pairs = [
        (seconds(captioner, asked, by_shape=True), seconds(captioner, asked, by_shape=False)) for _ in range(ROUNDS)
    ]
    return statistics.median(apart / together for apart, together in pairs)


def main(names: Sequence[str]) -> None:
    """Print the ratio of each family."""
    sys.path.insert(0, "tests")
    from families.registry import FAMILIES

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name}: {ratio(FAMILIES[name].save(Path(folder) / name)):.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ("internvl", "llava_onevision"))
