"""One model of all settings, and what is derived from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.data import Target, open_source
from reelscribe.models.captioner import ModelSpec, ThinkingSettings
from reelscribe.runners.run.identity import RunIdentity
from reelscribe.types import CaptionRequest, RequestId, TimeWindow
from reelscribe.video.frames.policy import FrameSettings
from rows import jsonl

GOLDEN = Path(__file__).parent / "golden/run_identity.json"
"""What the version that began runs wrote, before there was a settings model."""


# the identity of runs that were begun before

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing set": {"hf_model": "no/model"},
    "everything set": {
        "hf_model": "no/model", "enable_vllm": True, "caption_num": 4, "keep_candidate_mode": "all",
        "keep_original_sample": False, "prompt": "p", "prompt_key": "ask",
        "model_params": {
            "revision": "abc", "token": "secret", "max_in_flight": 3, "device": "cuda:1", "prompt_order": "text_first",
        },
        "sampling_params": {"max_tokens": 9, "stop": ["a"]}, "text_key": "t", "video_key": "v", "system_prompt": "s",
        "caption_key": "c", "failure_key": "f", "finish_reason_key": "r", "reasoning_key": "re", "thinking": "on",
        "thinking_tokens": 5, "seed": 7, "video_token": "<v>", "image_token": "<i>", "audio_token": "<a>",
        "eoc_token": "<e>", "fps": 2, "min_frames": 1, "max_frames": 9, "min_pixels": 1000, "max_pixels": 9000,
        "time_tolerance_seconds": 0.25, "pixel_aspect": "display", "tone_map": True, "deinterlace": True, "fit": True,
        "start_seconds": 1, "end_seconds": 4.5, "start_key": "from", "end_key": "to", "video_root": "s3://bucket/v",
        "max_source_seconds": 50, "max_source_pixels": 1 << 20, "max_source_frames": 1000, "max_source_bytes": 1 << 30,
        "max_read_seconds": 10, "max_read_memory_mib": 100, "allow_remote": True, "allow_images": True,
        "video_cache": "cache", "video_cache_mib": 10, "batch_size": 2, "num_proc": 1, "prefetch_mib": 64,
        "accelerator": "cpu", "skip_op_error": False,
    },
    "set to what is the default": {
        "hf_model": "no/model", "caption_num": 1, "num_frames": 4, "reasoning_key": None, "thinking": "off",
        "thinking_tokens": 2048, "pixel_aspect": "stored", "tone_map": False, "deinterlace": False, "fit": False,
        "allow_images": False, "max_source_seconds": 86400,
    },
    "a spec from Python": {
        "captioner": ModelSpec(
            "scripted", "x", {"device": "cpu", "y": 1}, frames=FrameSettings(fps=2.0, tone_map=False),
            thinking=ThinkingSettings(on=True),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_begun_before_resumes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelscribe.runners.run.identity.version", lambda package: "1")
    source = open_source(jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}]))
    operator = VideoCaptioningFromVLMMapper(**SETTINGS[name])
    identity = RunIdentity.of(operator, source, Target.of(tmp_path / "out.jsonl"), limit=5)
    request = CaptionRequest(RequestId(0, 0), "a.mp4", "p", num_candidates=2, seed=3, window=TimeWindow(1, 2))
    found = {"digest": identity.digest(request).hex(), **identity.as_dict()}
    del found["rows"]["input"], found["rows"]["input_files"]  # they are of this folder and this minute
    assert found == json.loads(GOLDEN.read_text("utf-8"))[name]
