"""A file read here must look to the model as it does when the installed transformers processor reads it itself:
the same frames, the same grid, the same text around them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clips
import reelscribe
from reelscribe.types import Clip, TimeWindow
from reelscribe.video.frames.moments import FramePolicy, FrameSettings, frame_metadata, sample_indices, target_size
from reelscribe.video.reader import read_clip

transformers = pytest.importorskip("transformers")

from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor  # noqa: E402
from transformers.video_processing_utils import BaseVideoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata, load_video  # noqa: E402

CHECKPOINT = Path(reelscribe.__file__).parent / "models" / "bundled" / "shapes"
PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"
NTSC = [Fraction(24000, 1001), Fraction(30000, 1001)]
RATES = [*NTSC, Fraction(25), Fraction(8), Fraction(30), Fraction(60), Fraction(1)]

QWEN3_SIZES = {
    "Qwen3-VL-8B": {"shortest_edge": 4096, "longest_edge": 25_165_824},
    "defaults": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
}
QWEN25_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
SMALL_FRAMES = {"shortest_edge": 4 * 28 * 28, "longest_edge": 28 * 28 * 96}


def qwen3(size: str = "Qwen3-VL-8B", *, cap: bool = False, **settings: Any) -> tuple[Any, FramePolicy]:
    """A video processor and the policy that mirrors it."""
    processor = Qwen3VLVideoProcessor(size=QWEN3_SIZES[size], cap_pixels_per_frame=cap, **settings)
    policy = FramePolicy(
        sampler="linspace",
        sizer="video_budget",
        fps=processor.fps,
        min_frames=processor.min_frames,
        max_frames=processor.max_frames,
        multiple=processor.patch_size * processor.merge_size,
        temporal_patch=processor.temporal_patch_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
        frame_cap_tokens=processor.max_video_tokens if cap else None,
    )
    return processor, policy


def qwen25(size: dict[str, int] = QWEN25_SIZE, *, cap: bool = False, **settings: Any) -> tuple[Any, FramePolicy]:
    """The same for Qwen2.5-VL."""
    processor = Qwen2VLVideoProcessor(
        size=size, cap_pixels_per_frame=cap, do_sample_frames=True, **({"fps": 2} | settings)
    )
    policy = FramePolicy(
        sampler="stride",
        sizer="frame_budget",
        fps=processor.fps,
        min_frames=processor.min_frames,
        max_frames=processor.max_frames,
        multiple=processor.patch_size * processor.merge_size,
        temporal_patch=processor.temporal_patch_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
        frame_cap_tokens=processor.max_video_tokens if cap else None,
    )
    return processor, policy


FAMILIES: dict[str, Callable[..., tuple[Any, FramePolicy]]] = {"qwen3": qwen3, "qwen25": qwen25}


# ---- formulas ---------------------------------------------------------------------------------------------------


def theirs(processor: Any, total: int, fps: float, **settings: Any) -> list[int]:
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    return [int(i) for i in processor.sample_frames(metadata=metadata, **settings)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"min_frames": 2, "max_frames": 8, "fps": 4}, {"fps": 0.3}], ids=str)
def test_the_same_indices_at_every_length(family: str, rate: Fraction, settings: dict[str, Any]) -> None:
    processor, policy = FAMILIES[family](**settings)
    for total in [*range(2, 400), 719, 1001, 4321, 30_000]:
        wanted = theirs(processor, total, float(rate))
        wanted = [i for i in wanted if i < total]  # Qwen2.5-VL's rounding at times names a frame behind the last
        assert sample_indices(policy, total, float(rate)).tolist() == wanted, total


@pytest.mark.parametrize("family", FAMILIES)
def test_very_long_videos_differ_by_one_frame_at_most(family: str) -> None:
    """Qwen2.5-VL's processor computes in float32, whose rounding there depends on the processor's vector width."""
    processor, policy = FAMILIES[family]()
    for total in (100_003, 999_999):
        ours, wanted = sample_indices(policy, total, 25.0), theirs(processor, total, 25.0)
        assert len(ours) == len(wanted)
        assert np.abs(ours - wanted).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_indices_for_a_fixed_number(family: str) -> None:
    processor, policy = FAMILIES[family]()
    for count in (2, 4, 7, 8, 16, 33):
        fixed = policy.override(FrameSettings(num_frames=count))
        processor.fps = None if family == "qwen25" else processor.fps
        for total in (40, 41, 100, 317):
            wanted = [i for i in theirs(processor, total, 25.0, num_frames=count) if i < total]
            assert sample_indices(fixed, total, 25.0).tolist() == wanted


def their_size(
    processor: Any, frames: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """The size the processor's own `resize` asks for, without resizing anything."""
    import torch

    asked: list[Any] = []
    monkeypatch.setattr(BaseVideoProcessor, "resize", lambda self, image, size, **kw: asked.append(size) or image)
    processor.resize(
        videos=torch.empty((1, frames, 3, height, width), device="meta"),
        size=processor.size,
        resample=processor.resample,
        factor=processor.patch_size * processor.merge_size,
        temporal_factor=processor.temporal_patch_size,
        cap_pixels_per_frame=processor.cap_pixels_per_frame,
    )
    return asked[0].height, asked[0].width


@pytest.mark.parametrize("make", [qwen3, partial(qwen3, "defaults"), qwen25], ids=["qwen3-8b", "qwen3", "qwen2.5"])
@pytest.mark.parametrize("cap", [False, True], ids=["free", "capped"])
def test_the_same_sizes(make: Callable[..., Any], cap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, policy = make(cap=cap)
    rng = np.random.default_rng(0)
    shapes = [(1080, 1920), (720, 1280), (360, 640), (2160, 3840), (90, 160), (33, 4000), (48, 48), (640, 362)]
    shapes += [(int(a), int(b)) for a, b in rng.integers(30, 2200, (60, 2))]
    for height, width in shapes:
        for frames in (2, 3, 4, 5, 7, 8, 24, 99, 240, 768):
            wanted = their_size(processor, frames, height, width, monkeypatch)
            assert target_size(policy, frames, height, width) == wanted, (frames, height, width)


def test_qwen3_grows_sides_below_one_patch_as_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, policy = qwen3()
    for height, width in [(8, 8), (16, 300), (31, 33), (20, 64)]:
        assert target_size(policy, 4, height, width) == their_size(processor, 4, height, width, monkeypatch)


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(CHECKPOINT)


def whole_processor(family: str, video_processor: Any, tokenizer: Any) -> Any:
    name = {"qwen3": "Qwen3VLProcessor", "qwen25": "Qwen2_5_VLProcessor"}[family]
    images = transformers.AutoImageProcessor.from_pretrained(CHECKPOINT)
    return getattr(transformers, name)(image_processor=images, tokenizer=tokenizer, video_processor=video_processor)


def what_they_see(processor: Any, path: Path) -> tuple[Any, Any]:
    """The processor's own way with a file: its reader, its sampling, its resize."""
    frames, metadata = load_video(str(path), backend="pyav", sample_indices_fn=processor.video_processor.sample_frames)
    # Qwen2.5-VL's rounding at times names a frame behind the last, which its reader then does not find
    metadata.frames_indices = [int(i) for i in metadata.frames_indices if i < metadata.total_num_frames]
    indices = list(metadata.frames_indices)
    inputs = processor(
        text=[PLACEHOLDER],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        input_data_format="channels_last",
        return_tensors="pt",
    )
    return inputs, indices


def what_we_show(processor: Any, clip: Clip) -> Any:
    return processor(
        text=[PLACEHOLDER],
        videos=[clip.frames],
        video_metadata=[frame_metadata(clip)],
        do_sample_frames=False,
        do_resize=False,
        input_data_format="channels_last",
        return_tensors="pt",
    )


FILES: list[tuple[str, int, Fraction, tuple[int, int]]] = [
    *[(f"{total}.mp4", total, rate, (64, 96)) for rate in RATES for total in (7, 20, 61)],
    *[("150.mp4", 150, rate, (64, 96)) for rate in RATES[:3]],
    ("250.mp4", 250, Fraction(60), (64, 96)),
    *[("shape.mp4", 12, Fraction(10), shape) for shape in [(64, 64), (240, 320), (360, 202), (48, 400)]],
    ("prores.mov", 40, Fraction(25), (64, 96)),
]


@pytest.mark.parametrize(("name", "total", "rate", "shape"), FILES, ids=lambda value: str(value))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_looks_the_same_to_the_model(
    family: str,
    name: str,
    total: int,
    rate: Fraction,
    shape: tuple[int, int],
    tokenizer: Any,
    video_folder: Path,
) -> None:
    path = video_folder / f"parity_{float(rate):.3f}_{shape[0]}_{name}"
    if not path.exists():
        codec = {"codec": "prores_ks", "pix_fmt": "yuv422p10le"} if name == "prores.mov" else {}
        clips.render_video(path, count=total, fps=rate, height=shape[0], width=shape[1], **codec)
    video_processor, policy = FAMILIES[family](**({"size": SMALL_FRAMES} if family == "qwen25" else {}))
    processor = whole_processor(family, video_processor, tokenizer)
    inputs, indices = what_they_see(processor, path)

    clip = read_clip(path, policy)
    assert isinstance(clip, Clip)
    ours = what_we_show(processor, clip)
    assert frame_metadata(clip)["frames_indices"][: len(indices)] == indices
    assert clips.numbers_of(clip.frames)[: len(indices)] == indices
    assert ours["video_grid_thw"].tolist() == inputs["video_grid_thw"].tolist()
    assert tokenizer.decode(ours["input_ids"][0]) == tokenizer.decode(inputs["input_ids"][0])
    assert ours["pixel_values_videos"].shape == inputs["pixel_values_videos"].shape
    if family == "qwen25":
        assert ours["second_per_grid_ts"] == pytest.approx(inputs["second_per_grid_ts"], rel=1e-12)


def marks(tokenizer: Any, inputs: Any) -> list[str]:
    """The times written between the frames."""
    text = tokenizer.decode(inputs["input_ids"][0])
    return [part.split(" seconds>")[0] for part in text.split("<") if " seconds>" in part]


def test_uneven_times_are_written_as_they_are(tokenizer: Any, tmp_path: Path) -> None:
    times_ms = [0, 400, 800, 1500, 2600, 2800, 5200, 5400]
    path = clips.render_video(tmp_path / "vfr.mp4", count=8, pts=times_ms, time_base=Fraction(1, 1000))
    video_processor, policy = qwen3()
    clip = read_clip(path, policy)
    assert isinstance(clip, Clip)
    inputs = what_we_show(whole_processor("qwen3", video_processor, tokenizer), clip)
    assert marks(tokenizer, inputs) == ["0.2", "1.1", "2.7", "5.3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_is_written_in_the_files_own_time(family: str, tokenizer: Any, tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "long.mp4", count=200, fps=10)
    video_processor, policy = FAMILIES[family]()
    clip = read_clip(path, policy, window=TimeWindow(10, 13.9))
    assert isinstance(clip, Clip)
    inputs = what_we_show(whole_processor(family, video_processor, tokenizer), clip)
    if family == "qwen3":
        assert marks(tokenizer, inputs) == ["10.3", "11.4", "12.5", "13.6"]
    else:
        assert inputs["second_per_grid_ts"] == pytest.approx([1.0])


def test_one_frame_is_shown_as_two(tokenizer: Any, tmp_path: Path) -> None:
    """The processor itself refuses it."""
    path = clips.render_video(tmp_path / "one.mp4", count=1)
    video_processor, policy = qwen3()
    clip = read_clip(path, policy)
    assert isinstance(clip, Clip)
    inputs = what_we_show(whole_processor("qwen3", video_processor, tokenizer), clip)
    assert inputs["video_grid_thw"][0][0] == 1
    assert marks(tokenizer, inputs) == ["0.0"]
