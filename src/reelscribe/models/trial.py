"""Caption a tiny clip while a model loads, so that no model loads and then fails on every video.

Knows which clips are shown and with which prompts; does not know how a model answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ModelError
from ..types import CaptionRequest, CaptionResult, Clip, Failure, RequestId
from ..video.frames.moments import FramePolicy, target_size
from .captioner import GenerationConfig

SHAPES = ((2, 96, 128), (2, 128, 96), (3, 96, 96))
"""Steps, height and width of the clips: two of one length in different shapes, one of another length."""
FRAMES_PER_SECOND = 2.0
PROMPTS = ("Describe the video.", "Describe the video in one sentence.", "What is seen in the video, and what happens?")
CANDIDATES = 2
"""Texts that are generated for the first clip: the second needs a copy of the cache of the prompt."""
TRIAL_GENERATION = GenerationConfig(max_tokens=2, temperature=1.0)
"""Two tokens each: the first comes with the prompt, the second after the copy."""

Trial = tuple[CaptionRequest, Clip]


def trial_requests(policy: FramePolicy) -> list[Trial]:
    """A request for each of `SHAPES`, with its clip as a reader would make it for this policy."""
    return [
        (CaptionRequest(RequestId(row, 0), "", prompt, num_candidates=CANDIDATES, seed=row), trial_clip(policy, *shape))
        for row, (prompt, shape) in enumerate(zip(PROMPTS, SHAPES, strict=True))
    ]


def trial_clip(policy: FramePolicy, steps: int, height: int, width: int) -> Clip:
    """A clip of a bar that moves over a grey gradient, of `steps` steps of frames, at the policy's size."""
    frames = steps * max(2, policy.temporal_patch)
    rows, columns = target_size(policy, frames, height, width)
    slope = np.linspace(40, 200, columns).astype(np.uint8)
    pixels = np.broadcast_to(slope[None, None, :, None], (frames, rows, columns, 3)).copy()
    for number, frame in enumerate(pixels):
        frame[:, number * columns // frames : (number + 1) * columns // frames] = (200, 60, 60)
    return Clip(
        pixels, np.arange(frames) / FRAMES_PER_SECOND, duration_seconds=frames / FRAMES_PER_SECOND,
        source_fps=FRAMES_PER_SECOND, source_height=height, source_width=width,
    )  # fmt: skip


def check(results: Sequence[CaptionResult]) -> None:
    """Refuse a model that does not caption a tiny clip.

    Raises:
        ModelError: it failed; the message gives the reason.
    """
    for failure in failed(results):
        raise ModelError(f"{LOADING[failure.kind]}: {failure.message}")


def failed(results: Sequence[CaptionResult]) -> list[Failure]:
    """Failures that every video would have."""
    return [one.failure for one in results if one.failure is not None and one.failure.kind in LOADING]


LOADING = {
    "model_error": "it cannot caption a video, as a tiny one shows that is tried while it loads",
    "out_of_memory": "the device's memory is not enough for it and a tiny video",
}
"""Failure kinds that every video would have, to what they mean for the model."""
