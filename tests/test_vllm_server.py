"""The whole command against a real vLLM server: exact frames and times over HTTP, and a server that goes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from reelscribe.cli import main
from reelscribe.demo.render import EVALUATION_SEEDS, render_clip
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.types import CaptionRequest, Failure, RequestId
from reelscribe.video.reader import read_clip

pytestmark = pytest.mark.vllm

CLIPS = 30
MODEL = "reelscribe/shapes"
PROMPT = "Describe the input video in 1-2 sentences."
LIMIT_SECONDS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        render_clip(folder / f"{i:02d}.mp4", EVALUATION_SEEDS + 90_000 + i)
    return folder


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """What the transformers captioner says of the clips, greedily."""
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    result = CliRunner().invoke(
        main, ["caption", str(folder), "-o", str(output), "--model", MODEL, "--temperature", "0"]
    )
    assert result.exit_code == 0, result.output
    return captions(output)


def captions(output):
    return [json.loads(line)["captions"] for line in output.read_text("utf-8").splitlines()]


def test_the_whole_command_says_what_transformers_says(folder, expected, chat_url, tmp_path):
    output = tmp_path / "out.jsonl"
    options = ["--model", MODEL, "--server", chat_url, "--temperature", "0", "--model-param", "frame_format=png"]
    result = CliRunner().invoke(main, ["caption", str(folder), "-o", str(output), *options])
    assert result.exit_code == 0, result.output
    assert "sent as one video of PNG frames with their exact times (video_url)" in result.stdout
    assert captions(output) == expected


def test_prompt_tokens_over_http_are_as_many_as_in_process(folder, chat_url):
    """Times that are no frame numbers reach the server: another rounding would give another number of tokens."""
    from dataclasses import replace

    hf, server = (
        load_captioner(ModelSpec(*spec)) for spec in (("hf", MODEL), ("server", MODEL, {"base_url": chat_url}))
    )
    clip = read_clip(str(folder / "00.mp4"), server.policy)
    assert not isinstance(clip, Failure)
    times = [0.0, 10.25, 100.5, 999.75][: len(clip.frames)]
    odd = replace(clip, frames=clip.frames[: len(times)], pts_seconds=clip.pts_seconds[: len(times)] * 0 + times)
    request = CaptionRequest(RequestId(0, 0), "00.mp4", PROMPT)
    (ours,), (theirs,) = (list(one.caption([(request, odd)])) for one in (server, hf))
    assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    hf.close()
    server.close()


def test_sampled_candidates_come_again_with_the_same_seed(folder, chat_url, tmp_path):
    said = []
    for name in ("a.jsonl", "b.jsonl"):
        options = ["--model", MODEL, "--server", chat_url, "--candidates", "4", "--keep", "all", "--limit", "8"]
        result = CliRunner().invoke(main, ["caption", str(folder), "-o", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        said.append(captions(tmp_path / name))
    assert said[0] == said[1]
    assert sum(len(set(four)) > 1 for four in said[0]) >= 5


@pytest.mark.slow
def test_an_outage_in_mid_run_loses_no_row(folder, expected, tmp_path):
    from vllm_server import VLLMServer

    server = VLLMServer(tmp_path)
    server.start()
    seen = {}

    def outage():
        """Once some videos are answered: the server is killed, stays away a while, and comes back."""
        while server.answered() < seen["before"] + 5:
            time.sleep(0.005)
        server.kill()
        seen["at"] = server.answered()
        time.sleep(3)
        server.start()

    output = tmp_path / "out.jsonl"
    options = ["--server", server.url, "--temperature", "0", "--batch-size", "2", "--model-param", "frame_format=png"]
    command = [
        sys.executable,
        "-m",
        "reelscribe",
        "caption",
        str(folder),
        "-o",
        str(output),
        "--model",
        MODEL,
        *options,
    ]
    seen["before"] = server.answered()
    thread = threading.Thread(target=outage)
    thread.start()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env={**os.environ})
    finally:
        thread.join()
        server.kill()
    assert run.returncode == 0, run.stdout + run.stderr
    assert seen["at"] - seen["before"] < CLIPS
    assert captions(output) == expected
