"""Frames as the model's own processor chooses them: which, how many and how large, and what the user changes of it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import clips
from reelscribe.errors import SettingsError
from reelscribe.models.chat import OTHER_POLICY, most_video_tokens, policy_from_processor
from reelscribe.types import CaptionRequest, Clip, RequestId, TimeWindow
from reelscribe.video.frames.library_rules import ParentsRule, Question
from reelscribe.video.frames.moments import FramePolicy, FrameSettings, frame_metadata, shown_frames, target_size
from reelscribe.video.processes.clip_stream import ClipStream, WorkerPool
from reelscribe.video.reader import read_clip

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

WHOLE = TimeWindow()
SMOL = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "glm4v": lambda: hf.Glm4vVideoProcessor(),
    "glm46v": lambda: hf.Glm46VVideoProcessor(),
    "glm5_next": lambda: hf.Glm5NextVideoProcessor(),
    "glmga": lambda: hf.GlmgaVideoProcessor(),
    "gemma4": lambda: hf.Gemma4VideoProcessor(),
    "gemma4_unified": lambda: hf.Gemma4UnifiedVideoProcessor(),
    "smolvlm": lambda: hf.SmolVLMVideoProcessor(video_sampling=SMOL),
    "muse_glimmer": lambda: hf.MuseGlimmerVideoProcessor(),
    "kimi_k25": lambda: hf.Kimi_K25VideoProcessor(),
    "minicpmv4_6": lambda: hf.MiniCPMV4_6VideoProcessor(),
    "ernie4_5_vl_moe": lambda: hf.Ernie4_5_VLMoeVideoProcessor(fps=2),
    "cosmos3_edge": lambda: hf.Cosmos3EdgeVideoProcessor(),
    "cohere_compass": lambda: hf.CohereCompassVideoProcessor(cap_pixels_per_frame=False),
    "video_llama_3 that samples": lambda: hf.VideoLlama3VideoProcessor(do_sample_frames=True, fps=1),
    "internvl that samples": lambda: hf.InternVLVideoProcessor(
        do_sample_frames=True, num_frames=8, size={"height": 56, "width": 56}
    ),
}
"""Processors that choose how many frames they take."""
NUMBERED: dict[str, Callable[[], Any]] = {
    "internvl": lambda: hf.InternVLVideoProcessor(size={"height": 448, "width": 448}),
    "llava_onevision": lambda: hf.LlavaOnevisionVideoProcessor(),
    "llava_next_video": lambda: hf.LlavaNextVideoVideoProcessor(),
    "video_llava": lambda: hf.VideoLlavaVideoProcessor(),
    "video_llama_3": lambda: hf.VideoLlama3VideoProcessor(),
    "perception_lm": lambda: hf.PerceptionLMVideoProcessor(size={"height": 448, "width": 448}),
}
"""Processors that take every frame unless they are asked for a number."""
LENGTHS = {"one frame": 1, "3 s": 72, "12 s": 288, "24 s": 576, "5 min": 7200}
"""Frames at 24 a second."""


def policy_of(video: Any) -> FramePolicy:
    return policy_from_processor(SimpleNamespace(video_processor=video))


@cache
def policy_for(name: str) -> FramePolicy:
    """The policy of a processor of the tables."""
    return policy_of({**PROCESSORS, **NUMBERED}[name]())


def shown(policy: FramePolicy, total: int, fps: float = 24.0) -> list[int]:
    """Positions of the frames of a file with a constant rate."""
    return shown_frames(policy, np.arange(total) / fps, fps=fps, window=WHOLE, end_seconds=total / fps).tolist()


def theirs(video: Any, total: int, fps: float = 24.0, **asked: Any) -> list[int] | None:
    """The frames that the processor's own reader takes; None where it fails."""
    taken: list[int] = []

    def note(*, videos: Any, **_: Any) -> Any:
        taken.extend(int(place) for place in videos[0][:, 0, 0, 0])
        raise NotImplementedError

    # Each frame holds its number; what follows the sampling is not looked at.
    frames = torch.arange(total)[:, None, None, None].expand(total, 3, 4, 5)
    metadata = {"total_num_frames": total, "fps": fps, "duration": total / fps}
    video._prepare_input_videos = note
    try:
        video([frames], video_metadata=[metadata], do_sample_frames=True, **asked)
    except NotImplementedError:
        return taken
    except (ValueError, IndexError, TypeError):
        return None
    raise AssertionError("the processor did not sample")


# ---- which frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_that_samples_is_asked(name: str, length: str) -> None:
    own = theirs(PROCESSORS[name](), LENGTHS[length])
    ours = shown(policy_for(name), LENGTHS[length])
    if not own:  # it fails on videos this short; a frame must be shown all the same
        assert length in ("one frame", "3 s")
        assert set(ours) <= set(range(LENGTHS[length]))
        assert ours
        return
    if len(own) == 1 and len(ours) == 2:  # it fails behind the sampling
        own *= 2
    assert ours == own


@pytest.mark.parametrize("fps", [8, 24000 / 1001, 30000 / 1001, 50])
@pytest.mark.parametrize("name", PROCESSORS)
def test_at_other_rates_too(name: str, fps: float) -> None:
    for total in (61, 250, 999):
        own = theirs(PROCESSORS[name](), total, fps)
        assert own is None or shown(policy_for(name), total, fps) == own, total


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NUMBERED)
def test_a_processor_that_does_not_sample_says_which_frames_make_up_the_number(name: str, length: str) -> None:
    total = LENGTHS[length]
    ours = shown(policy_for(name), total)
    assert len(ours) == max(1, min(32, total // 12))
    assert ours == theirs(NUMBERED[name](), total, num_frames=len(ours))


def test_a_number_in_the_config_of_a_processor_that_does_not_sample_counts() -> None:
    policy = policy_of(hf.VideoLlavaVideoProcessor(num_frames=8))
    assert shown(policy, 282) == theirs(hf.VideoLlavaVideoProcessor(num_frames=8), 282, num_frames=8)
    assert len(shown(policy, 5)) == 5


def test_families_without_a_temporal_patch_get_no_doubled_frame() -> None:
    for name in ("internvl", "llava_onevision", "video_llama_3"):
        ours = shown(policy_for(name), 282)
        assert len(ours) == len(set(ours)) == 23, name
        policy = policy_for(name).override(FrameSettings(num_frames=5))
        assert len(shown(policy, 282)) == 5, name


# ---- what the user changes --------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, Any], int, int]] = {
    "at most 8": ({"max_frames": 8}, 4, 8),
    "at least 80": ({"min_frames": 80}, 80, 180),
    "one a second": ({"fps": 1.0}, 10, 16),
    "four a second": ({"fps": 4.0}, 46, 48),
    "ten a second, more than the family's most": ({"fps": 10.0, "max_frames": 1000}, 116, 118),
    "five": ({"num_frames": 5}, 5, 6),
    "one": ({"num_frames": 1}, 1, 2),
    "a hundred": ({"num_frames": 100}, 100, 100),
    "no more than there are": ({"num_frames": 1000}, 282, 282),
}
"""What is set, and the fewest and the most frames of a video of 11.75 s that it means, repeated ones included."""


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", [*PROCESSORS, *NUMBERED])
def test_limits_rates_and_numbers_hold_for_every_family(name: str, setting: str) -> None:
    settings, low, high = SETTINGS[setting]
    if name in NUMBERED and setting == "four a second":
        low = high = 32  # the moderate rule's most, which is raised with max_frames
    ours = shown(policy_for(name).override(FrameSettings(**settings)), 282)
    assert low <= len(ours) <= high
    assert (np.diff(ours) >= 0).all()
    if "num_frames" in settings:
        assert len(set(ours)) == min(282, settings["num_frames"])
    gaps = np.diff(sorted(set(ours)))
    assert len(gaps) < 2 or gaps.max() <= 2 * max(1, np.median(gaps)) + 2


def test_a_size_that_a_processor_decides_alone_is_refused_by_name() -> None:
    for name in ("internvl", "llava_onevision", "video_llava", "gemma4", "smolvlm"):
        policy = policy_for(name)
        for setting in ("max_pixels", "min_pixels"):
            with pytest.raises(SettingsError, match=f"{setting} .*has no effect on this model"):
                policy.override(FrameSettings(**{setting: 10_000}))
    with pytest.raises(SettingsError, match="448 x 448"):
        policy_for("internvl").override(FrameSettings(max_pixels=10_000))


@pytest.mark.parametrize("name", ["glm4v", "glm46v", "glm5_next", "kimi_k25", "muse_glimmer", "cosmos3_edge"])
def test_elsewhere_a_largest_size_holds(name: str) -> None:
    policy = policy_for(name).override(FrameSettings(max_pixels=50_000))
    for frames in (2, 24, 600):
        height, width = target_size(policy, frames, 1080, 1920)
        assert height * width <= 50_000


# ---- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glm4v", "glm46v", "glmga", "cosmos3_edge", "cohere_compass"])
def test_frames_come_at_the_size_that_the_processor_makes(name: str) -> None:
    video = PROCESSORS[name]()
    policy = policy_of(video)
    patch = video.patch_size
    for frames, height, width in [(2, 720, 1280), (24, 1080, 1920), (48, 360, 640), (600, 480, 640), (8, 1600, 900)]:
        size = target_size(policy, frames, height, width)
        count = -(-frames // policy.temporal_patch) * (size[0] // patch) * (size[1] // patch)
        assert video.get_num_of_video_patches(frames, height, width) == count
        assert video.get_num_of_video_patches(frames, *size) == count


def test_five_minutes_of_1080p_stay_small_where_the_processor_makes_them_small() -> None:
    height, width = target_size(policy_for("glm4v"), 600, 1080, 1920)
    assert 600 * height * width <= 28 * 28 * 2 * 30_000


def test_a_frame_is_shrunk_only_where_the_processor_makes_the_same_of_it() -> None:
    assert target_size(policy_for("internvl"), 23, 1080, 1920) == (448, 448)
    assert target_size(policy_for("internvl"), 23, 240, 320) == (240, 320)
    assert target_size(policy_for("internvl"), 23, 1080, 400) == (1080, 400)
    for name in ("kimi_k25", "glm5_next", "ernie4_5_vl_moe"):  # larger budgets, or times that are drawn into the frames
        assert target_size(policy_for(name), 24, 1080, 1920) == (1080, 1920)
    height, width = target_size(policy_for("kimi_k25"), 600, 2160, 3840)
    assert height * width <= 1024 * 1024


def test_what_engines_reserve_for_a_clip_goes_by_the_rule() -> None:
    assert most_video_tokens(policy_for("gemma4"), exact=False) == 32 * 1024
    eight = policy_for("gemma4").override(FrameSettings(max_frames=8))
    assert most_video_tokens(eight, exact=False) == 8 * 1024
    assert most_video_tokens(policy_for("glm4v"), exact=False) < 60_000


# ---- files ------------------------------------------------------------------------------------------------------


def test_uneven_times_are_sampled_by_time(tmp_path: Path) -> None:
    """A second of 25 frames, then one picture for eleven seconds, then another second."""
    pts = [*range(0, 1000, 40), *range(12_000, 13_000, 40)]
    path = clips.render_video(tmp_path / "vfr.mp4", count=len(pts), pts=pts, time_base=Fraction(1, 1000))
    clip = read_clip(path, policy_for("glm4v"))
    assert isinstance(clip, Clip)
    times = np.unique(clip.pts_seconds)
    assert len(clip.pts_seconds) % 2 == 0
    assert (np.diff(times[times < 1]) > 0.3).all()
    assert times[-1] == pytest.approx(12.5, abs=0.6)


def test_a_window_is_asked_about_by_itself(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "long.mp4", count=240, fps=24)
    video = PROCESSORS["smolvlm"]()
    clip = read_clip(path, policy_of(video), window=TimeWindow(2, 6))
    assert isinstance(clip, Clip)
    own = theirs(PROCESSORS["smolvlm"](), 97)
    assert own is not None
    assert clips.numbers_of(clip.frames) == [48 + place for place in own]
    assert frame_metadata(clip)["frames_indices"] == [48 + place for place in own]


def test_a_rule_goes_to_other_machines() -> None:
    policy = policy_for("glm46v").override(FrameSettings(max_frames=10))
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy
    assert shown(again, 500) == shown(policy, 500)


def test_a_processor_that_cannot_be_sent_is_asked_here() -> None:
    video = PROCESSORS["smolvlm"]()
    video.helper = lambda: None
    policy = policy_of(video)
    assert shown(policy, 282) == shown(policy_for("smolvlm"), 282)
    code = (
        "import pickle, sys; from reelscribe.video.frames.library_rules import Question; "
        "pickle.load(sys.stdin.buffer).rule.choose(Question(9, 1.0, 9.0))"
    )
    sent = pickle.dumps(policy)
    elsewhere = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=False)
    assert b"ModelError: the model's video processor" in elsewhere.stderr


def test_processes_that_read_ask_for_the_frames(tmp_path: Path) -> None:
    """Short clips are sent two at a time, so that the next request is there before the answer."""
    names = [clips.render_video(tmp_path / f"{n}.mp4", count=20 + n, fps=8) for n in range(12)]
    policy = policy_for("minicpmv4_6")
    requests = [CaptionRequest(RequestId(row, 0), str(path), "Go.") for row, path in enumerate(names)]
    pool = WorkerPool(2)
    try:
        for _ in range(2):
            read = {request.id.row: clip for request, clip in ClipStream(pool, requests, policy)}
            for row, path in enumerate(names):
                ours, alone = read[row], read_clip(path, policy)
                assert isinstance(ours, Clip)
                assert isinstance(alone, Clip)
                assert clips.numbers_of(ours.frames) == clips.numbers_of(alone.frames) == shown(policy, 20 + row, 8)
    finally:
        pool.close()


def test_nobody_to_ask_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="no way to call it was set up"):
        ParentsRule().choose(Question(10, 5.0, 2.0))


def test_repeated_frames_and_other_orders_are_shown_as_the_rule_says(tmp_path: Path) -> None:
    """MiniCPM's processor puts the frames between the seconds behind all others."""
    video = hf.MiniCPMV4_6VideoProcessor(stack_frames=3)
    path = clips.render_video(tmp_path / "x.mp4", count=72, fps=24)
    clip = read_clip(path, policy_of(video))
    assert isinstance(clip, Clip)
    assert clips.numbers_of(clip.frames) == theirs(hf.MiniCPMV4_6VideoProcessor(stack_frames=3), 72)
    assert (np.diff(clip.pts_seconds) < 0).any()


def test_a_model_whose_processor_is_not_known_keeps_the_moderate_rule() -> None:
    assert len(shown(OTHER_POLICY, 282)) == 24
