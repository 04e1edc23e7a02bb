"""Caption requests in the format of the OpenAI chat API, and the meaning of its answers.

Plain values on both sides: nothing here sends anything.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...reasoning import MARKS, Marks, joined
from ...types import Candidate, CaptionRequest, CaptionResult, Clip, Failure, Usage
from ...video.frames.moments import frame_metadata
from ..captioner import (
    LONGEST_MESSAGE,
    SAMPLED_TEMPERATURE,
    SAMPLED_TOP_P,
    GenerationConfig,
    PromptOptions,
    Sampling,
    resolve_sampling,
)
from ..chat import chat_messages
from ..thinking import NO_THINKING, Thinking
from ..written import find_stop, parted
from .chat_answer import ChatAnswer, Choice

Form = Literal["video", "images"]
FrameFormat = Literal["jpeg", "png"]
JPEG_QUALITY = 95

OPTIONAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
}
"""Settings that are sent only if they are not off, or if the user sets them, and their values when off."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How much of the API a server supports."""

    form: Form
    """`video`: one video of JPEG or PNG frames with their times, as for vLLM; `images`: one image per frame, each after
    its time."""
    several: bool
    """Whether one request may have several candidates (`n`)."""
    logprobs: bool
    """Whether it returns token probabilities."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How requests are written."""

    model: str
    """The server's name for the model."""
    options: PromptOptions
    """Order of the prompt, and variables for the chat template."""
    generation: GenerationConfig
    """The user's generation settings."""
    defaults: Mapping[str, Any] | None
    """The model's generation config; None if it is unknown here: then the server's own applies."""
    frame_format: FrameFormat
    """How frames are encoded."""
    frame_arguments: Mapping[str, Any]
    """Arguments of the server's processor for the frames."""
    thinking: Thinking = NO_THINKING
    """What is known about the model's reasoning."""

    def sampling(self, num_candidates: int) -> tuple[dict[str, Any], bool]:
        """Sampling fields of a request, and whether all candidates are the same text."""
        if self.defaults is None:
            return _unresolved(self.generation, num_candidates)
        sampling = resolve_sampling(self.generation, num_candidates=num_candidates, model_defaults=self.defaults)
        return _fields(self.generation, sampling, self.defaults), sampling.greedy

    def reading(self, *, room: bool) -> Reading:
        """How the texts of answers are to be read, with room for reasoning or without."""
        opened = self.thinking.marks if self.thinking.opens else None
        return Reading(opened, self.generation.max_tokens, self.generation.stop) if room else Reading(opened)

    def body(
        self, request: CaptionRequest, clip: Clip, dialect: Dialect, *, seed: int, count: int, room: bool = False
    ) -> dict[str, Any]:
        """The JSON body of one request.

        Args:
            request: the request.
            clip: its clip.
            dialect: what the server supports.
            seed: seed of the first candidate; each further one counts up by one.
            count: candidates of this one request.
            room: whether there is room for reasoning besides the answer; stop strings would end that too, so they are
                applied here.
        """
        fields, _ = self.sampling(request.num_candidates)
        if room:
            fields = {name: value for name, value in fields.items() if name != "stop"}
            fields["max_tokens"] += self.thinking.settings.tokens
        body: dict[str, Any] = {"model": self.model, **fields, "seed": seed}
        if count > 1:
            body["n"] = count
        if dialect.logprobs:
            body["logprobs"] = True
        if self.options.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(self.options.chat_template_kwargs)
        show = _as_video if dialect.form == "video" else _as_images
        parts, extra = show(clip, self)
        return {**body, **extra, "messages": _messages(request, parts, self.options)}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the texts of answers are to be read."""

    opened: Marks | None = None
    """Marks of the reasoning that the chat template opens; None: it opens none, as far as known."""
    max_tokens: int | None = None
    """Longest answer, in tokens, if the request had more room; None: the server enforced it."""
    stop: tuple[str, ...] = ()
    """Stop strings that were not sent to the server."""


PLAIN = Reading()
"""For answers without room for reasoning, with an unknown template."""


def _unresolved(config: GenerationConfig, num_candidates: int) -> tuple[dict[str, Any], bool]:
    given = {name: getattr(config, name) for name in ("temperature", *OPTIONAL)}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if num_candidates > 1 and "temperature" not in fields:
        fields = {"temperature": SAMPLED_TEMPERATURE, "top_p": SAMPLED_TOP_P, **fields}
    return {**fields, **_ends(config.max_tokens, config.stop)}, fields.get("temperature") == 0


def _fields(config: GenerationConfig, sampling: Sampling, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are on, or that differ from the user's or the model's own config: a server fills in missing ones
    from that config."""
    values = {name: getattr(sampling, name) for name in OPTIONAL}
    said = {
        name: value
        for name, value in values.items()
        if value != OPTIONAL[name]
        or getattr(config, name) is not None
        or defaults.get(name) not in (None, OPTIONAL[name])
    }
    return {"temperature": sampling.temperature, **said, **_ends(sampling.max_tokens, sampling.stop)}


def _ends(max_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
    return {"max_tokens": max_tokens, **({"stop": list(stop)} if stop else {})}


def _messages(request: CaptionRequest, shown: list[dict[str, Any]], options: PromptOptions) -> list[dict[str, Any]]:
    """The conversation, with the clip's parts in place of the video."""
    messages = chat_messages(request, order=options.prompt_order)
    content = messages[-1]["content"]
    messages[-1]["content"] = [part for old in content for part in (shown if old["type"] == "video" else [old])]
    return messages


def _as_video(clip: Clip, format: ChatFormat) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # noqa: A002
    """One video made of frames, and their times.

    The form of vLLM's `VideoMediaIO.load_base64` (0.32): frames in base64 with commas between them, whatever their
    picture format, under the type video/jpeg; times as frame numbers over a rate in `media_io_kwargs`.
    """
    frames = ",".join(pack_frames(clip.frames, format.frame_format))
    times = frame_metadata(clip)
    video = {
        "num_frames": -1,
        "fps": times["fps"],
        "frames_indices": times["frames_indices"],
        "total_num_frames": max(times["total_num_frames"], len(clip.frames)),
        "duration": times["duration"],
    }
    extra = {"media_io_kwargs": {"video": video}, "mm_processor_kwargs": dict(format.frame_arguments)}
    return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}], extra


def _as_images(clip: Clip, format: ChatFormat) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # noqa: A002
    """One image per frame, each after its time; repeated frames that only pad the model's step are left out."""
    parts: list[dict[str, Any]] = []
    count = _unpadded(clip.pts_seconds)
    for seconds, frame in zip(
        clip.pts_seconds[:count], pack_frames(clip.frames[:count], format.frame_format), strict=True
    ):
        parts.append({"type": "text", "text": f"<{seconds:.1f} seconds>"})
        url = f"data:image/{format.frame_format};base64,{frame}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts, {}


def _unpadded(pts_seconds: np.ndarray) -> int:
    """Frames before the first one with the same time as its predecessor."""
    repeats = np.flatnonzero(np.diff(pts_seconds) <= 0)
    return int(repeats[0]) + 1 if len(repeats) else len(pts_seconds)


def pack_frames(frames: np.ndarray, frame_format: FrameFormat) -> list[str]:
    """Frames uint8 `[T, H, W, 3]` as T pictures in base64; JPEG at quality 95 with full colour resolution."""
    from PIL import Image

    settings: dict[str, Any] = (
        {"quality": JPEG_QUALITY, "subsampling": 0} if frame_format == "jpeg" else {"compress_level": 1}
    )
    packed = []
    for frame in frames:
        picture = io.BytesIO()
        Image.fromarray(frame).save(picture, frame_format, **settings)
        packed.append(base64.b64encode(picture.getvalue()).decode("ascii"))
    return packed


def result_of(
    request: CaptionRequest,
    answers: Sequence[ChatAnswer],
    *,
    counts: Sequence[int],
    same: bool,
    reading: Reading = PLAIN,
) -> CaptionResult:
    """The result of the server's answers to one request.

    Args:
        request: the request.
        answers: the answers, in candidate order.
        counts: choices that were requested of each; extra ones are ignored.
        same: whether one text stands for all candidates.
        reading: how their texts are to be read.
    """
    choices = [choice for answer, count in zip(answers, counts, strict=True) for choice in answer.first(count)]
    if any(choice.finish_reason == "content_filter" for choice in choices):
        stopped = "the server's content filter stopped the text"
        return CaptionResult(request.id, failure=Failure("server_error", stopped))
    wanted = request.num_candidates
    if not choices or (len(choices) < wanted and not same):
        lost = f"the server returned {len(choices)} candidates where {wanted} were requested"
        return CaptionResult(request.id, failure=Failure("server_error", lost))
    if all(choice.message.refusal and not choice.message.content for choice in choices):
        refusal = choices[0].message.refusal[:LONGEST_MESSAGE]
        return CaptionResult(request.id, failure=Failure("server_error", f"the model refused to answer: {refusal}"))
    written = sum(answer.usage.completion_tokens for answer in answers)
    own = [_candidate_of(choice, reading, tokens=written if len(choices) == 1 else 0) for choice in choices]
    candidates = tuple(own * wanted if same else own)[:wanted]
    prompt_tokens = max(answer.usage.prompt_tokens for answer in answers)
    return CaptionResult(request.id, candidates, usage=Usage(prompt_tokens, written * (wanted if same else 1)))


def _candidate_of(choice: Choice, reading: Reading, *, tokens: int) -> Candidate:
    """A choice as a candidate; after reasoning, tokens and probability are the answer's, if they are reported."""
    one = parted_choice(choice, reading)
    logprobs, words = choice.logprobs, choice.words if len(choice.words) == len(choice.logprobs) else ()
    if one.reasoning is None:
        one = replace(one, tokens=len(logprobs) or tokens, mean_logprob=_mean(logprobs))
        return _shortened(one, words, logprobs, reading)
    begin = _answer_begin(words)
    if not one.text:
        return replace(one, reasoning_tokens=len(logprobs) or tokens)
    if begin is None:  # which tokens are the answer's is unknown
        return _shortened(one, (), (), reading)
    one = replace(one, tokens=len(logprobs) - begin, mean_logprob=_mean(logprobs[begin:]), reasoning_tokens=begin)
    return _shortened(one, words[begin:], logprobs[begin:], reading)


def parted_choice(choice: Choice, reading: Reading) -> Candidate:
    """A choice's text, and its reasoning, from a separate field or from marks.

    A truncated text without a mark is reasoning if the template opens it: nothing else can have been truncated.
    """
    message = choice.message
    one = Candidate(message.content, "length" if choice.finish_reason == "length" else "stop")
    if message.reasoning:
        one = parted(one)
        return replace(one, text=one.text.strip(), reasoning=joined([message.reasoning, one.reasoning]))
    marks = reading.opened
    is_cut = marks is not None and one.finish_reason == "length" and marks.close not in one.text
    return parted(one, opened=marks if is_cut else None)


def _answer_begin(words: Sequence[str]) -> int | None:
    """Tokens up to the end of the last closing mark; None: there is none."""
    text = "".join(words)
    ends = [text.rfind(marks.close) + len(marks.close) for marks in MARKS if marks.close in text]
    if not ends:
        return None
    length = 0
    for count, word in enumerate(words, start=1):
        length += len(word)
        if length >= max(ends):
            return count
    return None


def _shortened(one: Candidate, words: Sequence[str], logprobs: Sequence[float], reading: Reading) -> Candidate:
    """An answer that had the room of the reasoning too, cut to its limit.

    Args:
        one: the answer.
        words: its tokens; empty: not reported.
        logprobs: one per token.
        reading: how long it may be, and what ends it.
    """
    limit = reading.max_tokens
    if limit is not None and len(words) > limit:
        text, mean = "".join(words[:limit]).strip(), _mean(logprobs[:limit])
        one = replace(one, text=text, finish_reason="length", tokens=limit, mean_logprob=mean)
    found = find_stop(one.text, reading.stop)
    return one if found is None else replace(one, text=one.text[:found], finish_reason="stop")


def _mean(numbers: Sequence[float]) -> float | None:
    """Their mean; None if there are none, or it is not finite."""
    try:
        return math.fsum(numbers) / len(numbers) if numbers else None
    except OverflowError:
        return None


def error_text(body: Any) -> str:
    """The message of an error answer, in one line; servers put it in various places."""
    found = body
    for key in ("error", "detail", "message"):
        if isinstance(found, Mapping) and key in found:
            found = found[key]
    try:
        text = str(found)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"an error of type {type(found).__name__}"
    return " ".join(text[: 4 * LONGEST_MESSAGE].split())[:LONGEST_MESSAGE]
