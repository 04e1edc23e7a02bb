"""The size at which frames are shown. Pure arithmetic; nothing here touches pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

from .policy import FramePolicy, Size


def target_size(policy: FramePolicy, num_frames: int, height: int, width: int) -> Size:
    """Height and width at which the model is shown `num_frames` frames of `height` x `width` pixels.

    Args:
        policy: the model's frame policy.
        num_frames: frames before padding; fewer than `temporal_patch` count as padded to it.
        height: pixels of the upright source.
        width: pixels of the upright source.

    Returns:
        The size; multiples of `policy.multiple`, except for the sizer `fit`. No side is shorter than the multiple, so
        very elongated shapes and very small limits may exceed a budget.
    """
    frames = max(num_frames, policy.temporal_patch)
    return SIZERS[policy.sizer](policy, frames, height, width)


def video_budget(policy: FramePolicy, num_frames: int, height: int, width: int) -> Size:
    """Size by a budget of frames x height x width.

    The rule of transformers' `Qwen3VLVideoProcessor.resize` and its `smart_resize`, its per-frame cap included
    (`cap_pixels_per_frame`). The user's limits for one frame apply on top.
    """
    multiple, patch = policy.multiple, policy.temporal_patch
    budget = policy.max_pixels
    if policy.frame_cap_tokens is not None:
        cap = policy.frame_cap_tokens * multiple * multiple
        budget = num_frames * max(min(cap, policy.max_pixels // num_frames), int(policy.min_pixels * 1.05))
    if min(height, width) < multiple:
        grow = max(multiple / height, multiple / width)
        height, width = int(height * grow), int(width * grow)
    counted = round(num_frames / patch) * patch
    size = _nearest(multiple, height, width)
    if counted * size[0] * size[1] > budget:
        size = _shrunk(multiple, height, width, math.sqrt((num_frames * height * width) / budget))
    elif counted * size[0] * size[1] < policy.min_pixels:
        size = _grown(multiple, height, width, math.sqrt(policy.min_pixels / (num_frames * height * width)))
    return _within_frame_limits(policy, size, height, width, ceiling=budget // num_frames)


def frame_budget(policy: FramePolicy, num_frames: int, height: int, width: int) -> Size:
    """Size by a budget for each frame; the user's limits for one frame replace the model's.

    The rule of transformers' `Qwen2VLVideoProcessor.resize` and its `smart_resize`, its bound on the whole video
    included (`cap_pixels_per_frame`: 90 % of `max_video_tokens`, in equal shares).
    """
    multiple = policy.multiple
    highest = policy.max_frame_pixels or policy.max_pixels
    lowest = min(policy.min_frame_pixels or policy.min_pixels, highest)
    if policy.frame_cap_tokens is not None:
        total = int(policy.frame_cap_tokens * multiple * multiple * 0.9)
        highest = max(min(highest, total * policy.temporal_patch // num_frames), int(lowest * 1.05))
    size = _between(multiple, height, width, lowest=lowest, highest=highest)
    if policy.max_frame_pixels is not None and size[0] * size[1] > policy.max_frame_pixels:
        return _shrunk(multiple, height, width, math.sqrt((height * width) / policy.max_frame_pixels))
    return size


def fit(policy: FramePolicy, num_frames: int, height: int, width: int) -> Size:
    """The source's own size, shrunk in proportion to at most `max_pixels` per frame, or its share of `max_clip_pixels`
    if that is more, or to `fixed_size` if that is smaller on both sides; for models whose own processor resizes
    afterwards. Enlarges only on the user's request."""
    if policy.fixed_size is not None and policy.fixed_size[0] <= height and policy.fixed_size[1] <= width:
        return policy.fixed_size
    share = max(policy.max_pixels, policy.max_clip_pixels // num_frames)
    highest = min(policy.max_frame_pixels or share, share)
    lowest = min(policy.min_frame_pixels or 0, highest)
    if lowest <= height * width <= highest:
        return height, width
    if height * width < lowest:
        scale = math.sqrt(lowest / (height * width))
        return math.ceil(height * scale), math.ceil(width * scale)
    scale = math.sqrt(highest / (height * width))
    return max(1, int(height * scale)), max(1, int(width * scale))


SIZERS: dict[str, Callable[[FramePolicy, int, int, int], Size]] = {
    "video_budget": video_budget,
    "frame_budget": frame_budget,
    "fit": fit,
}
"""How a size is chosen, by name; each takes (policy, frames, height, width)."""


def _nearest(multiple: int, height: int, width: int) -> Size:
    return round(height / multiple) * multiple, round(width / multiple) * multiple


def _shrunk(multiple: int, height: int, width: int, divisor: float) -> Size:
    low = max(multiple, math.floor(height / divisor / multiple) * multiple)
    return low, max(multiple, math.floor(width / divisor / multiple) * multiple)


def _grown(multiple: int, height: int, width: int, factor: float) -> Size:
    return math.ceil(height * factor / multiple) * multiple, math.ceil(width * factor / multiple) * multiple


def _between(multiple: int, height: int, width: int, *, lowest: int, highest: int) -> Size:
    """The nearest multiples, scaled in proportion if height x width leaves the limits."""
    size = _nearest(multiple, height, width)
    if size[0] * size[1] > highest:
        return _shrunk(multiple, height, width, math.sqrt((height * width) / highest))
    if size[0] * size[1] < lowest:
        return _grown(multiple, height, width, math.sqrt(lowest / (height * width)))
    return size


def _within_frame_limits(policy: FramePolicy, size: Size, height: int, width: int, *, ceiling: int) -> Size:
    """Apply the user's limits for one frame; the lower one raises no frame above `ceiling`, its share of the budget."""
    highest, lowest = policy.max_frame_pixels, policy.min_frame_pixels
    area = size[0] * size[1]
    if highest is not None and area > highest:
        return _shrunk(policy.multiple, height, width, math.sqrt((height * width) / highest))
    if lowest is not None and area < lowest:
        goal = min(lowest, ceiling)
        grown = _grown(policy.multiple, height, width, math.sqrt(goal / (height * width)))
        return grown if grown[0] * grown[1] <= min(ceiling, highest or ceiling) else size
    return size
