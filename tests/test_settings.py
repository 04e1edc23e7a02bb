"""One model of all settings, and what is derived from it."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.data import Target, open_source
from reelscribe.errors import SettingsError
from reelscribe.models.captioner import ModelSpec, ThinkingSettings
from reelscribe.runners.run.identity import RunIdentity
from reelscribe.runners.run.run import caption_file
from reelscribe.settings import (
    ANSWER,
    NOTHING,
    ROWS,
    ClusterSettings,
    Option,
    Panel,
    RunSettings,
    Settings,
    command_settings,
    is_stricter,
    operator_settings,
    settings_of,
    signature,
)
from reelscribe.types import CaptionRequest, RequestId, TimeWindow
from reelscribe.video.frames.policy import FrameSettings
from rows import jsonl

GOLDEN = Path(__file__).parent / "golden/run_identity.json"
"""What the version that began runs wrote, before there was a settings model."""


UNNEEDED = (
    "torch", "torchvision", "transformers", "vllm", "ray", "av", "pyarrow", "datasets", "data_juicer", "rich", "yaml",
)  # fmt: skip


# the identity of runs that were begun before

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing set": {"hf_model": "no/model", "video_root": "s3://bucket/v"},
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
        "hf_model": "no/model", "video_root": "s3://bucket/v", "caption_num": 1, "num_frames": 4,
        "reasoning_key": None, "thinking": "off", "thinking_tokens": 2048, "pixel_aspect": "stored", "tone_map": False,
        "deinterlace": False, "fit": False, "allow_images": False, "max_source_seconds": 86400,
    },
    "a spec from Python": {
        "video_root": "s3://bucket/v",
        "captioner": ModelSpec(
            "hf", "no/model", {"device": "cpu", "prompt_order": "text_first"},
            frames=FrameSettings(fps=2.0, tone_map=False), thinking=ThinkingSettings(on=True),
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


# a field is all that an option takes

MORE = '''
import inspect, json, sys
from pathlib import Path
from typing import Annotated
import reelscribe.settings as settings
from reelscribe.settings import ANSWER, ROWS, Option, Panel, PositiveInt, Stricter

class Settings(settings.Settings):
    dummy_frames: Annotated[PositiveInt, Option(ANSWER, "--dummy", Panel.FRAMES, later=True)] = 3
    """Dummies of `max_frames`.

    Not in the help."""
    dummy_limit: Annotated[
        PositiveInt | None, Option(ROWS, "--dummy-limit", Panel.ACCESS, stricter=Stricter.LOWER, later=True)
    ] = None
    """A larger dummy fails."""

settings.Settings = Settings

from click.testing import CliRunner
from reelscribe import VideoCaptioningFromVLMMapper, cli
from reelscribe.data import Target, open_source
from reelscribe.recipe import parse_recipe
from reelscribe.runners.run.identity import RunIdentity
import test_docs

def help_of(command):
    return CliRunner().invoke(cli.main, [command, "--help"]).output

def parsed(*words):
    context = cli.main.commands["caption"].make_context("caption", ["in.jsonl", "-o", "out.jsonl", *words])
    return context.params["dummy_frames"]

def identity(**given):
    operator = VideoCaptioningFromVLMMapper("no/model", **given)
    return RunIdentity.of(operator, open_source(sys.argv[1]), Target.of(Path(sys.argv[2])), limit=None)

recipe = {"dataset_path": "x", "export_path": "y.jsonl"}
entry = {"dummy_frames": 5, "dummy_limit": 6}
default, other, low = identity(), identity(dummy_frames=4), identity(dummy_limit=10)
by_position, by_keyword = test_docs.parameter_tables()
print(json.dumps({
    "help": help_of("caption"),
    "retry": [name in help_of("retry") for name in ("--dummy-limit", "--dummy ")],
    "parsed": [parsed(), parsed("--dummy", "7")],
    "refused": CliRunner().invoke(cli.main, ["caption", "in.jsonl", "-o", "o.jsonl", "--dummy", "0"]).exit_code,
    "signature": str(inspect.signature(VideoCaptioningFromVLMMapper).parameters["dummy_frames"].default),
    "docstring": "dummy_frames: Dummies of" in VideoCaptioningFromVLMMapper.__doc__,
    "recipe": parse_recipe({**recipe, "process": [{"video_captioning_from_vlm_mapper": entry}]}).parameters,
    "writing": [one.writing.get("dummy_frames") for one in (default, other)],
    "rows": [one.rows.get("dummy_limit") for one in (default, low)],
    "is_stricter": [low.is_stricter(default.as_dict()), default.is_stricter(low.as_dict())],
    "differences": default.differences(other.as_dict()),
    "page": sorted(test_docs.wrong_rows(by_position + by_keyword, settings.operator_settings())),
}))
'''


def test_a_field_of_the_model_is_all_that_an_option_takes(tmp_path: Path) -> None:
    """In a process of its own, where the model has two fields more before anything else is loaded."""
    (tmp_path / "more.py").write_text(MORE)
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    search = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parent.parent / 'src'}"}
    found = json.loads(
        subprocess.run(
            [sys.executable, tmp_path / "more.py", source, tmp_path / "out.jsonl"],
            capture_output=True, check=True, env={**os.environ, **search, "COLUMNS": "100"},
        ).stdout
    )  # fmt: skip
    panels = re.split(r"^(\w.*):$", found.pop("help"), flags=re.MULTILINE)
    shown = panels[panels.index("Frames shown to the model") + 1]
    assert re.search(r"--dummy N +Dummies of --max-frames.  \[default: 3\]  \[x>=1\]", shown)
    assert "Not in the help" not in shown
    assert "--dummy-limit" in panels[panels.index("Videos that may be read") + 1]
    assert found == {
        "retry": [True, False],
        "parsed": [None, 7],
        "refused": 2,
        "signature": "3",
        "docstring": True,
        "recipe": {"dummy_frames": 5, "dummy_limit": 6},
        "writing": [None, 4],
        "rows": [None, 10],
        "is_stricter": [True, False],
        "differences": ["dummy_frames was 4 and is now null"],
        "page": ["dummy_frames", "dummy_limit"],
    }


# what is derived


def test_the_nine_of_the_contract_come_first_and_may_be_given_by_position() -> None:
    kinds = [one.kind for one in signature().parameters.values()]
    assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 9 + [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - 9)
    assert list(signature().parameters)[:9] == [
        "hf_model", "enable_vllm", "caption_num", "keep_candidate_mode", "keep_original_sample", "prompt", "prompt_key",
        "model_params", "sampling_params",
    ]  # fmt: skip
    assert inspect.signature(VideoCaptioningFromVLMMapper) == signature()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("m",), {"hf_model": "n"}, "hf_model"),
        (("m", False, 1, "all", True, None, None, None, None, "text"), {}, "positional"),
        ((), {"caption_nums": 1}, "caption_nums"),
        (("m", "x"), {}, "enable_vllm"),
        ((), {"caption_num": "2"}, "caption_num"),
        ((), {"keep_candidate_mode": "best"}, "'similar_one_simhash'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoCaptioningFromVLMMapper(*args, **kwargs)


def test_every_option_has_a_sentence_and_a_flag_of_its_own() -> None:
    models = (Settings, RunSettings, ClusterSettings)
    assert [name for model in models for name, one in settings_of(model).items() if not one.summary] == []
    flags = [one.option.flag for one in command_settings().values()]
    assert len(flags) == len(set(flags))
    assert [name for name, one in command_settings().items() if one.option.panel is Panel.OTHER] == []


def test_what_refuses_videos_decides_rows_and_is_open_to_a_retry() -> None:
    stricter = {name: one for name, one in operator_settings().items() if one.option.stricter is not None}
    assert {one.option.scope for one in stricter.values()} == {ROWS}
    assert all(one.fits_retry for one in stricter.values())


@pytest.mark.parametrize(
    ("before", "now", "is_so"),
    [
        ({"max_source_frames": 10}, {"max_source_frames": 9}, True),
        ({"max_source_frames": 10}, {"max_source_frames": 10}, False),
        ({"max_source_frames": 10}, {"max_source_frames": 11}, False),
        ({"max_source_bytes": None}, {"max_source_bytes": 9}, True),
        ({"max_source_bytes": 9}, {"max_source_bytes": None}, False),
        ({"media_root": None}, {"media_root": "/a"}, True),
        ({"media_root": "/a"}, {"media_root": "/b"}, True),
        ({"media_root": "/a"}, {"media_root": None}, False),
        ({"allow_images": True}, {}, True),
        ({}, {"allow_images": True}, False),
        ({"allow_remote": True}, {"allow_remote": False}, True),
        ({"seed": 1}, {"seed": 2}, False),
    ],
)
def test_which_settings_refuse_what_others_let_through(
    before: dict[str, Any], now: dict[str, Any], is_so: bool
) -> None:
    assert is_stricter(before, now) is is_so


def test_settings_of_a_run_are_checked_where_they_are_given(tmp_path: Path) -> None:
    operator = VideoCaptioningFromVLMMapper(captioner=ModelSpec("scripted", "x"))
    for wrong in ({"limit": "3"}, {"limits": 3}, {"cut": "rough"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            caption_file(operator, tmp_path / "in.jsonl", tmp_path / "out.jsonl", **wrong)


def test_settings_stand_in_the_identity_by_their_scope() -> None:
    known, kept = operator_settings(), json.loads(GOLDEN.read_text("utf-8"))["everything set"]
    assert {known[name].option.scope for name in kept["rows"] if name in known} == {ROWS}
    assert {known[name].option.scope for name in kept["writing"] if name in known} == {ANSWER}
    free = {name for name, one in known.items() if one.option.scope is NOTHING}
    assert free & {*kept["rows"], *kept["writing"]} == set()


def test_an_option_needs_a_scope() -> None:
    with pytest.raises(TypeError, match="scope"):
        Option(flag="--x")  # type: ignore[call-arg]


@pytest.mark.parametrize("command", ["caption", "process", "retry", "bench"])
def test_the_help_of_a_command_loads_no_library_that_runs_models_or_reads_data(command: str) -> None:
    code = (
        "import sys\nfrom reelscribe.cli import main\n"
        f"main([{command!r}, '--help'], standalone_mode=False)\n"
        f"print([name for name in {UNNEEDED!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
