"""Checkpoints of models that also hear and speak: their thinker is loaded, for what is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import small_families as small
from families.registry import FAMILIES
from reelscribe.models.classes import class_for
from reelscribe.models.hf.captioner import SOUND_NOTE
from reelscribe.models.loading import quiet_transformers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinker's own checkpoint."""
    folder = tmp_path_factory.mktemp("omni") / "thinker"
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        tiny = FAMILIES["qwen2_5_omni"].build()
        made = type(tiny)(tiny.model, tiny.processor)
        return made.save(folder)


@pytest.fixture(scope="module")
def whole(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same thinker as a part of a whole model that speaks: as such a checkpoint is saved."""
    folder = FAMILIES["qwen2_5_omni"].save(tmp_path_factory.mktemp("omni") / "whole")
    weights = {f"thinker.{name}": value for name, value in load_file(thinker / "model.safetensors").items()}
    weights |= {"talker.model.norm.weight": torch.ones(8), "token2wav.scale": torch.ones(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_thinker_of_a_whole_model_tells_what_the_thinker_tells(thinker: Path, whole: Path) -> None:
    assert json.loads((whole / "config.json").read_text())["model_type"] == "qwen2_5_omni"
    captioners = [small.captioner(path) for path in (thinker, whole)]
    asked = small.jobs(small.different(captioners[0]))
    told = [small.answers(one, asked) for one in captioners]
    assert small.same(*told)
    assert [one.candidates[0].text for one in told[0]] == [small.generated(captioners[0], job) for job in asked]
    assert {type(one._model).__name__ for one in captioners} == {"Qwen2_5OmniThinkerForConditionalGeneration"}


def test_it_is_said_once_that_sound_is_not_heard(whole: Path) -> None:
    assert small.captioner(whole).notes == [SOUND_NOTE]


def test_sizes_and_times_are_those_of_the_clip(whole: Path) -> None:
    captioner = small.captioner(whole)
    assert (captioner.policy.min_pixels, captioner.policy.max_pixels) == (128 * 28 * 28, 768 * 28 * 28)
    clips = [small.clip(captioner, 4, 280, 364, fps=fps) for fps in (0.5, 2.0)]
    inputs = captioner._inputs([captioner._job(*job) for job in small.jobs(clips)])
    assert list(map(float, inputs["video_second_per_grid"])) == [4.0, 1.0]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (hf.Qwen3VLConfig, "AutoModelForImageTextToText"),
        (hf.Qwen2_5OmniConfig, "Qwen2_5OmniThinkerForConditionalGeneration"),
        (hf.Qwen2_5OmniThinkerConfig, "AutoModelForImageTextToText"),
        (hf.Qwen3OmniMoeConfig, "Qwen3OmniMoeThinkerForConditionalGeneration"),
        (hf.Qwen3OmniMoeThinkerConfig, "AutoModelForImageTextToText"),
    ],
)
def test_each_config_has_its_class(config: Any, name: str) -> None:
    with quiet_transformers():
        assert class_for(config()).__name__ == name
