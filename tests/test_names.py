"""Names of models as people write and paste them: understood, or one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from chat_server import ChatServer, running
from reelscribe import VideoCaptioningFromVLMMapper, cli
from reelscribe.errors import ModelError, ReelscribeError, SettingsError
from reelscribe.models import ModelSpec, load_captioner, model_revision, understood
from reelscribe.models.chat import resolve_model
from reelscribe.models.loading import load_model
from reelscribe.models.names import ModelName, read_model_name
from reelscribe.operator import OPERATOR_NAME

NAME = "Org/Video-3B"
PASTED = {
    f"https://huggingface.co/{NAME}": ModelName(NAME),
    f"https://huggingface.co/{NAME}/": ModelName(NAME),
    f"http://www.huggingface.co/{NAME}": ModelName(NAME),
    f"HTTPS://HuggingFace.co/{NAME}": ModelName(NAME),
    f"https://hf.co/{NAME}": ModelName(NAME),
    f"huggingface.co/{NAME}": ModelName(NAME),
    f"hf.co/{NAME}:latest": ModelName(NAME),
    f"https://huggingface.co//{NAME}": ModelName(NAME),
    f"https://huggingface.co/{NAME}?library=transformers#usage": ModelName(NAME),
    f"https://huggingface.co/{NAME}.git": ModelName(NAME),
    f"git@hf.co:{NAME}.git": ModelName(NAME),
    f"ssh://git@hf.co/{NAME}": ModelName(NAME),
    f"https://someone:secret@huggingface.co/{NAME}": ModelName(NAME),
    f"https://huggingface.co/{NAME}/tree/main": ModelName(NAME),
    f"https://huggingface.co/{NAME}/tree/v1.0": ModelName(NAME, "v1.0"),
    f"https://huggingface.co/{NAME}/tree/refs%2Fpr%2F3": ModelName(NAME, "refs/pr/3"),
    f"https://huggingface.co/{NAME}/commit/0123abc": ModelName(NAME, "0123abc"),
    f"https://huggingface.co/{NAME}/commits/main": ModelName(NAME),
    f"https://huggingface.co/{NAME}/discussions/7": ModelName(NAME),
    f"https://huggingface.co/{NAME}/blob/main/README.md": ModelName(NAME),
    f"https://huggingface.co/{NAME}/resolve/v2/config.json?download=true": ModelName(NAME, "v2"),
    f"https://huggingface.co/{NAME}/resolve/main/model-00001-of-00002.safetensors": ModelName(NAME),
    f"https://huggingface.co/{NAME}/tree/main/checkpoint-500": ModelName(NAME, None, "checkpoint-500"),
    f"https://huggingface.co/{NAME}/blob/main/checkpoint-500/config.json": ModelName(NAME, None, "checkpoint-500"),
    f"hf://{NAME}": ModelName(NAME),
    f"HF://{NAME}@main": ModelName(NAME),
    f"hf://models/{NAME}@v1.0": ModelName(NAME, "v1.0"),
    f"hf://{NAME}@refs/pr/3": ModelName(NAME, "refs/pr/3"),
    f"{NAME}@v1.0": ModelName(NAME, "v1.0"),
    f"{NAME}@refs/pr/3": ModelName(NAME, "refs/pr/3"),
    f"{NAME}@main": ModelName(NAME),
    f"{NAME}:latest": ModelName(NAME),
    f"{NAME}:main": ModelName(NAME),
    f"{NAME}/": ModelName(NAME),
    f"  {NAME}\n": ModelName(NAME),
    f"'{NAME}'": ModelName(NAME),
    f'"{NAME}"': ModelName(NAME),
    f"`{NAME}`": ModelName(NAME),
    f"“{NAME}”": ModelName(NAME),
    f"<https://hf.co/{NAME}>": ModelName(NAME),
    f"\u200b{NAME}\ufeff": ModelName(NAME),
    "Org / Video-3B": ModelName(NAME),
    "Org\u00a0/\u00a0Video-3B": ModelName(NAME),
    "Org/Video–3B": ModelName(NAME),
    "models--Org--Video-3B": ModelName(NAME),
    "reelscribe/shapes": ModelName("reelscribe/shapes"),
    " reelscribe/shapes ": ModelName("reelscribe/shapes"),
    "video-3b": ModelName("video-3b"),
}
"""What is pasted, and what it means."""
WRONG = {
    "": "is empty",
    " ": "is empty",
    "''": "is empty",
    "qwen3-vl:8b": "Ollama.*--server http://localhost:11434/v1",
    "qwen3-vl:latest": "Ollama",
    f"{NAME}:v1": f"has a tag, 'v1'.*{NAME}@v1",
    f"hf.co/{NAME}:Q4_K_M": "has a tag, 'Q4_K_M'.*quantisation",
    f"https://huggingface.co/{NAME}:8b": "has a tag",
    f"{NAME}@": "neither a local folder nor a name on the hub",
    f"hf://{NAME}@": "not the address of a model",
    "Org/Video 3B": "did you mean Org/Video-3B",
    "Org\\Video-3B": "did you mean Org/Video-3B",
    "Org/Group/Video-3B": "neither a local folder nor a name on the hub",
    "Org/..Video": "neither a local folder",
    "a\0b": "neither a local folder",
    "x" * 5000: "neither a local folder",
    "hf://": "not the address of a model",
    "hf://video": "not the address of a model",
    "https://": "not a model hub",
    "https://[::1/Org/Video": "not a model hub",
    "https://huggingface.co/Org": "not the address of a model",
    "https://huggingface.co/Org/Video%203B": "not the address of a model",
    "https://huggingface.co/datasets/Org/Clips": "address of a dataset, not of a model",
    "https://huggingface.co/spaces/Org/Show": "address of a space, not of a model",
    "https://huggingface.co/papers/2511.21631": "shows no model",
    f"https://huggingface.co/{NAME}/blob/main/video-Q4.gguf": "one GGUF file.*gguf_file=video-Q4.gguf",
    f"https://models.example/{NAME}": "'models.example', which is not a model hub.*HF_ENDPOINT",
    "http://localhost:8000/v1": "--server",
    "s3://bucket/model": "download it and give its folder",
    "vllm serve Org/Video-3B": "neither a local folder",
}
"""What means no model, or could mean several, and what is said of it."""


@pytest.mark.parametrize(("text", "meant"), PASTED.items())
def test_what_is_pasted_is_understood(text, meant):
    assert read_model_name(text) == meant


@pytest.mark.parametrize(("text", "words"), WRONG.items())
def test_what_means_no_model_is_one_line(text, words):
    with pytest.raises(SettingsError, match=words) as caught:
        read_model_name(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text", ["/no/such/folder", "./no", "../no", "~/no", "~nobody-of-this-name/x", "C:\\models\\x"]
)
def test_a_path_that_leads_nowhere_is_told_when_it_is_loaded(text):
    assert read_model_name(text) == ModelName(text)
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model(text)
    with pytest.raises(ModelError, match="does not exist"):
        load_captioner(ModelSpec("hf", text))
    assert model_revision(ModelSpec("hf", text)) is None


@given(st.text(max_size=60) | st.text("/:@.-~ \\'\"ahf", max_size=30))
def test_any_text_is_understood_or_one_line(text):
    try:
        meant = read_model_name(text)
    except SettingsError as exc:
        told = str(exc)
    else:
        told = meant.name
        assert read_model_name(told).name == told
    assert "\n" not in told


def test_a_folder_is_taken_as_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my model", "Org/Video 3B", "qwen3:8b", "hf.co/Org/Video", "a'b'", " blank "):
        Path(name).mkdir(parents=True)
        assert read_model_name(name) == ModelName(name)
    assert read_model_name("'my model' ") == ModelName("my model")
    assert read_model_name(f"file://{tmp_path}/my%20model") == ModelName(f"{tmp_path}/my model")
    Path("model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a file"):
        resolve_model("model.gguf")


def test_a_folder_of_the_hubs_cache_leads_to_the_model_in_it(tmp_path):
    snapshot = tmp_path / "models--Org--Video-3B" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"has no config.json; one is in '{snapshot}'"):
        resolve_model(str(tmp_path / "models--Org--Video-3B"))


def test_another_hub_is_known_by_its_address(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://models.example")
    assert read_model_name(f"https://models.example/{NAME}/tree/v2") == ModelName(NAME, "v2")


# wherever a model is named


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_a_spec_says_what_is_meant(backend):
    spec = understood(ModelSpec(backend, f"https://hf.co/{NAME}/tree/v2", {"dtype": "float32"}))
    assert (spec.model, spec.options) == (NAME, {"dtype": "float32", "revision": "v2"})
    assert understood(spec) == spec


def test_two_revisions_are_one_line():
    with pytest.raises(SettingsError, match="names the revision 'v2', and model_params 'v1'; leave one of them out"):
        understood(ModelSpec("hf", f"{NAME}@v2", {"revision": "v1"}))
    same = understood(ModelSpec("hf", f"{NAME}@v2", {"revision": "v2"}))
    assert same.options == {"revision": "v2"}


def test_vllm_loads_no_folders_of_repositories():
    with pytest.raises(SettingsError, match="vLLM loads whole repositories only"):
        understood(ModelSpec("vllm", f"https://hf.co/{NAME}/tree/main/sub"))


@pytest.mark.parametrize("vllm", [False, True])
def test_the_operator_has_the_models_own_name(vllm):
    operator = VideoCaptioningFromVLMMapper(f" https://huggingface.co/{NAME}/tree/v2 ", enable_vllm=vllm)
    assert operator.parameters["hf_model"] == operator.spec.model == NAME
    assert operator.parameters["model_params"] == operator.spec.options == {"revision": "v2"}
    plain = VideoCaptioningFromVLMMapper(NAME, enable_vllm=vllm)
    assert (plain.parameters["hf_model"], plain.parameters["model_params"]) == (NAME, None)


def test_a_spec_from_python_is_understood_too():
    operator = VideoCaptioningFromVLMMapper(captioner=ModelSpec("hf", f"hf://{NAME}"))
    assert operator.spec.model == operator.parameters["captioner"].model == NAME
    with pytest.raises(SettingsError, match="Ollama"):
        VideoCaptioningFromVLMMapper(captioner=ModelSpec("hf", "qwen3:8b"))
    with pytest.raises(SettingsError, match="Ollama"):
        load_captioner(ModelSpec("vllm", "qwen3:8b"))


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("vllm", [[], ["--vllm"]])
@pytest.mark.parametrize("text", [text for text in WRONG if "\0" not in text and len(text) < 200])
def test_the_command_ends_with_one_line(text, vllm, video, tmp_path):
    result = run("caption", video("h264.mp4"), "-o", tmp_path / "out.jsonl", "--model", text, *vllm)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_ends_with_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    recipe = {"dataset_path": str(tmp_path / "in.jsonl"), "export_path": str(tmp_path / "out.jsonl"),
              "process": [{OPERATOR_NAME: {"hf_model": "qwen3:8b"}}]}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = run("process", "--config", tmp_path / "recipe.yaml")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "Ollama" in result.stderr


def test_a_pasted_name_is_captioned_with_and_is_the_same_run(video, tmp_path):
    out = tmp_path / "out.jsonl"
    first = run("caption", video("h264.mp4"), "-o", out, "--model", ' "reelscribe/shapes"\n', "--max-tokens", "4")
    assert first.exit_code == 0, first.stderr
    again = run("caption", video("h264.mp4"), "-o", out, "--model", "reelscribe/shapes", "--max-tokens", "4")
    assert again.exit_code == 0, again.stderr


# servers know their own names


@pytest.fixture
def no_hub(monkeypatch):
    """Served names are not looked up on the hub."""
    monkeypatch.setattr("reelscribe.models.server.captioner._load_rules", lambda *names: (None, None))


@pytest.mark.parametrize(
    ("served", "named", "known"),
    [
        ("qwen3-vl:8b", "qwen3-vl:8b", "qwen3-vl:8b"),
        ("qwen3-vl:latest", "qwen3-vl", "qwen3-vl:latest"),
        ("qwen3-vl", "qwen3-vl:latest", "qwen3-vl"),
        (NAME, f"https://huggingface.co/{NAME}", NAME),
        (NAME, f" '{NAME}' ", NAME),
        (f" {NAME}", f" {NAME}", f" {NAME}"),
    ],
)
def test_a_server_is_asked_for_the_model_by_its_own_name(no_hub, served, named, known):
    server = ChatServer()
    server.models = [{"id": served}, {"id": "another"}]
    with running(server) as url:
        captioner = load_captioner(ModelSpec("server", named, {"base_url": url}))
        captioner.close()
    assert captioner.model == known
    assert {body["model"] for body in server.bodies} == {known}


def test_a_server_that_lists_no_models_is_asked_for_what_was_meant(no_hub):
    server = ChatServer()
    server.models = None
    with running(server) as url:
        captioner = load_captioner(ModelSpec("server", f"https://huggingface.co/{NAME}\n", {"base_url": url}))
        captioner.close()
    assert captioner.model == NAME


def test_the_processor_beside_a_server_may_be_pasted():
    server = ChatServer()
    with running(server) as url:
        options = {"base_url": url, "processor": "'reelscribe/shapes'"}
        captioner = load_captioner(ModelSpec("server", "served", options))
        captioner.close()
    assert captioner.policy.sizer == "video_budget"


# parameters


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load_in_4bit": True}, 'quantization_config={"load_in_4bit": true}'),
        ({"load_in_8bit": True}, 'quantization_config={"load_in_4bit": true}, or load_in_8bit'),
        ({"bnb_4bit_compute_dtype": "bfloat16"}, "quantization_config=.*with this next to it"),
        ({"quantization_config": "awq"}, "must be a mapping.*got 'awq' .*AWQ or GPTQ, needs none"),
        ({"quantization_config": {}}, "must be a mapping"),
        ({"max_pixels": 100_000}, r"--max-pixels \(max_pixels\)"),
        ({"nframes": 8}, r"--num-frames \(num_frames\)"),
        ({"fps": 1}, r"--fps \(fps\)"),
        ({"time_tolerance_seconds": 1}, "--time-tolerance "),
        ({"temperature": 0.5}, r"--sampling-param temperature=… \(sampling_params\)"),
        ({"max_new_tokens": 9}, "--sampling-param max_new_tokens"),
        ({"num_beams": 2}, "beam search is not supported"),
        ({"use_flash_attention_2": True}, "attn_implementation=flash_attention_2"),
        ({"tensor_parallel_size": 2}, r"enable_vllm \(--vllm\)"),
        ({"enable_thinking": False}, "chat_template_kwargs="),
        ({"dtype": "int8"}, "dtype must be.*got 'int8'"),
        ({"dtype": "torch.nonsense"}, "dtype must be"),
    ],
)
def test_a_parameter_that_belongs_elsewhere_says_where(options, words):
    with pytest.raises(SettingsError, match=words):
        load_model("reelscribe/shapes", {"device": "cpu", **options})


@pytest.mark.parametrize("given", ["bf16", "BF16", "torch.bfloat16", " bfloat16 "])
def test_a_number_type_may_be_spelled_as_people_do(given):
    assert str(load_model("reelscribe/shapes", {"device": "cpu", "dtype": given}).model.dtype) == "torch.bfloat16"


def test_names_that_no_file_system_has_are_no_errors_of_the_system():
    for name in ("~nobody-of-this-name/x", "x" * 5000, "a\0b", os.sep + "x" * 5000):
        with pytest.raises(ReelscribeError):
            load_captioner(ModelSpec("hf", name))
