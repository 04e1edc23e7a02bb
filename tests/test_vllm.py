"""vLLM's real engine with the bundled checkpoint: what it reads, what it writes, and what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import thinkers
import vllm_families
from adapters import merged, write_lora
from reelscribe.demo.render import EVALUATION_SEEDS, render_clip
from reelscribe.demo.scenes import parse_caption
from reelscribe.errors import MissingExtraError, ModelError, SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import ThinkingSettings, generation_config
from reelscribe.models.vllm.captioner import _Engine
from reelscribe.operator import VideoCaptioningFromVLMMapper
from reelscribe.types import CaptionRequest, Clip, Failure, RequestId
from reelscribe.video.frames.moments import FrameSettings
from reelscribe.video.reader import read_clip

MODEL = "reelscribe/shapes"
PROMPT = "Describe the input video in 1-2 sentences."
HELD_OUT = 40
LOGIT_GAP = 1e-2
HAS_VLLM = find_spec("vllm") is not None
needs_vllm = pytest.mark.vllm


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"pip install 'reelscribe\[vllm\]'"):
        load_captioner(ModelSpec("vllm", MODEL))


@pytest.fixture(scope="module")
def engine():
    captioner = load_captioner(ModelSpec("vllm", MODEL))
    yield captioner
    captioner.close()


@pytest.fixture(scope="module")
def hf():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    captioner = load_captioner(ModelSpec("hf", MODEL))
    yield captioner
    captioner.close()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, hf):
    """(request, clip, true facts) of clips the checkpoint has never seen."""
    folder = tmp_path_factory.mktemp("held_out")
    jobs = []
    for row in range(HELD_OUT):
        scene = render_clip(folder / f"{row}.mp4", EVALUATION_SEEDS + 80_000 + row)
        clip = read_clip(str(scene.path), hf.policy)
        assert not isinstance(clip, Failure)
        jobs.append(
            (CaptionRequest(RequestId(row, 0), str(scene.path), PROMPT, seed=1000 + row), clip, scene.scene.facts)
        )
    return jobs


def by_row(results):
    return {result.request_id.row: result for result in results}


def texts(results):
    return {row: [one.text for one in result.candidates] for row, result in by_row(results).items()}


def asking(jobs, *, candidates=1):
    return [(replace(request, num_candidates=candidates), clip) for request, clip, _ in jobs]


def changed(clip, *, pts=None, frames=None):
    keep = slice(None if frames is None else frames)
    times = clip.pts_seconds[keep] if pts is None else np.asarray(pts, float)
    return replace(clip, frames=clip.frames[keep][: len(times)], pts_seconds=times)


# the same as transformers


def prompts_of(engine, jobs, monkeypatch):
    """Prompt tokens by row, as the engine expanded them."""
    seen = {}
    answer = _Engine.answer

    async def spy(self, request, clip):
        generate = self._llm.generate

        async def recorded(*args, **kwargs):
            async for output in generate(*args, **kwargs):
                seen[request.id.row] = list(output.prompt_token_ids)
                yield output

        with monkeypatch.context() as patch:
            patch.setattr(self._llm, "generate", recorded, raising=False)
            return await answer(self, request, clip)

    with monkeypatch.context() as patch:
        patch.setattr(_Engine, "answer", spy)
        for job in jobs:  # one at a time: the spy knows the request it is for
            list(engine.caption([job]))
    return seen


@needs_vllm
def test_prompt_tokens_and_times_are_those_of_the_transformers_captioner(engine, hf, held_out, monkeypatch):
    request, clip, _ = held_out[0]
    variants = [
        (request, clip),
        (replace(request, prompt="When?", system_prompt="Be brief."), clip),
        (request, changed(clip, pts=[0.0, 0.217, 1.003, 1.99])),
        (request, changed(clip, pts=[7.25, 8.5])),
        (request, changed(clip, frames=5)),
        *((one, its_clip) for one, its_clip, _ in held_out[1:6]),
    ]
    jobs = [(replace(one, id=RequestId(row, 0)), its_clip) for row, (one, its_clip) in enumerate(variants)]
    found = prompts_of(engine, jobs, monkeypatch)
    for one, its_clip in jobs:
        expected = hf._inputs([hf._job(one, its_clip)])["input_ids"][0].tolist()
        assert found[one.id.row] == expected, one.id
    marks = hf._processor.tokenizer.decode(found[2])
    assert "<0.1 seconds>" in marks
    assert "<1.5 seconds>" in marks


@needs_vllm
def test_greedy_captions_are_those_of_the_transformers_captioner(engine, hf, held_out):
    theirs, ours = texts(hf.caption(asking(held_out))), texts(engine.caption(asking(held_out)))
    assert len(ours) == HELD_OUT >= 30
    for request, clip, _ in held_out:
        row = request.id.row
        if ours[row] != theirs[row]:
            gap = logit_gap(hf, request, clip, ours[row][0], theirs[row][0])
            print(f"{row}: {ours[row][0]!r} and {theirs[row][0]!r} part at a logit gap of {gap:.1e}")
            assert gap < LOGIT_GAP


def logit_gap(hf, request, clip, one, other):
    """How far apart the transformers model holds the first tokens in which two texts differ."""
    tokens = [hf._processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other)]
    tokens = [[*ids, *hf._eos_ids][: len(ids) + 1] for ids in tokens]
    place = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
    inputs = dict(hf._inputs([hf._job(request, clip)]))
    shared = torch.tensor([tokens[0][:place]], dtype=torch.long)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            new = shared if name == "input_ids" else torch.full_like(shared, int(name == "attention_mask"))
            inputs[name] = torch.cat([inputs[name], new.to(inputs[name].dtype)], dim=1)
    with torch.inference_mode():
        logits = hf._model(**inputs).logits[0, -1]
    return abs(float(logits[tokens[0][place]] - logits[tokens[1][place]]))


@needs_vllm
def test_tokens_and_probabilities_mean_the_same(engine, hf, held_out):
    theirs, ours = (by_row(one.caption(asking(held_out[:10]))) for one in (hf, engine))
    for row, result in ours.items():
        if result.candidates[0].text != theirs[row].candidates[0].text:
            continue
        assert result.usage == theirs[row].usage
        assert result.candidates[0].finish_reason == theirs[row].candidates[0].finish_reason
        assert result.candidates[0].mean_logprob == pytest.approx(theirs[row].candidates[0].mean_logprob, abs=1e-3)


@needs_vllm
def test_most_captions_are_right(engine, held_out):
    told = texts(engine.caption(asking(held_out)))
    right = sum(parse_caption(told[request.id.row][0]) == facts for request, _, facts in held_out)
    assert right >= 0.9 * HELD_OUT


# candidates


@needs_vllm
def test_sampled_candidates_differ_and_come_again_with_the_same_seed(engine, held_out):
    jobs = asking(held_out[:12], candidates=4)
    first, again = texts(engine.caption(jobs)), texts(engine.caption(jobs[::-1]))
    assert first == again
    assert sum(len(set(four)) > 1 for four in first.values()) >= 8
    other = [(replace(request, seed=request.seed + 10**6), clip) for request, clip in jobs]
    assert texts(engine.caption(other)) != first


@needs_vllm
def test_a_seed_may_be_as_large_as_seeds_are(engine, held_out):
    request, clip, _ = held_out[0]
    jobs = [(replace(request, seed=seed, num_candidates=3), clip) for seed in (0, 2**63 - 1, 2**62 - 1)]
    assert [result.failure for job in jobs for result in engine.caption([job])] == [None] * 3


@needs_vllm
def test_the_settings_reach_the_engine(held_out):
    limited = VideoCaptioningFromVLMMapper(
        MODEL, True, 2, "all", False, sampling_params={"max_tokens": 4, "temperature": 0, "stop": ["square"]},
        caption_key="captions", model_params={"max_model_len": 1024},
    )  # fmt: skip
    path = held_out[0][0].video
    batch = limited.process_batched({"text": [""], "videos": [[path]]})
    model_config = limited.captioner._engine._engine._llm.vllm_config.model_config
    assert model_config.max_model_len == 1024
    limited.close()
    assert len(batch["captions"]) == 2
    assert batch["captions"][0] == batch["captions"][1]
    assert len(batch["captions"][0][0].split()) <= 4


# trouble


def core_processes(captioner):
    import psutil

    captioner.policy  # noqa: B018  (a captioner that is gone has no children here)
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "EngineCore" in child.name()]


def kill_engine(captioner):
    for process in core_processes(captioner):
        os.kill(process.pid, signal.SIGKILL)


@needs_vllm
def test_a_clip_too_large_for_the_engine_leaves_the_others_captioned(engine, held_out):
    request, _clip, _ = held_out[3]
    huge = Clip(
        np.zeros((8, 1024, 1024, 3), np.uint8), np.arange(8) / 4, duration_seconds=2, source_fps=4, source_height=1024,
        source_width=1024,
    )  # fmt: skip
    jobs = asking(held_out[:8])
    jobs[3] = (request, huge)
    results = by_row(engine.caption(jobs))
    assert [row for row, result in results.items() if result.failure] == [3]
    assert results[3].failure.kind == "too_many_tokens"
    assert "max_frames" in results[3].failure.message
    assert len(results[3].failure.message) < 500


@needs_vllm
def test_with_fit_a_clip_too_long_for_the_engine_is_shown_with_fewer_frames():
    pixels = np.random.default_rng(0).integers(0, 255, (60, 128, 160, 3), np.uint8)
    long = Clip(pixels, np.arange(60) / 2, duration_seconds=30, source_fps=2, source_height=128, source_width=160)
    captioner = load_captioner(
        ModelSpec(
            "vllm",
            MODEL,
            {"max_model_len": 300},
            generation=generation_config({"max_tokens": 8}),
            frames=FrameSettings(fit=True),
        )
    )
    try:
        (result,) = captioner.caption([(CaptionRequest(RequestId(0, 0), "v", PROMPT), long)])
    finally:
        captioner.close()
    assert result.failure is None
    assert 300 - 2 * 35 < result.usage.prompt_tokens + 8 <= 300


@needs_vllm
def test_frames_the_processor_cannot_take_fail_alone_and_in_few_words(engine, held_out):
    request, _clip, _ = held_out[2]
    odd = Clip(
        np.zeros((2, 50, 70, 3), np.uint8), np.arange(2) / 4, duration_seconds=1, source_fps=4, source_height=50,
        source_width=70,
    )  # fmt: skip
    jobs = asking(held_out[:5])
    jobs[2] = (request, odd)
    results = by_row(engine.caption(jobs))
    assert [row for row, result in results.items() if result.failure] == [2]
    assert results[2].failure.kind == "model_error"
    assert len(results[2].failure.message) <= 300


@needs_vllm
def test_an_engine_killed_in_mid_run_loses_nothing(engine, held_out):
    expected = texts(engine.caption(asking(held_out)))
    deaths = engine._engine.deaths
    jobs = asking(held_out)
    stream = engine.caption((request, clip) for request, clip in jobs)
    done = [next(stream) for _ in range(3)]
    kill_engine(engine)
    done += stream
    assert engine._engine.deaths == deaths + 1
    assert texts(done) == expected
    assert "died and was restarted" in engine.notes[0]


@needs_vllm
def test_a_video_that_kills_the_engine_twice_is_failed_and_the_others_are_captioned(engine, held_out, monkeypatch):
    answer = _Engine.answer

    async def deadly(self, request, clip):
        if request.id.row == 4:
            kill_engine(engine)
        return await answer(self, request, clip)

    monkeypatch.setattr(_Engine, "answer", deadly)
    results = by_row(engine.caption(asking(held_out[:10])))
    assert [row for row, result in results.items() if result.failure] == [4]
    assert results[4].failure.kind == "engine_died"
    assert all(result.candidates for row, result in results.items() if row != 4)


# the command


@needs_vllm
def test_the_whole_command_with_vllm(hf, held_out, tmp_path):
    """As a user types it: the engine starts from the command's own process, and ends with it."""
    import psutil

    rows = [{"video": request.video} for request, _, _ in held_out[:12]] + [{"video": "gone.mp4"}]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = ["--model", MODEL, "--vllm", "--temperature", "0", "--model-param", "max_model_len=1024"]
    command = [sys.executable, "-m", "reelscribe", "caption", str(source), "-o", str(output), *options]
    before = set(psutil.pids())
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 3, run.stdout + run.stderr
    assert "vLLM, one engine" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    told = [json.loads(line)["captions"] for line in output.read_text("utf-8").splitlines()]
    expected = texts(hf.caption(asking(held_out[:12])))
    assert told == [*(expected[row] for row in range(12)), None]
    left = [one.name() for one in psutil.process_iter() if one.pid not in before]
    assert not any("VLLM" in name for name in left)


# set-up


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"gpu_memory_utilisation": 0.5}, SettingsError, "did you mean gpu_memory_utilization"),
        ({"device": "cuda"}, SettingsError, "device 'cuda' is not available: this vLLM runs on 'cpu'"),
        ({"max_in_flight": 0}, SettingsError, "max_in_flight"),
        ({"model": "other"}, SettingsError, "hf_model names the model"),
        ({"max_model_len": 10**9}, ModelError, "vLLM does not start"),
    ],
)
@needs_vllm
def test_parameters_that_cannot_work_are_errors_at_the_start(options, error, what):
    with pytest.raises(error, match=what):
        load_captioner(ModelSpec("vllm", MODEL, options))


@needs_vllm
def test_a_closed_captioner_leaves_no_process(engine):
    captioner = load_captioner(ModelSpec("vllm", MODEL, generation=generation_config({"max_tokens": 4})))
    before = {process.pid for process in core_processes(captioner)}
    captioner.close()
    captioner.close()
    import psutil

    until = time.monotonic() + 30  # on a busy machine it takes its time to end
    while sum(psutil.pid_exists(pid) for pid in before) != len(before) - 1:
        assert time.monotonic() < until
        time.sleep(0.1)


# adapters


@needs_vllm
def test_captions_with_a_lora_are_those_of_the_model_with_it_merged(held_out, tmp_path):
    lora, generation = write_lora(tmp_path / "lora"), generation_config({"max_tokens": 12, "temperature": 0})
    told = {}
    for backend, name in (("vllm", lora), ("hf", merged(lora, tmp_path / "merged"))):
        captioner = load_captioner(ModelSpec(backend, str(name), {"device": "cpu"}, generation=generation))
        told[backend] = by_row(captioner.caption(asking(held_out[:6])))
        captioner.close()
    for row, result in told["vllm"].items():
        (ours,), (theirs,) = result.candidates, told["hf"][row].candidates
        assert ours.text == theirs.text
        assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-3)


@needs_vllm
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "supports only LoRAs.*of type LOHA; leave out enable_vllm"),
        ({"use_dora": True}, "does not accept the adapter.*DoRA"),
        ({"modules_to_save": ["lm_head"]}, "does not accept the adapter.*modules_to_save"),
        ({"r": 1024}, "does not accept the adapter.*rank"),
    ],
)
def test_what_vllm_would_leave_out_of_a_lora_is_one_line_before_it_starts(config, words, tmp_path):
    with pytest.raises(ModelError, match=words) as caught:
        load_captioner(ModelSpec("vllm", str(write_lora(tmp_path / "lora", **config))))
    assert "\n" not in str(caught.value)


@needs_vllm
def test_a_lora_without_effect_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="has no effect in vLLM.*merge it into its model first"):
        load_captioner(ModelSpec("vllm", str(write_lora(tmp_path / "lora", size=0.0))))


# models that vLLM starts, and cannot caption with


@needs_vllm
def test_a_model_that_fails_on_every_video_is_one_line_at_the_start(tmp_path):
    folder = vllm_families.saved("minicpmv4_6", tmp_path / "model")
    with pytest.raises(ModelError, match="cannot be used: it cannot caption a video.*do_sample_frames") as caught:
        load_captioner(ModelSpec("vllm", str(folder), options={"max_model_len": vllm_families.LONGEST_PROMPT}))
    assert "\n" not in str(caught.value)


# models that reason


@needs_vllm
@pytest.mark.parametrize(
    ("template", "words", "tokens", "reasoning"),
    [
        (
            "qwen3_vl_thinking",
            thinkers.QWEN,
            3,
            "".join(thinkers.THOUGHT[:3]),
        ),  # opened by the prompt, cut by its budget
        ("glm4_1v_thinking", thinkers.GLM, 2048, thinkers.REASONING),  # opened by the model, closed by it
    ],
)
def test_a_model_that_reasons_writes_what_it_writes_with_transformers(tmp_path, template, words, tokens, reasoning):
    folder = thinkers.thinker(tmp_path / "m", template, words)
    frames = np.full((4, 96, 96, 3), 50, np.uint8)
    clip = Clip(frames, np.arange(4) / 2, duration_seconds=2, source_fps=2, source_height=96, source_width=96)
    jobs = [
        (CaptionRequest(RequestId(row, 0), "v", "What?" + row * " And?", num_candidates=1 + 2 * row, seed=row), clip)
        for row in range(3)
    ]
    found = []
    for backend in ("hf", "vllm"):
        generation = generation_config({"max_tokens": 40, "stop": [" the", " now"]})
        spec = ModelSpec(backend, str(folder), generation=generation, thinking=ThinkingSettings(tokens=tokens))
        captioner = load_captioner(spec)
        found.append(by_row(captioner.caption(jobs)))
        captioner.close()
    theirs, ours = found
    for row, result in ours.items():
        assert result.usage == theirs[row].usage
        for one, other in zip(result.candidates, theirs[row].candidates, strict=True):
            assert (one.text, one.reasoning) == (thinkers.CAPTION.removesuffix(" now"), reasoning)
            assert one == replace(other, mean_logprob=one.mean_logprob)
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-3)
