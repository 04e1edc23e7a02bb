"""The commands: options to parameters, exit codes, one line an error, and a light start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import reelscribe
from reelscribe import ScriptedCaptioner, cli
from reelscribe.models.captioner import ModelSpec
from reelscribe.operator import OPERATOR_NAME, VideoCaptioningFromVLMMapper
from reelscribe.options import parameters_of
from reelscribe.runners.settings import build_operator
from reelscribe.settings import ClusterSettings, RunSettings, parameter_names, part_settings, settings_of
from rows import jsonl, load

HEAVY = (
    "data_juicer",
    "torch",
    "torchvision",
    "transformers",
    "av",
    "numpy",
    "pyarrow",
    "datasets",
    "pydantic",
    "rich",
    "yaml",
)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[ModelSpec]:
    """Specs of the models that were asked for; a scripted one answers for them all."""
    specs: list[ModelSpec] = []

    def load(spec: ModelSpec) -> ScriptedCaptioner:
        specs.append(spec)
        return ScriptedCaptioner(lambda request, i: "" if "broken" in request.video else f"{request.prompt[:8]} {i}")

    monkeypatch.setattr("reelscribe.operator.load_captioner", load)
    return specs


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "in.jsonl", [{"video": f"{i}.mp4"} for i in range(3)])


# caption


def test_every_row_captioned_is_exit_code_0(tmp_path: Path, good: Path, loaded: list[ModelSpec]) -> None:
    output = tmp_path / "out.jsonl"
    result = run("caption", good, "-o", output, "--candidates", 2, "--keep", "all", "--prompt", "Describe it.")
    assert result.exit_code == 0, result.output
    assert load(output)[2] == {"video": "2.mp4", "captions": ["Describe 0", "Describe 1"]}
    for part in ("rows in   3", "captions  6 for 3 videos", "failed    0 rows", "videos/s", str(output)):
        assert part in result.stdout
    assert "Traceback" not in result.output


def test_a_profile_has_the_time_of_each_stage(tmp_path: Path, good: Path, loaded: list[ModelSpec]) -> None:
    profile = tmp_path / "sub/profile.json"
    result = run("caption", good, "-o", tmp_path / "out.jsonl", "--profile", profile)
    assert result.exit_code == 0, result.output
    assert "\nbound     " in result.stdout
    figures = json.loads(profile.read_text())
    assert list(figures["stages"]) == ["rows", "write"]
    assert figures["rows"] == figures["videos"] == 3
    assert figures["seconds"] >= figures["stages"]["rows"]["busy_seconds"] > 0


def test_some_rows_failed_is_exit_code_3(tmp_path: Path, loaded: list[ModelSpec]) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "broken.mp4"}])
    output = tmp_path / "out.jsonl"
    result = run("caption", source, "-o", output)
    assert result.exit_code == 3
    assert "empty_caption  1  the model gave no text" in result.stdout
    assert str(output) + ".failures.jsonl" in result.stdout.replace("\n", "")
    assert [row["kind"] for row in load(tmp_path / "out.jsonl.failures.jsonl")] == ["empty_caption"]
    refused = run("caption", source, "-o", output, "--drop-original")
    assert refused.exit_code == 1
    assert "keep_original_sample was true and is now false" in refused.stderr
    assert run("caption", source, "-o", output, "--drop-original", "--update").exit_code == 3
    assert len(load(output)) == 1


def test_options_become_the_operators_parameters(
    tmp_path: Path, good: Path, loaded: list[ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def spy(parameters: dict[str, Any]) -> VideoCaptioningFromVLMMapper:
        made.append(parameters)
        return build_operator(parameters)

    monkeypatch.setattr("reelscribe.runners.settings.build_operator", spy)
    options = (
        "--model m --candidates 3 --keep similar_one_simhash --drop-original --prompt p --system-prompt s --fps 2.5 "
        "--min-frames 2 --max-frames 9 --time-tolerance 0.25 --min-pixels 1000 --max-pixels 9000 --start 0 --end 4.5 "
        "--max-tokens 64 --temperature 0 --top-p 0.5 --top-k -1 --seed 7 --text-key t --video-key video "
        "--caption-key c --failure-key f --workers 2 --device cpu --dtype float32 --batch-size 4 "
        "--pixel-aspect display --tone-map --deinterlace "
        "--model-param revision=main --model-param trust_remote_code=true "
        "--sampling-param stop=[a,b] --sampling-param min_p=0.1"
    )
    expected = {
        "hf_model": "m", "caption_num": 3, "keep_candidate_mode": "similar_one_simhash",
        "keep_original_sample": False, "prompt": "p", "system_prompt": "s", "fps": 2.5, "min_frames": 2,
        "time_tolerance_seconds": 0.25, "max_frames": 9, "min_pixels": 1000, "max_pixels": 9000, "start_seconds": 0.0,
        "end_seconds": 4.5, "seed": 7, "pixel_aspect": "display", "tone_map": True, "deinterlace": True,
        "text_key": "t", "video_key": "video", "caption_key": "c", "failure_key": "f", "num_proc": 2, "batch_size": 4,
        "model_params": {"device": "cpu", "dtype": "float32", "revision": "main", "trust_remote_code": True},
        "sampling_params": {
            "max_tokens": 64, "temperature": 0.0, "top_p": 0.5, "top_k": -1, "stop": ["a", "b"], "min_p": 0.1
        },
    }  # fmt: skip
    result = run("caption", good, "-o", tmp_path / "out.jsonl", *options.split())
    assert result.exit_code == 0, result.output
    assert made == [expected]


def test_no_option_leaves_everything_to_the_operator() -> None:
    given = dict.fromkeys(parameter_names())
    assert parameters_of({**given, "model_params": {}, "sampling_params": {}}) == {
        "model_params": None,
        "sampling_params": None,
    }


def test_every_option_of_caption_is_a_parameter_of_the_operator_or_of_the_run() -> None:
    names = {parameter.name for parameter in cli.main.commands["caption"].params}
    assert names - set(parameter_names()) - set(part_settings()) == {
        "input",
        "output",
        "profile",
        *settings_of(RunSettings),
        *settings_of(ClusterSettings),
    }


def test_limit(tmp_path: Path, good: Path, loaded: list[ModelSpec]) -> None:
    assert run("caption", good, "-o", tmp_path / "out.jsonl", "--limit", 2).exit_code == 0
    assert len(load(tmp_path / "out.jsonl")) == 2


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_package_that_is_missing_is_one_line(tmp_path: Path, good: Path) -> None:
    result = run("caption", good, "-o", tmp_path / "out.jsonl", "--vllm")
    assert result.exit_code == 1
    assert "error: enable_vllm (--vllm) needs the package 'vllm': pip install 'reelscribe[vllm]'" in result.stderr
    assert "Traceback" not in result.output


def test_a_server_is_named_by_its_address(tmp_path: Path, good: Path, loaded: list[ModelSpec]) -> None:
    options = ["--model", "m", "--server", "http://localhost:8000/v1", "--model-param", "api_key_env=KEY"]
    assert run("caption", good, "-o", tmp_path / "out.jsonl", *options).exit_code == 0
    assert loaded == [ModelSpec("server", "m", {"base_url": "http://localhost:8000/v1", "api_key_env": "KEY"})]
    assert run("caption", good, "-o", tmp_path / "out.jsonl", *options, "--vllm").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["gone.jsonl", "-o", "out.jsonl"], "no file or folder matches 'gone.jsonl'"),
        (["in.jsonl", "-o", "out.txt"], "cannot tell the format of output 'out.txt'"),
        (["in.jsonl", "-o", "in.jsonl"], "would overwrite the input"),
        (["in.jsonl", "-o", "out.jsonl", "--prompt-key", "ask"], "no row has that field; the fields are video"),
        (["in.jsonl", "-o", "out.jsonl", "--fps", "2", "--num-frames", "4"], "fps"),
        (["in.jsonl", "-o", "out.jsonl", "--start", "2", "--end", "1"], "must not end before it starts"),
        (["in.jsonl", "-o", "out.jsonl", "--sampling-param", "temprature=1"], "did you mean temperature"),
        (["bad.jsonl", "-o", "out.jsonl"], "bad.jsonl:1 is not JSON"),
    ],
)
def test_set_up_errors_are_one_line_and_exit_code_1(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("{")
    before = sorted(tmp_path.iterdir())
    result = run("caption", *arguments)
    assert result.exit_code == 1, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert what in last
    assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption"],
        ["caption", "in.jsonl"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--candidates", "0"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--keep", "best"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--model-param", "revision"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--model-param", "a=[1"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--model-param", "a=1", "--model-param", "a=2"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--top-k", "5", "--sampling-param", "top_k=6"],
        ["caption", "in.jsonl", "-o", "x.jsonl", "--no-such-option"],
        ["process"],
        ["no-such-command"],
    ],
)
def test_usage_errors_are_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


# process


def test_a_recipe_is_run(tmp_path: Path, loaded: list[ModelSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "in.jsonl", [{"text": "<v> old", "videos": ["a.mp4"]}])
    (tmp_path / "recipe.yaml").write_text(
        "dataset_path: in.jsonl\nexport_path: out/out.jsonl\nvideo_special_token: '<v>'\nproject_name: x\n"
        f"process:\n  - {OPERATOR_NAME}: {{hf_model: m, caption_num: 2, keep_candidate_mode: all, memory: 1GB}}\n"
    )
    result = run("process", "--config", "recipe.yaml")
    assert result.exit_code == 0, result.output
    assert [row["text"] for row in load(tmp_path / "out/out.jsonl")] == [
        "<v> old", "<v> Describe 0 <|__dj__eoc|>", "<v> Describe 1 <|__dj__eoc|>"
    ]  # fmt: skip
    assert "note: keys of the recipe that are not used here: project_name" in result.stderr
    assert "not used here: memory" in result.stderr
    assert [spec.model for spec in loaded] == ["m"]


def test_a_recipe_with_other_operators_names_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"dataset_path: x\nexport_path: y\nprocess: [{{video_duration_filter: }}, {{{OPERATOR_NAME}: }}]"
    )
    result = run("process", "--config", tmp_path / "recipe.yaml")
    assert result.exit_code == 1
    assert "also contains video_duration_filter" in result.stderr


# the rest


def test_demo_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run_demo(folder: Path, **options: Any) -> int:
        seen.update(options, folder=folder)
        return 3

    monkeypatch.setattr("reelscribe.demo.run.run_demo", run_demo)
    result = run("demo", "--out", tmp_path / "d", "--clips", 2, "--candidates", 1, "--seed", 5)
    assert result.exit_code == 3, result.output
    assert seen.pop("console")
    assert seen == {"folder": tmp_path / "d", "clips": 2, "candidates": 1, "seed": 5}


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.output.strip()) == (0, f"reelscribe, version {reelscribe.__version__}")


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["process", "-h"], ["demo", "-h"]])
def test_help_is_there(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_nothing_heavy_is_imported_for_help() -> None:
    code = f"import sys, reelscribe.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_answers_in_half_a_second_of_the_processors_time() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "reelscribe", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_ctrl_c_stops_cleanly_with_one_line(tmp_path: Path, good: Path) -> None:
    code = (
        "import os, signal, reelscribe.operator as mapper, reelscribe.cli as cli\n"
        "from reelscribe import ScriptedCaptioner\n"
        "stop = lambda request, i: os.kill(os.getpid(), signal.SIGINT) or 'x'\n"
        "mapper.load_captioner = lambda spec: ScriptedCaptioner(stop)\n"
        "cli.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "caption", good, "-o", tmp_path / "out.jsonl"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (result.returncode, signal.SIGINT) == (130, 2), result.stderr
    assert result.stderr.splitlines()[1:] == ["stopped; no row was finished, and nothing was written"]
    assert list(tmp_path.iterdir()) == [good]


SLOW_MODEL = """
import sys, time
import reelscribe.operator as mapper, reelscribe.cli as cli
from reelscribe.models import load_captioner
from reelscribe.models.hf.generate import _Draft
inner = _Draft.append
def slow(self, step, *args):
    inner(self, step, *args)
    print("step", step, flush=True)
    time.sleep(0.05)
_Draft.append = slow
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_stops_a_real_run_within_two_seconds_and_it_goes_on(
    tmp_path: Path, video: Callable[[str], Path]
) -> None:
    """One stop in three need be that quick; on a busy machine it takes longer, which says nothing of the code."""
    rows = [{"id": n, "video": str(video(name))} for n, name in enumerate(["h264.mp4", "hevc.mp4", "vp9.webm"] * 40)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    options = ["--model", "reelscribe/shapes", "--device", "cpu", "--batch-size", "2", "--max-tokens", "8"]
    took = []
    for _ in range(3):
        stopping = subprocess.Popen(
            [sys.executable, "-c", SLOW_MODEL, "caption", source, "-o", output, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert stopping.stdout is not None
        for _ in range(60):  # a few batches
            assert stopping.stdout.readline()
        began = time.monotonic()
        stopping.send_signal(signal.SIGINT)
        _, errors = stopping.communicate(timeout=30)
        took.append(time.monotonic() - began)
        assert stopping.returncode == 130, errors
        folder = output.parent / ".out.jsonl.run"
        assert re.fullmatch(
            rf"stopped; [\d,]+ rows are finished and kept in {folder}; rerun the same command to resume",
            errors.splitlines()[-1],
        )
        assert not output.exists()
        for part in (folder / "parts").iterdir():
            done = load(part)
            assert [row["id"] for row in done] == list(range(len(done)))
            assert all(row["captions"] for row in done)
    assert min(took) < (2 if os.getloadavg()[0] < 2 * (os.cpu_count() or 1) else 20), took
    assert run("caption", source, "-o", output, *options).exit_code == 0
    assert [row["id"] for row in load(output)] == list(range(len(rows)))


def test_real_videos_through_the_bundled_model(tmp_path: Path, video: Callable[[str], Path]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "good.mp4").symlink_to(video("h264.mp4"))
    (folder / "missing.mp4").symlink_to(tmp_path / "gone.mp4")
    (folder / "text.mp4").write_text("no video at all")
    output = tmp_path / "out.jsonl"
    result = run("caption", folder, "-o", output, "--model", "reelscribe/shapes", "--device", "cpu")
    assert result.exit_code == 3, result.output
    assert "is a demonstration model" in result.stdout
    captions = [row["captions"] for row in load(output)]
    assert [bool(kept) for kept in captions] == [True, False, False]
    assert [row["kind"] for row in load(tmp_path / "out.jsonl.failures.jsonl")] == ["not_found", "unreadable"]


def test_retry_needs_nothing_but_the_output(
    tmp_path: Path, loaded: list[ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "broken.mp4"}, {"video": "b.mp4"}])
    output = tmp_path / "out.jsonl"
    assert run("caption", source, "-o", output, "--max-source-seconds", "50", "--seed", "3").exit_code == 3
    refused = run("retry", tmp_path / "other.jsonl")
    assert (refused.exit_code, "no run with the output" in refused.stderr) == (1, True)
    assert "unknown failure kind 'gone'; expected one of" in run("retry", output, "--kind", "gone").stderr
    before = output.read_bytes()
    nothing = run("retry", output, "--kind", "timeout", "--max-read-seconds", "10")
    assert (nothing.exit_code, output.read_bytes()) == (3, before)
    monkeypatch.setattr(
        "reelscribe.operator.load_captioner", lambda spec: ScriptedCaptioner(lambda request, i: "mended")
    )
    monkeypatch.chdir(tmp_path / "..")
    result = run("retry", output, "--max-source-seconds", "100")
    assert result.exit_code == 0, result.output
    assert [row["captions"] for row in load(output)] == [["Describe 0"], ["mended"], ["Describe 0"]]
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()
    again = run("caption", source, "-o", output, "--max-source-seconds", "50", "--seed", "3")
    assert (again.exit_code, "already finished" in again.output.replace("\n", " ")) == (0, True)


def test_too_many_failures_are_exit_code_4(tmp_path: Path, loaded: list[ModelSpec]) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "broken.mp4"}] * 5)
    result = run("caption", source, "-o", tmp_path / "out.jsonl", "--max-failures", "2")
    assert result.exit_code == 4
    assert "3 of 3 rows failed" in result.stderr
    assert run("caption", source, "-o", tmp_path / "out.jsonl", "--max-failures", "many").exit_code == 2
    assert run("caption", source, "-o", tmp_path / "out.jsonl", "--max-failures", "100%").exit_code == 3
