"""The size at which a transformers video processor shows frames, if its rule is one of `video.frames.sizing`.

Knows no family by name: a rule counts as the processor's if both agree on many videos, by the processor's own count of
patches. Frames that reach the processor at their final size are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..video.frames.moments import target_size
from ..video.frames.policy import FramePolicy, Size

_SHAPES = (
    (1, 360, 640), (2, 360, 640), (7, 480, 640), (24, 360, 640), (24, 1080, 1920), (23, 1280, 720), (60, 2160, 3840),
    (240, 480, 360), (600, 1080, 1920), (640, 64, 96), (16, 333, 517), (3, 1001, 777),
)  # fmt: skip
"""Frames, height and width of the videos for which a processor is queried."""
MAX_CLIP_PIXELS = 1 << 28
"""Pixels of a clip up to which frames go to a processor at their own size, if a smaller one would change more than
their pixels; 800 MB."""
_SMALL, _LARGE = (108, 192), (1080, 1920)
"""Heights and widths of two clips of one shape."""
_HD = ((1080, 1920), (1440, 1080))
"""Heights and widths of clips that the sizer `fit` shrinks."""


def sized_policy(policy: FramePolicy, video: Any) -> FramePolicy:
    """The policy with the processor's frame sizes, if they are known; otherwise unchanged.

    Args:
        policy: one with the sizer `fit`.
        video: the video processor.
    """
    if getattr(video, "draw_on_frames", None):  # what is drawn depends on the size before it resizes
        return replace(policy, max_clip_pixels=MAX_CLIP_PIXELS)
    fixed = _fixed_size(video)
    if fixed is not None:
        return replace(policy, fixed_size=fixed, resizes_all=True)
    for candidate in _budgets(policy, video):
        if _is_rule(candidate, video):
            return candidate
    policy = replace(policy, resizes_all=_resizes_all(video))
    return policy if _bears_shrinking(policy, video) else replace(policy, max_clip_pixels=MAX_CLIP_PIXELS)


def least_frames(video: Any) -> int:
    """Fewest frames that a video processor accepts: one, or a whole temporal patch."""
    patch = int(getattr(video, "temporal_patch_size", None) or 1)
    return 1 if patch == 1 or _made(video, *_SMALL, frames=1) is not None else patch


def _bears_shrinking(policy: FramePolicy, video: Any) -> bool:
    """Whether the processor makes as many patches from frames shrunk by the policy as from those of a file."""
    count = getattr(video, "get_num_of_video_patches", None)
    for height, width in _HD:
        size = target_size(policy, 2, height, width)
        if count is not None and _counts_differ(count, (height, width), size):
            return False
        made = [_made(video, *one) for one in ((height, width), size)]
        if any(one is not None for one in made) and _shape(made[0]) != _shape(made[1]):
            return False
    return True


def _counts_differ(count: Any, first: Size, second: Size) -> bool:
    try:
        return any(count(frames, *first) != count(frames, *second) for frames in (2, 24))
    except Exception:  # each misses its own settings
        return False


def _shape(made: Any) -> Any:
    return None if made is None else tuple(made.shape)


def _fixed_size(video: Any) -> Size | None:
    """The size to which the processor resizes every frame, if it only resizes."""
    size = _as_dict(getattr(video, "size", None))
    if not (size.get("height") and size.get("width")) or getattr(video, "do_center_crop", None):
        return None
    wanted = int(size["height"]), int(size["width"])
    made = [_made(video, *shape) for shape in (_SMALL, _LARGE)]
    same = all(one is not None and tuple(one.shape[-2:]) == wanted for one in made)
    return wanted if same else None


def _resizes_all(video: Any) -> bool:
    """Whether a larger frame of the same shape gives no more pixels than a small one."""
    small, large = (_made(video, *shape) for shape in (_SMALL, _LARGE))
    return small is not None and large is not None and small.numel() == large.numel()


def _made(video: Any, height: int, width: int, *, frames: int | None = None) -> Any:
    """The processor's pixels for a black clip of one temporal patch, at least two frames, or of so many; None if it
    fails."""
    count = frames or max(2, getattr(video, "temporal_patch_size", None) or 1)
    pixels = np.zeros((count, height, width, 3), np.uint8)
    metadata = {"total_num_frames": count, "fps": 1.0, "frames_indices": [*range(count)], "duration": 2.0}
    plain = {"draw_on_frames": False} if hasattr(video, "draw_on_frames") else {}
    try:
        made = video(
            [pixels],
            **plain,
            video_metadata=[metadata],
            do_sample_frames=False,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return next(value for name, value in made.items() if name.startswith("pixel_values"))
    except Exception:  # each processor fails in its own way
        return None


def _budgets(policy: FramePolicy, video: Any) -> list[FramePolicy]:
    """Candidates for the processor's rule, by the names of its settings."""
    size = _as_dict(getattr(video, "size", None))
    patch, merge = getattr(video, "patch_size", None), getattr(video, "merge_size", None)
    low, high = size.get("shortest_edge"), size.get("longest_edge")
    if not (patch and merge and low and high):
        return []
    make = partial(replace, policy, multiple=patch * merge, min_pixels=int(low), max_pixels=int(high))
    return [make(sizer=name) for name in ("video_budget", "frame_budget")]


def _is_rule(policy: FramePolicy, video: Any) -> bool:
    """Whether a policy agrees with the processor on videos of many lengths and shapes, and on frames that already have
    that size."""
    count = getattr(video, "get_num_of_video_patches", None)
    patch = getattr(video, "patch_size", None)
    if count is None or not patch:
        return False
    for frames, height, width in _SHAPES:
        frames = max(frames, policy.temporal_patch)
        size = target_size(policy, frames, height, width)
        steps = -(-frames // policy.temporal_patch)
        wanted = steps * (size[0] // patch) * (size[1] // patch)
        try:
            if {count(frames, height, width), count(frames, *size)} != {wanted}:
                return False
        except Exception:  # each processor refuses different shapes
            return False
    return True


def _as_dict(size: Any) -> Mapping[str, Any]:
    if size is None:
        return {}
    return size if isinstance(size, Mapping) else dict(size)
