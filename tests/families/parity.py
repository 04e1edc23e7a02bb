"""What reelscribe makes of a family's tiny checkpoint, measured against transformers itself.

Each measure returns a verdict, a short word that the family's row names and the table prints; where the two sides
differ in a way that no row may name, it raises with what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor
from transformers.video_utils import VideoMetadata, load_video

import clips
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.loading import quiet_transformers
from reelscribe.types import CaptionRequest, CaptionResult, Clip, RequestId
from reelscribe.video.frames.moments import frame_metadata
from reelscribe.video.reader import read_clip

from .registry import Family

PROMPTS = (
    "Describe the input video in 1-2 sentences.",
    "What happens in the video? Tell it in one long sentence, please.",
    "Go.",
)
NEW_TOKENS = 8
GREEDY = generation_config({"max_tokens": NEW_TOKENS, "temperature": 0})
SAMPLED = generation_config({"max_tokens": NEW_TOKENS, "temperature": 0.9})
SWITCH = "enable_thinking"
"""Variable of chat templates that switches thinking off."""
CLOSE = 1e-4
"""Log-probabilities nearer than this are the same, in float32."""
LENGTHS: dict[str, dict[str, Any]] = {
    "one frame": {"count": 1},
    "3 s": {"count": 72, "fps": 24, "height": 96, "width": 64},
    "12 s": {"count": 288, "fps": 24, "height": 180, "width": 320},
    "24 s": {"count": 576, "fps": 24},
    "5 min": {"count": 1200, "fps": 4},
}
"""Name of a video to how it is rendered."""
LONG = "5 min"
"""The one that takes some seconds a family."""

Job = tuple[CaptionRequest, Clip]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model is shown of one video."""

    indices: list[int]
    """Frames of the file."""
    times: list[int]
    """When they are shown, in milliseconds."""
    tokens: list[int]
    """The prompt, the marks of frames included."""
    shapes: Mapping[str, tuple[int, ...]]
    """Sizes of all tensors."""


def rendered(name: str, folder: Path) -> Path:
    """The video of this name of `LENGTHS`, rendered on first use."""
    path = folder / f"{name.replace(' ', '_')}.mp4"
    return path if path.exists() else clips.render_video(path, options={"preset": "ultrafast"}, **LENGTHS[name])


def loaded(folder: Path) -> HFCaptioner:
    """The captioner over a checkpoint, as the command loads it; models that can answer without thinking do."""
    template = folder / "chat_template.jinja"
    thinks = template.exists() and SWITCH in template.read_text("utf-8")
    options = {"chat_template_kwargs": {SWITCH: False}} if thinks else {}
    captioner = load_captioner(
        ModelSpec(
            "hf",
            str(folder),
            options={"max_batch_size": 4, "max_batch_tokens": 10**7, **options},
            generation=GREEDY,
        )
    )
    assert isinstance(captioner, HFCaptioner)
    return captioner


def job(captioner: HFCaptioner, path: Path, *, row: int = 0, candidates: int = 1) -> Job:
    """A request with the clip that the captioner's policy takes of a file."""
    request = CaptionRequest(RequestId(row, 0), str(path), PROMPTS[row % len(PROMPTS)], None, candidates, seed=row)
    clip = read_clip(path, captioner.policy)
    assert isinstance(clip, Clip), clip
    return request, clip


def inputs_of(captioner: HFCaptioner, *jobs: Job) -> Mapping[str, Any]:
    """What the model reads."""
    return captioner._inputs([captioner._job(*one) for one in jobs])


# ---- frames -----------------------------------------------------------------------------------------------------


def frames_verdict(captioner: HFCaptioner, family: Family, paths: Mapping[str, Path]) -> str:
    """`exact`: the processor alone sees the same in every video; `own rule`: it does when it is asked for the rate or
    the number of frames; `differs`."""
    if not all(_sees_the_same(captioner, family, path) for path in paths.values()):
        return "differs"
    return "own rule" if family.asked else "exact"


def _sees_the_same(captioner: HFCaptioner, family: Family, path: Path) -> bool:
    ours = _what_we_show(captioner, job(captioner, path))
    asked = {**family.told, **family.asked}
    if "num_frames" in asked:
        asked["num_frames"] = len(ours.indices)
    theirs = _what_it_sees(captioner, path, asked)
    return theirs is None or ours == theirs


def _what_we_show(captioner: HFCaptioner, one: Job) -> Seen:
    clip = one[1]
    indices = [int(index) for index in frame_metadata(clip)["frames_indices"]]
    assert clips.numbers_of(clip.frames) == [index % 256 for index in indices], "frames and their indices differ"
    return _seen(indices, clip.pts_seconds, inputs_of(captioner, one))


def _what_it_sees(captioner: HFCaptioner, path: Path, asked: Mapping[str, Any]) -> Seen | None:
    """What the processor makes of a file by itself; None: it cannot."""
    processor = captioner._processor
    found: list[VideoMetadata] = []
    content = [{"type": "video", "path": str(path)}, {"type": "text", "text": PROMPTS[0]}]
    with quiet_transformers(), _read_by_pyav(processor, found):
        try:
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=dict(asked),
                **captioner._options.chat_template_kwargs,
            )
        except Exception:  # processors fail in many ways at a file of one frame
            if LENGTHS[path.stem.replace("_", " ")] != LENGTHS["one frame"]:
                raise
            return None
    return _seen([int(index) for index in found[0].frames_indices], found[0].timestamps, inputs)


def _seen(indices: list[int], pts_seconds: Iterable[float], inputs: Mapping[str, Any]) -> Seen:
    shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    times = [round(1000 * float(seconds)) for seconds in pts_seconds]
    return Seen(indices, times, inputs["input_ids"][0].tolist(), shapes)


@contextmanager
def _read_by_pyav(processor: Any, found: list[VideoMetadata]) -> Iterator[None]:
    """Let a processor read files with PyAV, and keep what it found out about them."""

    def fetch(self: Any, videos: Any, sample_indices_fn: Any = None) -> Any:
        if isinstance(videos, list):
            return list(zip(*[fetch(self, one, sample_indices_fn) for one in videos], strict=True))
        frames, metadata = load_video(videos, backend="pyav", sample_indices_fn=sample_indices_fn)
        found.append(metadata)
        return frames, metadata

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(processor.video_processor), "fetch_videos", fetch)
        yield


# ---- captions ------------------------------------------------------------------------------------------------------


def captions_verdict(captioner: HFCaptioner, family: Family, path: Path) -> str:
    """`exact`: tensors, scores and text are those of the processor and of `generate` for the same frames."""
    one = job(captioner, path)
    (result,) = captioner.caption([one])
    if result.failure is not None:
        return f"fails: {result.failure.message}"
    inputs = reference_inputs(captioner, family, *one)
    different = differing(inputs_of(captioner, one), inputs)
    tokens, logprob = generated(captioner, inputs)
    text = captioner._processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    candidate = result.candidates[0]
    assert not different, different
    assert (_whole(candidate.text), candidate.tokens) == (_whole(text), len(tokens))
    assert candidate.mean_logprob == pytest.approx(logprob, abs=CLOSE)
    return "exact"


def _whole(text: str) -> str:
    """A text without the character that the token limit cut, which `decode` shows as a mark."""
    return text.rstrip("\ufffd")


def reference_inputs(captioner: HFCaptioner, family: Family, request: CaptionRequest, clip: Clip) -> Mapping[str, Any]:
    """What the processor itself makes of the same frames."""
    processor = captioner._processor
    content = [{"type": "video"}, {"type": "text", "text": request.prompt}]
    with quiet_transformers():
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            **captioner._options.chat_template_kwargs,
        )
        bos = processor.tokenizer.bos_token
        written = {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}
        return processor(
            text=[text],
            videos=[[torch.from_numpy(clip.frames.copy()).permute(0, 3, 1, 2)]],
            video_metadata=[[VideoMetadata(**frame_metadata(clip))]],
            do_sample_frames=False,
            return_tensors="pt",
            **written,
            **family.told,
        )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of inputs that are not the same on both sides."""
    names = sorted({*ours, *theirs})
    return [name for name in names if not _same(ours.get(name), theirs.get(name))]


def _same(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    ours, theirs = (torch.as_tensor(np.asarray(one)) for one in (ours, theirs))
    return ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), atol=CLOSE)


class _Forced(LogitsProcessor):
    """Make `generate` write given tokens."""

    def __init__(self, length: int, tokens: Sequence[int]) -> None:
        self.length, self.tokens = length, tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, self.tokens[input_ids.shape[1] - self.length]] = 0
        return forced


def generated(captioner: HFCaptioner, inputs: Mapping[str, Any], forced: Sequence[int] = ()) -> tuple[list[int], float]:
    """Tokens that `generate` writes, greedily or as they are forced, with the mean of their log-probabilities."""
    length = inputs["input_ids"].shape[1]
    how = {"max_new_tokens": NEW_TOKENS}
    if forced:
        count = len(forced)
        how = {"max_new_tokens": count, "min_new_tokens": count, "logits_processor": [_Forced(length, forced)]}
    with torch.inference_mode(), quiet_transformers():
        output = captioner._model.generate(
            **inputs, do_sample=False, return_dict_in_generate=True, output_logits=True, **how
        )
    tokens = output.sequences[0, length:].tolist()
    scores = [step[0].float().log_softmax(-1)[token].item() for step, token in zip(output.logits, tokens, strict=True)]
    return tokens, sum(scores) / len(scores)


# ---- batches and candidates -------------------------------------------------------------------------------------


def batches_verdict(captioner: HFCaptioner, paths: Sequence[Path]) -> str:
    """`exact`: videos of different sizes and prompts, and the last one again, get together what they get alone."""
    jobs = [job(captioner, path, row=row) for row, path in enumerate(paths)]
    request, clip = jobs[-1]
    jobs.append((replace(request, id=RequestId(len(jobs), 0), prompt=PROMPTS[1]), clip))
    alone = [next(iter(captioner.caption([one]))) for one in jobs]
    together = sorted(captioner.caption(jobs), key=lambda result: result.request_id.row)
    if [_texts(one) for one in alone] != [_texts(one) for one in together]:
        return "differs"
    apart = [abs(_logprob(one) - _logprob(other)) for one, other in zip(alone, together, strict=True)]
    return "exact" if max(apart) < CLOSE else "differs"


def _texts(result: CaptionResult) -> list[str]:
    assert result.failure is None, result.failure
    return [one.text for one in result.candidates]


def _logprob(result: CaptionResult) -> float:
    return result.candidates[0].mean_logprob


def candidates_verdict(captioner: HFCaptioner, family: Family, path: Path) -> str:
    """`one prefill`: four sampled candidates share the pass over their prompt, and have the log-probabilities that
    `generate` gives to their tokens."""
    one = job(captioner, path, candidates=4)
    with _texts_are_ids(captioner), _sampled(captioner), _batches_scored(captioner) as batches:
        (result,) = captioner.caption([one])
    if result.failure is not None:
        return f"fails: {result.failure.message}"
    inputs = reference_inputs(captioner, family, *one)
    for candidate in result.candidates:
        tokens = [int(token) for token in candidate.text.split()]
        assert candidate.mean_logprob == pytest.approx(generated(captioner, inputs, tokens)[1], abs=CLOSE)
    assert len({candidate.text for candidate in result.candidates}) > 1
    return "one prefill" if batches[0] == 1 and 1 not in batches[1:2] else "repeated prompt"


@contextmanager
def _texts_are_ids(captioner: HFCaptioner) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioner._processor.tokenizer, "decode", lambda tokens, **_: " ".join(map(str, tokens)))
        yield


@contextmanager
def _sampled(captioner: HFCaptioner) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioner, "_generation", SAMPLED)
        yield


@contextmanager
def _batches_scored(captioner: HFCaptioner) -> Iterator[list[int]]:
    """How many texts each pass of the model scores."""
    batches: list[int] = []
    named = captioner._model.named_modules()
    head = captioner._model.get_output_embeddings() or next(one for name, one in named if name.endswith("lm_head"))
    hook = head.register_forward_hook(lambda module, given, scores: batches.append(scores.shape[0]))
    try:
        yield batches
    finally:
        hook.remove()
