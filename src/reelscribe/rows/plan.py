"""What to ask for a sample, and what becomes of the answers. Pure: no file is opened, no model is run."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..answering.selection import SELECTORS, Choice
from ..errors import SettingsError
from ..models.written import parted
from ..seeds import content_seed
from ..types import (
    BadRow,
    Candidate,
    CaptionRequest,
    CaptionResult,
    Failure,
    RequestId,
    Sample,
    TimeWindow,
    Usage,
    belongs_to_row,
    failure_to_dict,
    internal_failure,
)
from .text import Chunk, SpecialTokens, insert_captions, ordinary_text, video_chunks

FAILURE_FIELDS = {"kind", "message", "video_index"}
"""Fields of a failure in a row."""

TRIED_TWICE = ("empty_caption", "no_answer", "not_finite")
"""Failures of the model that another seed may avoid."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for one sample."""

    sample: Sample
    """The row as it came."""
    requests: tuple[CaptionRequest, ...] = ()
    """One a video that is captioned."""
    chunks: tuple[Chunk, ...] = ()
    """The chunks of the text that own those videos."""
    failure: tuple[int, Failure] | None = None
    """Video index and failure of a sample that cannot be asked about."""


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What one row became."""

    row: int
    """Index in the stream, from 0."""
    samples: list[Sample]
    """Output rows: the original first if it is kept, then the generated ones in candidate order."""
    captions: list[list[str]]
    """For each generated sample its captions in video order; empty where nothing was generated."""
    failures: list[tuple[int, Failure]]
    """(video index, failure)."""
    videos: int = 0
    """Videos of the row that were asked about."""
    usage: Usage = field(default_factory=Usage)
    """Tokens spent on the row."""
    finish_reasons: list[list[str]] = field(default_factory=list)
    """For each of `captions` why it ended: `stop`, or `length` where it was cut at the token limit."""
    reasonings: list[list[str | None]] = field(default_factory=list)
    """For each of `captions` the reasoning before it; None where the model wrote none."""


@dataclass(frozen=True)
class Planner:
    """The operator's rules for samples, as plain values."""

    text_key: str
    """Field of the text."""
    video_key: str
    """Field of the list of videos."""
    tokens: SpecialTokens
    """The special tokens of the text."""
    prompt: str
    """Prompt of a sample without its own."""
    prompt_key: str | None
    """Field of a sample's own prompt."""
    system_prompt: str | None
    """System message of every request."""
    num_candidates: int
    """Captions to write for each video (M)."""
    keep: str
    """A key of `SELECTORS`."""
    keep_original: bool
    """Whether the original sample comes out too."""
    seed: int
    """Seed of the run."""
    window: TimeWindow
    """Part of a video to look at where the sample does not say."""
    window_keys: tuple[str, str]
    """Fields of a sample's own start and end."""
    caption_key: str | None
    """Field that gets the kept captions of a generated sample."""
    failure_key: str | None
    """Field that gets the failure of a sample."""
    finish_reason_key: str | None = None
    """Field that gets why each kept caption ended."""
    reasoning_key: str | None = None
    """Field that gets the reasoning before each kept caption."""

    @property
    def new_fields(self) -> dict[str, str]:
        """Fields of the output that a sample may not have had, and what each holds (`batches.NewFields`)."""
        fields = {
            self.text_key: "text",
            self.caption_key: "captions",
            self.finish_reason_key: "captions",
            self.reasoning_key: "captions",
            self.failure_key: "failure",
        }
        return {name: kind for name, kind in fields.items() if name is not None}

    def plan(self, sample: Sample, row: int) -> Plan:
        """What to ask for one sample: a request for every video that a token of its text owns.

        Args:
            sample: the row.
            row: its index in the stream.
        """
        if isinstance(sample, BadRow):
            return Plan(sample, failure=(0, sample.failure))
        try:
            return self._plan(sample, row)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return Plan(sample, failure=(0, internal_failure(exc)))

    def _plan(self, sample: Sample, row: int) -> Plan:
        videos = videos_of(sample.get(self.video_key))
        if not videos:
            return Plan(sample)
        for option, key in self._extra_keys.items():
            if not self._may_write(key, sample):
                return Plan(sample, failure=(0, Failure("bad_sample", _is_taken(option, key))))
        chunks = video_chunks(_as_text(sample.get(self.text_key)), num_videos=len(videos), tokens=self.tokens)
        wanted = sum(chunk.num_videos for chunk in chunks)
        if wanted > len(videos):
            message = f"the text holds {wanted} video tokens but the sample has {len(videos)} videos"
            return Plan(sample, failure=(len(videos), Failure("bad_sample", message)))
        try:
            requests = tuple(self._request(sample, RequestId(row, i), videos[i]) for i in range(wanted))
        except SettingsError as exc:
            return Plan(sample, failure=(0, Failure("bad_sample", str(exc))))
        return Plan(sample, requests=requests, chunks=tuple(chunks))

    @property
    def _extra_keys(self) -> dict[str, str]:
        """Option to the field that is written besides the text."""
        keys = {
            "caption_key": self.caption_key,
            "failure_key": self.failure_key,
            "finish_reason_key": self.finish_reason_key,
            "reasoning_key": self.reasoning_key,
        }
        return {option: key for option, key in keys.items() if key is not None}

    def _may_write(self, key: str, sample: Sample) -> bool:
        """Whether a field holds nothing of the row's own: nothing at all, or the failure of an earlier run."""
        value = sample.get(key)
        if value is None or (isinstance(value, (str, list, dict)) and not value):
            return True
        if isinstance(value, float) and math.isnan(value):  # how pandas writes null
            return True
        return key == self.failure_key and isinstance(value, Mapping) and value.keys() == FAILURE_FIELDS

    def _request(self, sample: Sample, id_: RequestId, video: Any) -> CaptionRequest:
        prompt = self._prompt_of(sample)
        return CaptionRequest(
            id=id_,
            video=video,
            prompt=prompt,
            system_prompt=self.system_prompt,
            num_candidates=self.num_candidates,
            seed=content_seed(self.seed, "generate", sample.get(self.text_key), video, id_.video, prompt),
            window=window_of(sample, self.window_keys, default=self.window, video_index=id_.video),
        )

    def _prompt_of(self, sample: Sample) -> str:
        own = sample.get(self.prompt_key) if self.prompt_key else None
        return own if isinstance(own, str) else self.prompt

    def checked(self, result: CaptionResult) -> CaptionResult:
        """The result without reasoning in its texts, or a failure where the numbers behind it are not finite, or its
        texts are empty."""
        try:
            return self._checked(result)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return CaptionResult(result.request_id, failure=internal_failure(exc))

    def _checked(self, result: CaptionResult) -> CaptionResult:
        if result.failure is not None:
            return result
        result = replace(result, candidates=tuple(parted(one) for one in result.candidates))
        if any(one.mean_logprob is not None and not math.isfinite(one.mean_logprob) for one in result.candidates):
            failure = Failure("not_finite", "the model computed numbers that are not finite for this video")
            return CaptionResult(result.request_id, failure=failure, usage=result.usage)
        if not any(self._texts(result)):
            return CaptionResult(result.request_id, failure=self.lack_of(result), usage=result.usage)
        return result

    def lack_of(self, result: CaptionResult) -> Failure:
        """The failure that candidates without a text are."""
        pairs = zip(result.candidates, self._texts(result), strict=True)
        empty = [(str(i), one.reasoning is not None) for i, (one, text) in enumerate(pairs) if not text]
        told = f"candidate {', '.join(number for number, _ in empty)} of {len(result.candidates)}"
        if any(reasoned for _, reasoned in empty):
            return Failure("no_answer", f"the model reasoned, but gave no answer for {told}; --thinking-tokens "
                           "(thinking_tokens) and --max-tokens (max_tokens) are its budgets")  # fmt: skip
        return Failure("empty_caption", f"the model gave no text for {told}")

    def is_worth_another_try(self, result: CaptionResult) -> bool:
        """Whether another seed may give a checked result that is of use."""
        if result.failure is not None:
            return result.failure.kind in TRIED_TWICE
        return self.keep == "all" and not all(self._texts(result))

    def asked_again(self, request: CaptionRequest) -> CaptionRequest:
        """The same request with another seed."""
        return replace(request, seed=content_seed(request.seed, "again"))

    @staticmethod
    def of_second_try(result: CaptionResult) -> CaptionResult:
        """The checked result of a request that was asked again; a failure says so."""
        if result.failure is None:
            return result
        return replace(result, failure=replace(result.failure, attempts=2))

    def _texts(self, result: CaptionResult) -> list[str]:
        return [ordinary_text(candidate.text, self.tokens) for candidate in result.candidates]

    def finish(self, plan: Plan, results: Sequence[CaptionResult], row: int) -> RowOutcome:
        """The samples that one planned sample becomes.

        Args:
            plan: what was asked.
            results: one a request, in request order.
            row: index of the sample in the stream.
        """
        try:
            return self._finish(plan, results, row)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return self._finish(Plan(plan.sample, failure=(0, internal_failure(exc))), [], row)

    def _finish(self, plan: Plan, results: Sequence[CaptionResult], row: int) -> RowOutcome:
        failures = [(r.request_id.video, r.failure) for r in results if r.failure is not None]
        if plan.failure is not None:
            failures.append(plan.failure)
        kept = [] if failures else self._keep(plan, results, failures)
        samples = [self._generated(plan, candidates) for candidates in kept]
        if self.keep_original:
            samples.insert(0, self._original(plan.sample, failures))
        usage = Usage(sum(r.usage.prompt_tokens for r in results), sum(r.usage.completion_tokens for r in results))
        return RowOutcome(
            row,
            samples,
            captions=[[one.text for one in candidates] for candidates in kept],
            failures=failures,
            videos=len(plan.requests),
            usage=usage,
            finish_reasons=[[one.finish_reason for one in candidates] for candidates in kept],
            reasonings=[[one.reasoning or None for one in candidates] for candidates in kept],
        )

    def _keep(
        self, plan: Plan, results: Sequence[CaptionResult], failures: list[tuple[int, Failure]]
    ) -> list[list[Candidate]]:
        """Kept candidates, one list a generated sample, in video order; empty captions go to `failures`."""
        owners = [chunk for chunk in plan.chunks for _ in range(chunk.num_videos)]
        columns = []
        for result, chunk, request in zip(results, owners, plan.requests, strict=True):
            texts = written = self._texts(result)
            if not all(texts) and (self.keep == "all" or not any(texts)):
                failures.append((request.id.video, self.lack_of(result)))
            if self.keep != "all":
                texts = [text for text in texts if text]
            choice = Choice(ordinary_text(chunk.text, self.tokens), content_seed(request.seed, "select"))
            kept = SELECTORS[self.keep](texts, choice) if texts else []
            columns.append(_candidates_of(kept, result.candidates, written))
        return [list(row) for row in zip(*columns, strict=False) if all(one.text for one in row)]

    def _generated(self, plan: Plan, candidates: Sequence[Candidate]) -> Sample:
        sample = {name: _copied(value) for name, value in plan.sample.items()}
        captions = [one.text for one in candidates]
        waiting = iter(captions)
        sample[self.text_key] = "".join(
            insert_captions(chunk, [next(waiting) for _ in range(chunk.num_videos)], self.tokens)
            for chunk in plan.chunks
        )
        return self._with_extra_fields(sample, candidates=candidates, failure=None)

    def _original(self, sample: Sample, failures: Sequence[tuple[int, Failure]]) -> Sample:
        failure = failure_to_dict(failures[0][1], video_index=failures[0][0]) if failures else None
        return self._with_extra_fields(dict(sample), candidates=None, failure=failure)

    def _with_extra_fields(self, sample: Sample, *, candidates: Sequence[Candidate] | None, failure: Any) -> Sample:
        def told(value: Callable[[Candidate], Any]) -> list[Any] | None:
            return None if candidates is None else [value(one) for one in candidates]

        values = {
            self.caption_key: told(lambda one: one.text),
            self.finish_reason_key: told(lambda one: one.finish_reason),
            self.reasoning_key: told(lambda one: one.reasoning or None),
            self.failure_key: failure,
        }
        for key, value in values.items():
            if key is not None and self._may_write(key, sample):
                sample[key] = value
        return sample


def _candidates_of(kept: Sequence[str], candidates: Sequence[Candidate], texts: Sequence[str]) -> list[Candidate]:
    """The candidates that have the kept texts, each once as long as there are several, with these as their text."""
    by_text: dict[str, list[Candidate]] = {}
    for text, one in zip(texts, candidates, strict=True):
        by_text.setdefault(text, []).append(one)
    found = (by_text[text].pop(0) if len(by_text[text]) > 1 else by_text[text][0] for text in kept)
    return [replace(one, text=text) for one, text in zip(found, kept, strict=True)]


def window_of(sample: Sample, window_keys: tuple[str, str], *, default: TimeWindow, video_index: int = 0) -> TimeWindow:
    """The part of a video that a sample is about.

    Args:
        sample: its own start and end count.
        window_keys: the fields of these.
        default: counts where the sample does not say.
        video_index: index of the video, where a field has a list.

    Raises:
        SettingsError: a field holds no seconds, or the window ends before it starts.
    """
    start, end = (_seconds(sample, key, video_index) for key in window_keys)
    return TimeWindow(default.start_seconds if start is None else start, default.end_seconds if end is None else end)


def has_own_window(sample: Sample, window_keys: tuple[str, str]) -> bool:
    """Whether a sample says itself which part of its video it is about."""
    return any(_seconds(sample, key, 0) is not None for key in window_keys)


def videos_of(value: Any) -> list[Any]:
    """The videos of a sample: none, one given bare, or a sequence; what is no video is the reader's to refuse."""
    if value is None:
        return []
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _copied(value: Any) -> Any:
    """A value whose lists and dicts are new; what they hold in the end is shared."""
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _is_taken(option: str, key: str) -> str:
    return f"the row has a value in its field {key!r}, which this run would replace; give {option} another name"


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(sample: Sample, key: str, video_index: int) -> float | None:
    value: Any = sample.get(key)
    if value is not None and hasattr(value, "tolist"):  # a NumPy scalar or array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        value = value[video_index] if video_index < len(value) else None
    if value is None or value != value:  # NaN is how pandas writes null
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise SettingsError(f"field {key!r} must be seconds, 0 or more, or null; got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise SettingsError(f"field {key!r} must be seconds; got {_shown(value)}") from None


def _digits(value: int) -> int:
    """About how many digits a whole number has; writing a long one out takes a time that grows with its square."""
    return int(value.bit_length() * 0.30103) + 1


def _shown(value: Any) -> str:
    """A value in a message, which is one short line."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {_digits(value)} digits"
    return reprlib.repr(value)
