"""LoRAs as models and beside them: they are what captions are written with, or one line; never left out."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from adapters import DEMO, merged, modules, write_lora
from reelscribe import VideoCaptioningFromVLMMapper, cli
from reelscribe.errors import MissingExtraError, ModelError, SettingsError
from reelscribe.models import ModelSpec, has_adapter, load_captioner, model_revision
from reelscribe.models.adapters import find_checkpoint
from reelscribe.models.captioner import generation_config
from reelscribe.models.loading import load_model
from reelscribe.runners.run.identity import portable_parameters
from reelscribe.types import CaptionRequest, Clip, RequestId

pytestmark = pytest.mark.usefixtures("one_thread")
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed (the extra lora has it)")
SHAPES = "reelscribe/shapes"


@pytest.fixture
def lora(tmp_path):
    return write_lora(tmp_path / "lora")


def embedded(lora: Path, folder: Path) -> Path:
    """A model that has an adapter in its folder."""
    shutil.copytree(DEMO, folder)
    shutil.copytree(lora, folder, dirs_exist_ok=True)
    return folder


def with_config(lora: Path, folder: Path) -> Path:
    """An adapter with a copy of its model's config, as some trainers save it."""
    shutil.copytree(lora, folder)
    shutil.copy(DEMO / "config.json", folder)
    return folder


WAYS = {
    "as the model": lambda lora, folder: (str(lora), {}),
    "beside the model": lambda lora, folder: (SHAPES, {"adapter": str(lora)}),
    "in the model's folder": lambda lora, folder: (str(embedded(lora, folder)), {}),
    "with a config": lambda lora, folder: (str(with_config(lora, folder)), {}),
    "pasted": lambda lora, folder: (f" '{lora}' ", {}),
}
"""Ways to name an adapter."""


def told(name, options):
    frames = np.random.default_rng(5).integers(0, 255, (4, 64, 96, 3), np.uint8)
    clip = Clip(frames, np.arange(4) / 2, duration_seconds=2, source_fps=2, source_height=64, source_width=96)
    generation = generation_config({"max_tokens": 8, "temperature": 0})
    captioner = load_captioner(ModelSpec("hf", name, {"device": "cpu", **options}, generation=generation))
    (result,) = captioner.caption([(CaptionRequest(RequestId(0, 0), "v.mp4", "What happens?"), clip)])
    captioner.close()
    (one,) = result.candidates
    return one.text, pytest.approx(one.mean_logprob, abs=1e-4)


@needs_peft
@pytest.mark.parametrize("way", WAYS)
def test_captions_are_those_of_the_model_with_the_adapter_merged(way, lora, tmp_path):
    expected = told(str(merged(lora, tmp_path / "merged")), {})
    assert told(*WAYS[way](lora, tmp_path / "folder")) == expected
    assert told(SHAPES, {}) != expected


@pytest.mark.parametrize("way", WAYS)
def test_without_peft_an_adapter_is_one_line(way, lora, tmp_path, monkeypatch):
    there = importlib.metadata.version

    def without_peft(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    name, options = WAYS[way](lora, tmp_path / "folder")
    monkeypatch.setattr(importlib.metadata, "version", without_peft)
    words = r"the adapter '.*' needs the package 'peft': pip install 'reelscribe\[lora\]'"
    with pytest.raises(MissingExtraError, match=words):
        load_captioner(ModelSpec("hf", name, {"device": "cpu", **options}))


def test_a_model_without_an_adapter_has_none():
    assert find_checkpoint(SHAPES, {}, adapter=None).adapter is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"base": None}, "names no base model; name its base model, and give the adapter as model_params adapter="),
        ({"base": "/home/me/base"}, "an adapter of '/home/me/base', which is not on this machine; name its base model"),
        ({"base": "./base"}, "an adapter of './base', which is not on this machine"),
        ({"base": "qwen3:8b"}, "an adapter of 'qwen3:8b', which is not on this machine"),
    ],
)
def test_an_adapter_of_a_model_that_is_not_here_says_what_to_do(config, words, tmp_path):
    folder = write_lora(tmp_path / "lora", **config)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(folder), {"device": "cpu"})
    assert str(folder) in str(caught.value)
    assert find_checkpoint(SHAPES, {}, adapter=str(folder)).adapter is not None


def test_an_adapter_finds_its_model_beside_it(tmp_path):
    shutil.copytree(DEMO, tmp_path / "base")
    source = find_checkpoint(str(write_lora(tmp_path / "lora", base="../base")), {}, adapter=None)
    assert Path(source.base).resolve() == tmp_path / "base"


def no_weights(folder: Path):
    (folder / "adapter_model.safetensors").unlink()


def not_json(folder: Path):
    (folder / "adapter_config.json").write_text("{")


def no_config(folder: Path):
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(no_weights, "has no weights"), (not_json, "is not JSON"), (no_config, "has no adapter_config.json")],
)
def test_a_broken_adapter_is_one_line(damage, words, lora):
    damage(lora)
    with pytest.raises(ModelError, match=words):
        load_model(SHAPES, {"device": "cpu", "adapter": str(lora)})


@needs_peft
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"target_modules": modules()[:2]}, "does not fit: the model has no place for"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "does not fit: the adapter lacks weights of"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
        ({"r": 8}, "do not match the sizes in its config"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(config, words, tmp_path):
    folder = write_lora(tmp_path / "lora", **config)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(folder), {"device": "cpu"})
    assert "\n" not in str(caught.value)


@needs_peft
def test_an_adapter_that_adds_to_the_prompt_is_one_line(lora):
    config = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": str(DEMO), "num_virtual_tokens": 2}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="adapters that add to the prompt are not supported"):
        load_model(str(lora), {"device": "cpu"})


def test_two_adapters_are_one_line(lora, tmp_path):
    other = write_lora(tmp_path / "other")
    with pytest.raises(ModelError, match="names another .*; only one can be used"):
        load_model(str(lora), {"device": "cpu", "adapter": str(other)})
    on_top = write_lora(tmp_path / "top", base=str(embedded(lora, tmp_path / "model")))
    with pytest.raises(ModelError, match="which itself contains an adapter; merge those two first"):
        load_model(str(on_top), {"device": "cpu"})


def test_an_adapter_that_is_not_there_is_one_line():
    with pytest.raises(ModelError, match="'/no/such/lora' does not exist"):
        load_model(SHAPES, {"device": "cpu", "adapter": "/no/such/lora"})
    with pytest.raises(ModelError, match="the adapter 'me/lora' is not on this machine"):
        load_model(SHAPES, {"device": "cpu", "adapter": "me/lora", "local_files_only": True})
    with pytest.raises(SettingsError, match="Ollama"):
        load_model(SHAPES, {"device": "cpu", "adapter": "lora:latest"})


def test_a_server_is_asked_for_an_adapter_by_name():
    with pytest.raises(SettingsError, match="a server loads adapters itself.*--model"):
        load_captioner(ModelSpec("server", "m", {"base_url": "http://localhost:1", "adapter": "lora"}))


def test_the_processor_and_template_that_were_saved_with_an_adapter_are_used(lora):
    assert find_checkpoint(str(lora), {}, adapter=None).processor[0] == str(DEMO)
    for path in DEMO.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(path, lora)
    source = find_checkpoint(str(lora), {"revision": "v1"}, adapter=None)
    assert source.processor == (str(lora), {})
    assert source.chat_template == (DEMO / "chat_template.jinja").read_text()


def test_a_revision_beside_a_folder_is_that_of_its_model(tmp_path):
    folder = write_lora(tmp_path / "lora", base="Org/Video-3B", revision="v1")
    here = {"local_files_only": True}
    assert find_checkpoint(str(folder), here, adapter=None).hub == {**here, "revision": "v1"}
    assert find_checkpoint(str(folder), {**here, "revision": "v2"}, adapter=None).hub == {**here, "revision": "v2"}


# identity


def test_a_run_is_known_by_its_adapter(lora, tmp_path):
    other = write_lora(tmp_path / "other", size=0.1)
    specs = [ModelSpec("hf", SHAPES), ModelSpec("hf", SHAPES, {"adapter": str(lora)}), ModelSpec("hf", str(lora)),
             ModelSpec("hf", SHAPES, {"adapter": str(other)})]  # fmt: skip
    plain, beside, own, another = map(model_revision, specs)
    assert len({plain, beside, own, another}) == 4
    assert plain in own.split("+")
    assert beside.split("+") == own.split("+")[::-1]
    (lora / "adapter_config.json").write_text((lora / "adapter_config.json").read_text().replace("8", "9"))
    assert model_revision(specs[1]) != beside
    assert [has_adapter(spec) for spec in specs] == [False, True, True, True]


def test_an_adapter_is_found_from_elsewhere(lora, monkeypatch):
    monkeypatch.chdir(lora.parent)
    operator = VideoCaptioningFromVLMMapper(SHAPES, model_params={"adapter": "lora"})
    assert portable_parameters(operator)["model_params"] == {"adapter": str(lora)}
    assert operator.parameters["model_params"] == {"adapter": "lora"}


@needs_peft
def test_the_command_captions_with_an_adapter_and_knows_it_again(lora, video, tmp_path):
    def run(*more):
        arguments = ["caption", video("h264.mp4"), "-o", tmp_path / "out.jsonl", "--max-tokens", "6", *more]
        return CliRunner().invoke(cli.main, [str(one) for one in arguments])

    assert run("--model", lora).exit_code == 0
    with_it = (tmp_path / "out.jsonl").read_bytes()
    assert run("--model", lora).exit_code == 0
    changed = run("--model", SHAPES)
    assert changed.exit_code == 1
    assert "hf_model was" in changed.stderr
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    changed = run("--model", lora)
    assert changed.exit_code == 1
    assert "model_revision was" in changed.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == with_it
