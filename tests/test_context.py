"""Prompts that are longer than the model takes: found before it runs, or shown with as many frames as fit."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import clips
from families.registry import FAMILIES
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.cli import main
from reelscribe.errors import SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.models.context import MADE_FOR_TOKENS, Context, LongPrompts, most_positions, most_that_fit
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.scripted import ScriptedCaptioner
from reelscribe.types import CaptionRequest, CaptionResult, Clip, RequestId
from reelscribe.video.frames.moments import FramePolicy, FrameSettings, fewer_frames

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIONS = 220
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny InternVL that takes few tokens."""
    return _small(tmp_path_factory.mktemp("internvl"), "internvl")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL that takes few tokens."""
    return _small(tmp_path_factory.mktemp("qwen"), "qwen3_vl")


def _small(folder: Path, family: str) -> Path:
    FAMILIES[family].save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = POSITIONS
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def clip(frames: int, *, height: int = 64, width: int = 64) -> Clip:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), np.uint8)
    return Clip(pixels, np.arange(frames) / 2, frames / 2, 2.0, height, width)


def captioner_of(folder: Path, **frames: Any) -> HFCaptioner:
    spec = ModelSpec(
        "hf",
        str(folder),
        generation=generation_config({"max_tokens": MAX_TOKENS, "temperature": 0.0}),
        frames=FrameSettings(**frames),
    )
    captioner = load_captioner(spec)
    assert isinstance(captioner, HFCaptioner)
    return captioner


def answers(captioner: HFCaptioner, *shown: Clip) -> dict[int, CaptionResult]:
    asked = [(CaptionRequest(RequestId(row, 0), "v.mp4", "Go."), one) for row, one in enumerate(shown)]
    return {result.request_id.row: result for result in captioner.caption(asked)}


def texts(result: CaptionResult) -> list[str]:
    return [candidate.text for candidate in result.candidates]


@pytest.mark.parametrize("family", ["internvl", "qwen"])
def test_a_prompt_that_is_too_long_fails_before_the_model_runs_and_alone(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(request.getfixturevalue(family))
    alone = answers(captioner, clip(2))[0]
    read = []
    forward = type(captioner._model).forward

    @functools.wraps(forward)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["input_ids"].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(captioner._model), "forward", noted)
    mixed = answers(captioner, clip(2), clip(36), clip(2), clip(40))
    for row in (1, 3):
        failure = mixed[row].failure
        assert failure is not None
        assert failure.kind == "too_many_tokens"
        for words in ("tokens", f"with {MAX_TOKENS} for the caption", f"context of {POSITIONS}", "max_frames", "fit"):
            assert words in failure.message
    assert [texts(mixed[row]) for row in (0, 2)] == [texts(alone)] * 2
    assert max(read) <= POSITIONS


@pytest.mark.parametrize("family", ["internvl", "qwen"])
def test_as_many_frames_as_fit_are_shown(family: str, request: pytest.FixtureRequest) -> None:
    captioner = captioner_of(request.getfixturevalue(family), fit=True)
    long = clip(40)
    room = POSITIONS - MAX_TOKENS
    result = answers(captioner, clip(2), long, clip(36))
    assert [one.failure for one in result.values()] == [None] * 3
    used = result[1].usage.prompt_tokens
    plain = captioner_of(request.getfixturevalue(family))
    tried = {count: answers(plain, fewer_frames(captioner.policy, long, count))[0] for count in range(1, 41)}
    fitting = [count for count, one in tried.items() if one.failure is None]
    assert fitting == list(range(1, len(fitting) + 1))
    assert 2 < len(fitting) < 40
    assert used == tried[fitting[-1]].usage.prompt_tokens <= room
    assert texts(result[1]) == texts(tried[fitting[-1]])


def test_a_prompt_that_fits_is_the_same_with_fit(internvl: Path) -> None:
    plain, fit = (answers(captioner_of(internvl, fit=fit), clip(3))[0] for fit in (None, True))
    assert plain == fit


def test_a_prompt_that_does_not_fit_with_one_frame_fails(internvl: Path) -> None:
    captioner = captioner_of(internvl, fit=True)
    asked = [(CaptionRequest(RequestId(0, 0), "v.mp4", "Go on and on. " * 100), clip(2))]
    (result,) = captioner.caption(asked)
    assert result.failure is not None
    assert result.failure.kind == "too_many_tokens"


def test_the_command_says_so_and_shows_what_fits(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    clips.render_video(tmp_path / "in" / "long.mp4", count=300, fps=10)
    clips.render_video(tmp_path / "in" / "short.mp4", count=10, fps=10)
    command = ["caption", str(tmp_path / "in"), "--model", str(qwen), "--max-tokens", str(MAX_TOKENS)]
    command += ["--prompt", "Go."]
    plain = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "plain.jsonl")])
    assert plain.exit_code == 3
    (failure,) = map(json.loads, (tmp_path / "plain.jsonl.failures.jsonl").read_text().splitlines())
    assert failure["kind"] == "too_many_tokens"
    assert failure["video"].endswith("long.mp4")
    fit = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "fit.jsonl"), "--fit"])
    assert fit.exit_code == 0, fit.output
    rows = [json.loads(line) for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    assert all(row["captions"] for row in rows)


# ---- where it cannot be known -----------------------------------------------------------------------------------


def test_servers_and_living_captioners_refuse_fit_by_name() -> None:
    spec = ModelSpec("server", "x", {"base_url": "http://127.0.0.1:9/v1"}, frames=FrameSettings(fit=True))
    with pytest.raises(SettingsError, match=r"fit \(--fit\)"):
        load_captioner(spec)
    living = ScriptedCaptioner(lambda request, index: "x")
    with pytest.raises(SettingsError, match=r"fit \(--fit\)"):
        VideoCaptioningFromVLMMapper(captioner=living, fit=True)


def test_fit_is_true_or_false() -> None:
    with pytest.raises(SettingsError, match="fit must be true or false"):
        FrameSettings(fit=1)  # type: ignore[arg-type]
    assert FramePolicy().override(FrameSettings(fit=True)).fit


# ---- arithmetic -------------------------------------------------------------------------------------------------


@given(
    first=st.integers(1, 500), each=st.integers(0, 300), patch=st.sampled_from([1, 2, 4]), most=st.integers(1, 800),
    room=st.integers(1, 20_000),
)  # fmt: skip
def test_the_largest_number_that_fits_is_found_in_few_steps(
    first: int, each: int, patch: int, most: int, room: int
) -> None:
    asked = []

    def length(count: int) -> int:
        asked.append(count)
        return first + each * -(-count // patch)

    found = most_that_fit(length, most=most, room=room)
    fitting = [count for count in range(1, most) if first + each * -(-count // patch) <= room]
    if most > 1 and first + each * -(-most // patch) > room:
        assert found == max(fitting, default=0)
        assert len(asked) <= 4 + 2 * patch


def config_of(**text: Any) -> Any:
    return SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(**text))


def test_positions_go_by_the_config_and_its_rotary_scaling() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert most_positions(config_of(max_position_embeddings=4096)) == 4096
    assert most_positions(config_of(max_position_embeddings=4096, rope_parameters={"rope_type": "default"})) == 4096
    assert most_positions(config_of(max_position_embeddings=32768, rope_parameters=yarn)) == 131072
    assert most_positions(config_of(max_position_embeddings=131072, rope_parameters=yarn)) == 131072
    scaled = {"rope_type": "linear", "factor": 2.0}
    assert most_positions(config_of(max_position_embeddings=4096, rope_scaling=scaled)) == 8192
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert most_positions(config_of(max_position_embeddings=131072, rope_parameters=llama3)) == 131072
    assert most_positions(config_of()) is None
    assert Context(None, 512).failure(10**9) is None
    assert Context(1000, 512).failure(488) is None
    assert Context(1000, 512).failure(489) is not None


def test_a_prompt_far_over_what_the_family_was_made_for_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    request = CaptionRequest(RequestId(3, 0), "v.mp4", "Go.")
    with caplog.at_level(logging.WARNING):
        prompts = LongPrompts(SimpleNamespace(video_processor=Qwen2VLVideoProcessor(do_sample_frames=False)))
        prompts.note(request, MADE_FOR_TOKENS["Qwen2VLVideoProcessor"])
        assert not caplog.records
        prompts.note(request, 53_820)
        prompts.note(request, 60_000)
        LongPrompts(SimpleNamespace(video_processor=Qwen3VLVideoProcessor())).note(request, 10**6)
    (record,) = [one for one in caplog.records if one.name.startswith("reelscribe")]
    assert "53820 tokens" in record.getMessage()
    assert "--max-pixels 602112" in record.getMessage()


def test_the_advised_size_is_that_of_the_authors_reader(tmp_path: Path) -> None:
    """20 s of 1080p: 40 frames of at most 768 x 28 x 28 pixels, two a token step."""
    policy = FramePolicy(sampler="stride", sizer="frame_budget", multiple=28, min_pixels=3136, max_pixels=12_845_056)
    limited = policy.override(FrameSettings(max_pixels=602_112))
    from reelscribe.video.frames.moments import target_size

    for one, tokens in ((policy, 53_820), (limited, 15_000)):
        height, width = target_size(one, 40, 1080, 1920)
        assert 20 * height * width // 784 == pytest.approx(tokens, rel=0.05)
    assert dataclasses.replace(limited, max_frame_pixels=None) == policy
