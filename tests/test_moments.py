"""Which moments and which size: formulas, overrides, windows and the metadata a processor is given."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.errors import SettingsError
from reelscribe.types import Clip, TimeWindow
from reelscribe.video.frames.moments import (
    SAMPLERS,
    SIZERS,
    FramePolicy,
    FrameSettings,
    frame_metadata,
    is_constant_rate,
    pad,
    sample_indices,
    sample_times,
    target_size,
)

WHOLE = TimeWindow()
RATES = [1, 5, 8, 23.976, 25, 29.97, 30, 50, 60, 120]

policies = st.builds(
    lambda sampler, fps, num, low, extra: FramePolicy(
        sampler=sampler,
        fps=None if num else fps,
        num_frames=num,
        min_frames=low,
        max_frames=low + extra,
    ),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    fps=st.none() | st.floats(0.05, 60),
    num=st.none() | st.integers(1, 50),
    low=st.integers(1, 12),
    extra=st.integers(0, 100),
)
times = st.lists(st.integers(0, 200_000), min_size=1, max_size=80, unique=True).map(
    lambda milliseconds: np.array(sorted(milliseconds)) / 1000
)
moments = st.none() | st.integers(-5000, 210_000).map(lambda ms: ms / 1000)


# ---- moments ----------------------------------------------------------------------------------------------------


@given(policy=policies, total=st.integers(1, 3000), fps=st.sampled_from(RATES))
def test_indices_ascend_differ_and_stay_inside(policy: FramePolicy, total: int, fps: float) -> None:
    indices = sample_indices(policy, total, fps)
    assert len(indices) >= 1
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    assert len(indices) == _expected_count(policy, total, fps)


def _expected_count(policy: FramePolicy, total: int, fps: float) -> int:
    """The number of frames in words: what was asked for, within the limits and the frames there are."""
    patch = policy.temporal_patch
    if policy.num_frames is not None:
        wanted = policy.num_frames if policy.sampler == "linspace" else round(policy.num_frames / patch) * patch
        most = total
    else:
        wanted = math.floor(total if policy.fps is None else total / fps * policy.fps)
        wanted, most = max(wanted, policy.min_frames), min(total, policy.max_frames)
    count = min(wanted, most)
    return max(1, count if policy.sampler == "linspace" else count // patch * patch)


@given(policy=policies, pts=times, start=moments, end=moments)
def test_chosen_times_ascend_differ_and_lie_in_the_window(
    policy: FramePolicy, pts: Any, start: float | None, end: float | None
) -> None:
    if start is not None and end is not None and end < start:
        start, end = end, start
    chosen = sample_times(policy, pts, fps=10, window=TimeWindow(start, end))
    low, high = -math.inf if start is None else start, math.inf if end is None else end
    inside = np.flatnonzero((pts >= low) & (pts <= high))
    assert (np.diff(chosen) > 0).all()
    if len(inside):
        assert set(chosen) <= set(inside)
        least = policy.num_frames or policy.min_frames
        most = policy.num_frames or policy.max_frames
        slack = policy.temporal_patch if policy.sampler == "stride" else 0
        assert max(1, min(least, len(inside)) - slack) <= len(chosen) <= max(1, most + slack)
    else:
        assert len(chosen) <= 1
        assert all(pts[i] <= low for i in chosen)


@given(policy=policies, total=st.integers(1, 400), fps=st.sampled_from(RATES), start=st.floats(0, 1000))
def test_a_constant_rate_file_is_sampled_by_index(policy: FramePolicy, total: int, fps: float, start: float) -> None:
    exact = start + np.arange(total) / fps
    rounded = np.round(exact, 3)
    for pts in (exact, rounded):
        chosen = sample_times(policy, pts, fps=fps, window=WHOLE)
        assert chosen.tolist() == sample_indices(policy, total, fps).tolist()


def test_a_window_of_a_constant_rate_file_is_sampled_as_a_file_of_its_own() -> None:
    policy = FramePolicy(fps=2.0)
    pts = np.arange(300) / 30
    chosen = sample_times(policy, pts, fps=30, window=TimeWindow(2, 5))
    assert chosen.tolist() == (60 + sample_indices(policy, 91, 30)).tolist()
    assert pts[chosen[[0, -1]]].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("window", "chosen"),
    [
        ((0.11, 0.19), [1]),
        ((0.2, 0.2), [2]),
        ((0.9, None), [9]),
        ((0.95, None), [9]),
        ((0.999, 5), [9]),
        ((1.01, None), []),
        ((None, -0.1), []),
        ((None, 0), [0]),
    ],
)
def test_windows_that_hold_one_frame_or_none(window: tuple[float | None, float | None], chosen: list[int]) -> None:
    pts = np.arange(10) / 10
    assert sample_times(FramePolicy(), pts, fps=10, window=TimeWindow(*window)).tolist() == chosen


def test_uneven_times_are_sampled_by_moment_and_not_by_count() -> None:
    pts = np.concatenate([np.arange(100) / 100, [10, 20, 30.0]])
    assert not is_constant_rate(pts)
    assert sample_times(FramePolicy(num_frames=4), pts, fps=3.4, window=WHOLE).tolist() == [0, 100, 101, 102]
    assert sample_times(FramePolicy(fps=2.0), pts, fps=3.4, window=WHOLE).tolist()[-3:] == [100, 101, 102]


def test_moments_that_share_a_frame_still_give_the_least_number() -> None:
    pts = np.concatenate([np.arange(50) / 100, [60.0]])
    assert sample_times(FramePolicy(fps=0.1, min_frames=4), pts, fps=1, window=WHOLE).tolist() == [0, 48, 49, 50]
    eight = sample_times(FramePolicy(num_frames=8), pts, fps=1, window=WHOLE)
    assert len(eight) == 8
    assert eight[-1] == 50


@pytest.mark.parametrize("policy", [FramePolicy(), FramePolicy(sampler="stride")])
def test_few_frames_are_all_shown(policy: FramePolicy) -> None:
    assert sample_indices(policy, 0, 25).tolist() == []
    assert sample_indices(policy, 1, 25).tolist() == [0]
    assert sample_indices(policy, 2, 25).tolist() == [0, 1]


# ---- sizes ------------------------------------------------------------------------------------------------------


@given(
    sizer=st.sampled_from(["video_budget", "frame_budget"]),
    frames=st.integers(1, 100),
    height=st.integers(8, 2200),
    width=st.integers(8, 2200),
    budget=st.integers(10, 30_000),
    cap=st.none() | st.integers(16, 128_000),
    limit=st.none() | st.integers(4, 4000),
)
def test_sizes_are_multiples_within_the_budget(
    sizer: str, frames: int, height: int, width: int, budget: int, cap: int | None, limit: int | None
) -> None:
    policy = FramePolicy(
        sizer=sizer,
        min_pixels=4 * 32 * 32,
        max_pixels=(budget + 4) * 32 * 32,
        frame_cap_tokens=cap,
        max_frame_pixels=limit and limit * 32 * 32,
    )
    size = target_size(policy, frames, height, width)
    assert size[0] % 32 == size[1] % 32 == 0
    assert min(size) >= 32
    if min(size) == 32:
        return
    # The rule rounds the number of frames to even ones to see whether they fit, and shrinks by the true number.
    area, counted = size[0] * size[1], min(max(frames, 2), round(max(frames, 2) / 2) * 2)
    least = 1.05 * policy.min_pixels
    if sizer == "video_budget":
        assert area * counted <= max(policy.max_pixels, least * (counted + 1))
    else:
        assert area <= max(limit * 32 * 32 if limit else policy.max_pixels, least)
    if limit:
        assert area <= limit * 32 * 32


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), limit=st.integers(1, 4_000_000))
def test_fit_keeps_the_shape_and_the_limit(height: int, width: int, limit: int) -> None:
    size = target_size(FramePolicy(sizer="fit", max_pixels=limit), 8, height, width)
    assert size[0] <= height
    assert size[1] <= width
    assert size == (height, width) or size[0] * size[1] <= max(limit, *size)


def test_users_limits_hold_for_each_frame() -> None:
    policy = FramePolicy(min_pixels=4096, max_pixels=25_165_824)
    free = target_size(policy, 8, 1080, 1920)
    assert free == (1088, 1920)
    limited = target_size(policy.override(FrameSettings(max_pixels=200_000)), 8, 1080, 1920)
    assert limited == (320, 576)
    lifted = target_size(policy.override(FrameSettings(min_pixels=100_000)), 8, 90, 160)
    assert lifted[0] * lifted[1] >= 100_000
    crowded = target_size(policy.override(FrameSettings(min_pixels=1_000_000)), 768, 1080, 1920)
    assert crowded[0] * crowded[1] * 768 <= policy.max_pixels


def test_frame_budgets_take_the_users_limits_for_the_models() -> None:
    policy = FramePolicy(sizer="frame_budget", multiple=28, min_pixels=100_352, max_pixels=602_112)
    assert target_size(policy, 8, 1080, 1920) == (560, 1008)
    more = policy.override(FrameSettings(max_pixels=1_500_000))
    assert target_size(more, 8, 1080, 1920) == (896, 1624)
    less = policy.override(FrameSettings(max_pixels=50_000))
    assert math.prod(target_size(less, 8, 1080, 1920)) <= 50_000


def test_extreme_shapes_get_a_size() -> None:
    for sizer in SIZERS:
        height, width = target_size(FramePolicy(sizer=sizer), 1, 2, 5000)
        assert height >= 1
        assert width >= height


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 0},
        {"fps": -1.0},
        {"fps": math.inf},
        {"fps": math.nan},
        {"fps": "2"},
        {"fps": True},
        {"num_frames": 0},
        {"num_frames": 2.5},
        {"max_frames": 0},
        {"min_pixels": -1},
        {"fps": 2.0, "num_frames": 8},
        {"min_frames": 9, "max_frames": 8},
        {"min_pixels": 9, "max_pixels": 8},
        {"num_frames": 9, "max_frames": 8},
    ],
)
def test_settings_that_cannot_work_say_so(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        FrameSettings(**settings)
    assert all(name in str(caught.value) for name in settings)
    assert str(next(iter(settings.values()))) in str(caught.value)


def test_rate_and_number_replace_one_another() -> None:
    policy = FramePolicy(fps=2.0)
    numbered = policy.override(FrameSettings(num_frames=8))
    assert (numbered.fps, numbered.num_frames) == (None, 8)
    again = numbered.override(FrameSettings(fps=4.0))
    assert (again.fps, again.num_frames) == (4.0, None)
    assert policy.override(FrameSettings()) == policy


def test_a_users_limit_moves_the_models_opposite_one() -> None:
    policy = FramePolicy(min_frames=4, max_frames=768)
    assert policy.override(FrameSettings(max_frames=2)).min_frames == 2
    assert policy.override(FrameSettings(min_frames=1000)).max_frames == 1000
    assert policy.override(FrameSettings(min_frames=6, max_frames=9)) == FramePolicy(min_frames=6, max_frames=9)


def test_policies_and_settings_travel() -> None:
    for value in (FramePolicy(num_frames=3), FrameSettings(fps=2)):
        assert pickle.loads(pickle.dumps(value)) == value


# ---- padding and metadata ---------------------------------------------------------------------------------------


def test_padding_repeats_the_last_frame_up_to_the_temporal_patch() -> None:
    assert pad(FramePolicy(), np.array([0, 5, 9])).tolist() == [0, 5, 9, 9]
    assert pad(FramePolicy(), np.array([0, 5])).tolist() == [0, 5]
    assert pad(FramePolicy(), np.array([7])).tolist() == [7, 7]


def clip_at(pts: Any, *, fps: float, duration: float, window: float | None = None) -> Clip:
    frames = np.zeros((len(pts), 32, 32, 3), np.uint8)
    return Clip(frames, np.array(pts, float), duration, fps, 32, 32, window)


def test_metadata_of_even_times_are_frame_numbers() -> None:
    fps = float(Fraction(30000, 1001))
    metadata = frame_metadata(clip_at(np.array([0, 14, 28]) / fps, fps=fps, duration=30 / fps))
    assert metadata["fps"] == fps
    assert metadata["frames_indices"] == [0, 14, 28]
    assert metadata["total_num_frames"] == 30
    assert metadata["duration"] == pytest.approx(30 / fps)


def test_metadata_of_uneven_times_are_milliseconds() -> None:
    metadata = frame_metadata(clip_at([0.0, 0.517, 1.203], fps=10, duration=1.4))
    assert metadata["fps"] == 1000.0
    assert metadata["frames_indices"] == [0, 517, 1203]
    assert metadata["total_num_frames"] == 1400


@given(pts=st.lists(st.floats(0, 1e5), min_size=1, max_size=20), fps=st.floats(0.5, 240))
def test_metadata_give_the_true_times(pts: list[float], fps: float) -> None:
    metadata = frame_metadata(clip_at(sorted(pts), fps=fps, duration=1e5))
    told = np.array(metadata["frames_indices"]) / metadata["fps"]
    assert np.abs(told - np.array(sorted(pts))).max() <= 0.7e-3


def test_metadata_of_a_window_cover_the_window() -> None:
    """Qwen2.5-VL's processor takes the seconds between frames from frames / total / rate."""
    metadata = frame_metadata(clip_at([2.0, 2.5, 3.0, 3.5], fps=10, duration=60, window=2.0))
    seconds_a_frame = metadata["total_num_frames"] / metadata["fps"] / len(metadata["frames_indices"])
    assert seconds_a_frame == pytest.approx(0.5)


def test_times_before_zero_are_shown_as_zero() -> None:
    assert frame_metadata(clip_at([-0.04, 0.5], fps=10, duration=1))["frames_indices"] == [0, 5]
