"""Which moments of a video a model is shown, and the metadata that gives their times.

Pure functions over frame counts and times; files and pixels are handled by the reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...types import Clip, TimeWindow
from ..decode.partial_times import last_step
from .library_rules import FrameRule, Question
from .policy import FramePolicy, FrameSettings
from .sizing import SIZERS, target_size

__all__ = [
    "SAMPLERS",
    "SIZERS",
    "FramePolicy",
    "FrameSettings",
    "Sampler",
    "distinct_frames",
    "fewer_frames",
    "frame_metadata",
    "frames_in_window",
    "is_constant_rate",
    "lay_out",
    "pad",
    "sample_indices",
    "sample_times",
    "shown_frames",
    "shown_size",
    "span_seconds",
    "target_size",
]

Indices = NDArray[np.int64]
Seconds = NDArray[np.float64]

JITTER = 0.25
"""Share of a frame interval by which times may deviate from an even grid and still count as constant rate: containers
round times to milliseconds, GIF to hundredths."""
INSTANT_SECONDS = 1e-6
"""Times closer than this are the same moment."""
LONG_LAST_FRAME = 1.5
"""A last frame that stays longer than so many frames is not a rounding error: slide shows and screen recordings end
like that."""
LONGEST_STEADY = 2.1
"""Length of the last frame, in frames, up to which the number of frames gives the time: muxers often get it wrong by
one."""
ROUNDING = 1e-9
"""Relative rounding error of a length in seconds."""
RULE_FPS = 25.0
"""Least rate at which a model's own rule samples a file with uneven times."""
PLENTY = 10**9
"""More frames than any video has."""
GRID_SECONDS = 0.6e-3
"""Times closer than this to index / rate are that index: Matroska rounds to milliseconds."""


class Sampler(NamedTuple):
    """One way to choose moments."""

    frames: Callable[[FramePolicy, int, float], int]
    """Frames to show, of `total` frames at `fps` frames per second."""
    indices: Callable[[int, int], Indices]
    """Positions `[n]` for n of `total` evenly spaced frames."""
    moments: Callable[[float, float, float, int], Seconds]
    """Moments `[n]` in seconds, from the first moment; the second argument is the last one that may be shown, the third
    the end."""


def _linspace_count(policy: FramePolicy, total: int, fps: float) -> int:
    """`Qwen3VLVideoProcessor.sample_frames`, but never more frames than there are."""
    if policy.num_frames is not None:
        return min(policy.num_frames, total)
    wanted = total if policy.fps is None else int(total / fps * policy.fps)
    return max(1, min(max(wanted, policy.min_frames), policy.max_frames, total))


def _linspace_indices(total: int, count: int) -> Indices:
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _linspace_moments(first: float, last: float, _end: float, count: int) -> Seconds:
    return np.linspace(first, last, count, dtype=np.float64)


def _stride_count(policy: FramePolicy, total: int, fps: float) -> int:
    """`Qwen2VLVideoProcessor.sample_frames`: a multiple of the temporal patch; one frame if there are fewer."""
    patch = policy.temporal_patch
    most = total // patch * patch
    if policy.num_frames is not None:
        return max(1, min(round(policy.num_frames / patch) * patch, most))
    wanted = total if policy.fps is None else total / fps * policy.fps
    most = min(most, policy.max_frames // patch * patch)
    return max(1, math.floor(min(max(wanted, policy.min_frames), most, total) / patch) * patch)


def _stride_indices(total: int, count: int) -> Indices:
    """`torch.arange(0, total, total / count).int()`, which rounds to float32 before it truncates."""
    places: Indices = np.arange(0, total, total / count).astype(np.float32).astype(np.int64)
    return places[places < total]


def _stride_moments(first: float, _last: float, end: float, count: int) -> Seconds:
    return np.asarray(first + np.arange(count) * ((end - first) / count), np.float64)


SAMPLERS: dict[str, Sampler] = {
    "linspace": Sampler(_linspace_count, _linspace_indices, _linspace_moments),
    "stride": Sampler(_stride_count, _stride_indices, _stride_moments),
}
"""How moments are chosen, by name: `linspace` as Qwen3-VL does, first and last frame included; `stride` as Qwen2.5-VL
does, at even steps from the first frame."""


def sample_indices(policy: FramePolicy, total_frames: int, fps: float) -> Indices:
    """Positions of the frames to show of a constant-rate video.

    Args:
        policy: the model's frame policy.
        total_frames: frames of the video.
        fps: frame rate of the video.

    Returns:
        int64 `[n]`, ascending, unique; those that transformers' processor for the model chooses
        (`Qwen3VLVideoProcessor`, `Qwen2VLVideoProcessor`; method `sample_frames`), except that there are never more
        than the video has.
    """
    if total_frames < 1:
        return np.zeros(0, np.int64)
    sampler = SAMPLERS[policy.sampler]
    return sampler.indices(total_frames, sampler.frames(policy, total_frames, fps))


def sample_times(
    policy: FramePolicy, pts_seconds: Seconds, *, fps: float, window: TimeWindow, end_seconds: float | None = None
) -> Indices:
    """Positions of the frames to show, of frames at the given times.

    Args:
        policy: the model's frame policy.
        pts_seconds: float64 `[T]`, ascending times of all frames of the file.
        fps: average frame rate of the file.
        window: the part to look at, both ends included; if no frame starts in it, the frame on display is taken.
        end_seconds: when the last frame ends; None: after a usual frame's length.

    Returns:
        int64 `[n]`, ascending, unique, into `pts_seconds`; empty if the window shows nothing. For a file with a
        constant rate they are `sample_indices` of the frames in the window; otherwise those nearest to even moments
        over the time that the frames in the window are on display there.
    """
    inside = frames_in_window(pts_seconds, fps=fps, window=window, end_seconds=end_seconds)
    if is_steady(pts_seconds, end_seconds=end_seconds):
        return inside[sample_indices(policy, len(inside), fps)]
    if not len(inside):
        return inside
    until = _shown_until(pts_seconds, inside, window, end_seconds)
    return inside[_nearest_to_moments(policy, pts_seconds[inside], until)]


def shown_frames(
    policy: FramePolicy, pts_seconds: Seconds, *, fps: float, window: TimeWindow, end_seconds: float | None = None
) -> Indices:
    """Positions of the frames as they are shown, in order, repeated ones included; the rest is as for `sample_times`.

    If the policy has its own rule, a file with a constant rate is shown by that rule. For other files the rule is asked
    about a video of the same length at a constant rate, and the frames on display nearest to those moments are shown.
    """
    if policy.rule is None:
        chosen = sample_times(policy, pts_seconds, fps=fps, window=window, end_seconds=end_seconds)
        return pad(policy, chosen) if len(chosen) else chosen
    inside = frames_in_window(pts_seconds, fps=fps, window=window, end_seconds=end_seconds)
    if not len(inside):
        return inside
    if is_steady(pts_seconds, end_seconds=end_seconds):
        return inside[_as_ruled(policy.rule, Question(len(inside), fps, len(inside) / fps))]
    until = _shown_until(pts_seconds, inside, window, end_seconds)
    return inside[pad(policy, _nearest_to_ruled(policy, policy.rule, pts_seconds[inside], until))]


def _as_ruled(rule: FrameRule, question: Question) -> Indices:
    chosen = np.asarray(rule.choose(question), np.int64)
    return np.clip(chosen, 0, question.total_frames - 1)


def _nearest_to_ruled(policy: FramePolicy, rule: FrameRule, times: Seconds, until: float) -> Indices:
    if len(times) == 1:
        return np.zeros(1, np.int64)
    seconds = until - float(times[0])
    rate = max(RULE_FPS, len(times) / seconds)
    total = max(1, round(seconds * rate))
    ruled = np.unique(_as_ruled(rule, Question(total, rate, seconds)))
    chosen = np.unique(_nearest(times, times[0] + ruled / rate))
    least = min(len(ruled), len(times), policy.num_frames or policy.min_frames)
    if len(chosen) >= least:
        return chosen
    return _spread(_nearest(times, np.linspace(times[0], times[-1], least)), len(times))


def is_steady(pts_seconds: Seconds, *, end_seconds: float | None = None) -> bool:
    """Whether a file's frames come at a constant rate, and its last one stays no longer than the others."""
    if not is_constant_rate(pts_seconds):
        return False
    if end_seconds is None or len(pts_seconds) < 2:
        return True
    step = (pts_seconds[-1] - pts_seconds[0]) / (len(pts_seconds) - 1)
    return bool(end_seconds - pts_seconds[-1] <= LONGEST_STEADY * step)


def is_constant_rate(pts_seconds: Seconds) -> bool:
    """Whether ascending times lie on an even grid, except for the rounding of a container's clock."""
    if len(pts_seconds) < 3:
        return True
    even = np.linspace(pts_seconds[0], pts_seconds[-1], len(pts_seconds))
    return bool(np.abs(pts_seconds - even).max() <= JITTER * (even[1] - even[0]))


def frames_in_window(
    pts_seconds: Seconds, *, fps: float, window: TimeWindow, end_seconds: float | None = None
) -> Indices:
    """Positions of the frames that start in the window, both ends included, or else of the one on display in it."""
    start = -math.inf if window.start_seconds is None else window.start_seconds - INSTANT_SECONDS
    end = math.inf if window.end_seconds is None else window.end_seconds + INSTANT_SECONDS
    inside = np.flatnonzero((pts_seconds >= start) & (pts_seconds <= end))
    if len(inside) or not len(pts_seconds):
        return inside
    shown = int(np.searchsorted(pts_seconds, start, side="right")) - 1
    if shown < 0:
        return inside
    last_gone = end_seconds if end_seconds is not None else pts_seconds[-1] + 1 / fps
    gone = pts_seconds[shown + 1] if shown + 1 < len(pts_seconds) else last_gone
    return np.array([shown] if start < gone else [], np.int64)


def span_seconds(
    pts_seconds: Seconds, inside: Indices, *, fps: float, window: TimeWindow, end_seconds: float | None = None
) -> float:
    """How long the frames of a window, at least one, are on display there.

    Args:
        pts_seconds: times of all frames of the file.
        inside: positions of those in the window.
        fps: average frame rate of the file.
        window: the window.
        end_seconds: when the last frame ends.
    """
    if is_steady(pts_seconds, end_seconds=end_seconds):
        return len(inside) / fps
    until = _shown_until(pts_seconds, inside, window, end_seconds)
    return until - float(pts_seconds[inside[0]]) or 1 / fps


def _shown_until(pts_seconds: Seconds, inside: Indices, window: TimeWindow, end_seconds: float | None) -> float:
    """When the last of some frames leaves the display, or the window ends."""
    last = int(inside[-1])
    if last + 1 < len(pts_seconds):
        gone = float(pts_seconds[last + 1])
    elif end_seconds is not None:
        gone = end_seconds
    else:
        gone = float(pts_seconds[-1]) + (last_step(pts_seconds) if len(pts_seconds) > 1 else 0.0)
    if window.end_seconds is not None:
        gone = min(gone, window.end_seconds)
    return max(gone, float(pts_seconds[last]))


def _nearest_to_moments(policy: FramePolicy, times: Seconds, until: float) -> Indices:
    """Frames nearest to even moments, from the first frame to the end of the last one. Moments that share a frame show
    it once, unless that leaves fewer frames than the minimum: then neighbours make up the number."""
    if len(times) == 1:
        return np.zeros(1, np.int64)
    sampler = SAMPLERS[policy.sampler]
    last = max(float(times[-1]), until - float(np.median(np.diff(times))))
    count = _moments_wanted(policy, len(times), until - float(times[0]))
    if count == len(times) and policy.fps is None and policy.num_frames is None:
        return np.arange(count)
    chosen = np.unique(_nearest(times, sampler.moments(times[0], last, until, count)))
    least = min(count, len(times), policy.num_frames or policy.min_frames)
    if len(chosen) >= least:
        return chosen
    return _spread(_nearest(times, sampler.moments(times[0], last, until, least)), len(times))


def _moments_wanted(policy: FramePolicy, total: int, seconds: float) -> int:
    """How many moments to use: as many as for a video of this length with unlimited frames, unless every frame is
    requested."""
    frames = total if policy.fps is None and policy.num_frames is None else max(total, PLENTY)
    return SAMPLERS[policy.sampler].frames(policy, frames, frames / seconds * (1 - ROUNDING))


def _nearest(times: Seconds, moments: Seconds) -> Indices:
    after = np.clip(np.searchsorted(times, moments), 1, len(times) - 1)
    return after - (moments - times[after - 1] <= times[after] - moments)


def _spread(indices: Indices, total: int) -> Indices:
    """Move equal neighbours apart, upwards first, so that all indices below `total` differ."""
    steps = np.arange(len(indices))
    apart = np.maximum.accumulate(indices - steps) + steps
    spread: Indices = np.minimum(apart, total - len(indices) + steps)
    return spread


def pad(policy: FramePolicy, chosen: Indices) -> Indices:
    """Repeat the last of the chosen frames until their number is a multiple of the temporal patch, or of the policy's
    value for it.

    transformers' Qwen processors pad the same way, but refuse one frame.

    Args:
        policy: the model's frame policy.
        chosen: int64 `[T]`, T at least 1.
    """
    count = max(len(chosen), policy.least_frames)
    missing = count + -count % (policy.frame_multiple or policy.temporal_patch) - len(chosen)
    return np.concatenate([chosen, np.repeat(chosen[-1:], missing)]) if missing else chosen


def shown_size(policy: FramePolicy, shown: Indices, height: int, width: int) -> tuple[int, int]:
    """Height and width at which frames of `height` x `width` pixels are shown; `shown` as `shown_frames` returns them.
    A model's own rule counts what it repeats, other policies do not."""
    count = len(np.unique(shown)) if policy.rule is None else len(shown)
    return target_size(policy, count, height, width)


def lay_out(frames: NDArray[np.uint8], shown: Indices) -> None:
    """Move frames, of which the first hold those of `shown` once each, ascending, to the order of `shown`, in place."""
    chosen, order = np.unique(shown, return_inverse=True)
    if len(chosen) < len(shown) and (np.diff(order) >= 0).all():  # repeated in order: from the end, nothing is lost
        for place in range(len(shown) - 1, 0, -1):
            if order[place] != place:
                frames[place] = frames[order[place]]
    elif (order != np.arange(len(shown))).any():
        frames[:] = frames[order]


def distinct_frames(clip: Clip) -> int:
    """Frames of a clip, those repeated at its end not counted."""
    return len(np.unique(clip.pts_seconds))


def fewer_frames(policy: FramePolicy, clip: Clip, count: int) -> Clip:
    """A clip with `count` of its distinct frames, evenly spread, including the first and the last if there are two, and
    padded by the policy."""
    _, distinct = np.unique(clip.pts_seconds, return_index=True)
    count = min(count, len(distinct))
    chosen = pad(policy, distinct[np.linspace(0, len(distinct) - 1, count).round().astype(np.int64)])
    return replace(clip, frames=clip.frames[chosen], pts_seconds=clip.pts_seconds[chosen])


def frame_metadata(clip: Clip) -> dict[str, Any]:
    """The `video_metadata` argument of transformers' and vLLM's processors, with the clip's own times.

    Both compute a frame's time as `frames_indices / fps`. If the times are frame numbers over the source's rate, those
    are used, so that times and their rounding to text equal what the processor makes of the file itself; otherwise
    milliseconds at 1000 frames per second. `total_num_frames` covers the part the frames were chosen from: Qwen2.5-VL's
    processor takes the seconds between frames from it (`VideoMetadata.sampled_fps`).
    """
    times = np.maximum(clip.pts_seconds, 0)
    fps = clip.source_fps
    if np.abs(times - np.round(times * fps) / fps).max() > GRID_SECONDS:
        fps = 1000.0
    span = clip.duration_seconds if clip.window_seconds is None else clip.window_seconds
    return {
        "fps": fps,
        "frames_indices": np.round(times * fps).astype(np.int64).tolist(),
        "total_num_frames": max(1, round(span * fps)),
        "duration": clip.duration_seconds,
        "height": clip.source_height,
        "width": clip.source_width,
    }
