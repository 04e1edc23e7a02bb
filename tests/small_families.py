"""Tiny checkpoints of other families for tests of captioners: built once a session, shown clips made up here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from families.registry import FAMILIES
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.models.chat import wants_special_tokens
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.loading import quiet_transformers
from reelscribe.types import CaptionRequest, CaptionResult, Clip, RequestId
from reelscribe.video.frames.moments import frame_metadata, target_size

PROMPTS = ("Go.", "What happens in the video? Tell it in one long sentence, please.", "Describe the video.")
SHAPES = ((4, 96, 128), (6, 128, 96), (4, 128, 128))
"""Frames, height and width of clips of different sizes and lengths."""
NEW_TOKENS = 6

Job = tuple[CaptionRequest, Clip]


def checkpoint(name: str, folder: Path) -> Path:
    """The folder of a family's checkpoint, built where it is not there."""
    made = folder / name
    return made if made.exists() else FAMILIES[name].save(made)


def captioner(folder: Path, **sampling: Any) -> HFCaptioner:
    """As the command loads it, but that texts are token ids; greedy unless `sampling` says otherwise."""
    generation = generation_config({"max_tokens": NEW_TOKENS, "temperature": 0, **sampling})
    options = {"max_batch_size": 8, "max_batch_tokens": 10**7}
    made = load_captioner(ModelSpec("hf", str(folder), options=options, generation=generation))
    assert isinstance(made, HFCaptioner)
    made._text_of = lambda tokens: " ".join(map(str, tokens))
    return made


def clip(made: HFCaptioner, frames: int, height: int, width: int, *, seed: int = 0, fps: float = 2.0) -> Clip:
    """Noise, at the size that the captioner's policy asks for."""
    rows, columns = target_size(made.policy, frames, height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, rows, columns, 3), np.uint8)
    return Clip(
        pixels, np.arange(frames) / fps, duration_seconds=frames / fps, source_fps=fps, source_height=height,
        source_width=width,
    )  # fmt: skip


def jobs(clips: Sequence[Clip], *, candidates: int = 1) -> list[Job]:
    """A request for each clip, with prompts of different length."""
    return [
        (CaptionRequest(RequestId(row, 0), "v.mp4", PROMPTS[row % 3], None, candidates, seed=row), one)
        for row, one in enumerate(clips)
    ]


def different(made: HFCaptioner) -> list[Clip]:
    """Clips of `SHAPES`."""
    return [clip(made, *shape, seed=seed) for seed, shape in enumerate(SHAPES)]


def answers(made: HFCaptioner, asked: Iterable[Job]) -> list[CaptionResult]:
    """Results in the order of the requests; none failed."""
    results = sorted(made.caption(asked), key=lambda result: result.request_id.row)
    assert [result.failure for result in results] == [None] * len(results)
    return results


def one_by_one(made: HFCaptioner, asked: Iterable[Job]) -> list[CaptionResult]:
    """The same, each request alone."""
    return [answers(made, [job])[0] for job in asked]


def same(ours: Sequence[CaptionResult], theirs: Sequence[CaptionResult]) -> bool:
    """Whether two runs wrote the same tokens, with the same log-probabilities as far as float32 tells them."""
    pairs = [
        (a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.candidates, other.candidates, strict=True)
    ]
    near = all(abs((a.mean_logprob or 0) - (b.mean_logprob or 0)) < 1e-4 for a, b in pairs)
    return near and [a.text for a, _ in pairs] == [b.text for _, b in pairs]


def generated(made: HFCaptioner, job: Job) -> str:
    """Token ids that transformers' own `generate` writes greedily of the same frames."""
    from transformers.video_utils import VideoMetadata

    request, shown = job
    prompt = made._processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": request.prompt}]}],
        tokenize=False,
        add_generation_prompt=True,
        **made._options.chat_template_kwargs,
    )
    inputs = made._processor(
        text=[prompt],
        videos=[[torch.from_numpy(shown.frames.copy()).permute(0, 3, 1, 2)]],
        video_metadata=[[VideoMetadata(**frame_metadata(shown))]],
        do_sample_frames=False,
        return_tensors="pt",
        **({} if wants_special_tokens(made._processor, prompt) else {"add_special_tokens": False}),
    )
    with torch.inference_mode(), quiet_transformers():
        written = made._model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    ids = written[0, inputs["input_ids"].shape[1] :].tolist()
    ended = next((place for place, token in enumerate(ids, 1) if token in made._eos_ids), len(ids))
    return " ".join(map(str, ids[:ended]))


def with_candidates(asked: Iterable[Job], count: int) -> list[Job]:
    """The same requests for several candidates."""
    return [(replace(request, num_candidates=count), shown) for request, shown in asked]
