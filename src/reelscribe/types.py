"""The values that travel through the house: what is asked, what was seen, what came out.

All are frozen and picklable. Nothing here knows where a row comes from or which model answers.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import ReelscribeError, SettingsError
from .printable import printable

Sample = dict[str, Any]
"""One row of a data set: field name to value."""

FAILURE_KINDS = {
    "not_found": "the file does not exist",
    "unreadable": "the file exists but cannot be opened or decoded as a video",
    "no_video_stream": "the file has no video stream (for example, audio only)",
    "no_frames": "the file has a video stream but none of its frames can be decoded, or none is in the time window",
    "not_allowed": "the settings forbid it (a remote address, a still picture, or a path outside the media root)",
    "too_large": "a frame or the file exceeds the size limit",
    "too_long": "the video exceeds the limit on its duration or its number of frames",
    "timeout": "reading the video exceeded the time limit, twice",
    "crashed": "the process reading the video died twice",
    "bad_sample": "the row does not fit the contract (more video tokens than videos, a value that is no video, a field "
    "to be written that holds a value), or cannot be read",
    "out_of_memory": "this video alone does not fit in the memory of the device, or reading exceeds the memory limit",
    "too_many_tokens": "the video and its prompt exceed what the model, the engine or the server accepts",
    "engine_died": "the engine died twice while processing this video",
    "server_error": "the server rejected the request, or failed on it repeatedly",
    "no_answer": "the model reasoned but gave no answer within its budgets (--thinking-tokens, --max-tokens), twice",
    "empty_caption": "the model gave no text, also with another seed",
    "not_finite": "the model computed NaN or infinities, also with another seed",
    "rejected": "a check from another package rejected every caption, also with another seed",
    "model_error": "the model raised an error for this video",
    "internal_error": "an error in this package while handling the row; the traceback is in the log of the run",
}
"""Kinds of failure and what each means."""


class RequestId(NamedTuple):
    """What a request is about; results, the journal and the cluster find answers by it."""

    row: int
    """Index of the row in the stream, from 0."""
    video: int
    """Index of the video in the row, from 0."""
    ask: str = ""
    """Name of what is asked of the video; the one ask of a run that has no others is unnamed."""


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The part of a video to look at, in seconds on the file's own clock; None means open."""

    start_seconds: float | None = None
    """First moment to show."""
    end_seconds: float | None = None
    """Last moment to show."""

    def __post_init__(self) -> None:
        start, end = self.start_seconds, self.end_seconds
        if start is not None and end is not None and end < start:
            raise SettingsError(f"a time window must not end before it starts; got {start} to {end} seconds")


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One video to caption: where it is and what is asked of it."""

    id: RequestId
    """Row, video and ask."""
    video: Any
    """The video's value as the sample has it: a path, bytes, or `{'path': …, 'bytes': …}`."""
    prompt: str
    """What the model is asked."""
    system_prompt: str | None = None
    """The system message, if any."""
    num_candidates: int = 1
    """How many captions to write (M)."""
    seed: int = 0
    """Seed of this request's sampling, derived from the run's seed and the sample's content."""
    window: TimeWindow = field(default_factory=TimeWindow)
    """The part of the video to look at."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Decoded frames of one video with the times the file gives them."""

    frames: NDArray[np.uint8]
    """RGB, uint8 `[T, H, W, 3]`, upright, at the size the model will see."""
    pts_seconds: NDArray[np.float64]
    """Presentation time of each frame in seconds, float64 `[T]`, on the file's own clock."""
    duration_seconds: float
    """Length of the source video in seconds."""
    source_fps: float
    """Average frame rate of the source, frames per second."""
    source_height: int
    """Height of the source in pixels, after rotation."""
    source_width: int
    """Width of the source in pixels, after rotation."""
    window_seconds: float | None = None
    """Length in seconds of the part the frames were chosen from; None: the whole video."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or len(self.frames) != len(self.pts_seconds):
            raise ValueError(
                f"a clip needs frames [T, H, W, 3] and T times; got {self.frames.shape} and {len(self.pts_seconds)}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes the frames take."""
        return self.frames.nbytes


CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for the bytes of a character that is not whole."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One caption the model wrote."""

    text: str
    """The text as decoded, special tokens of the model skipped. A character at its end of which bytes are missing, as
    where a token limit cuts it, is not part of it, whatever decoded it."""
    finish_reason: str = "stop"
    """`stop` (the model ended) or `length` (cut at `max_tokens`)."""
    tokens: int = 0
    """Generated tokens, without those of the reasoning."""
    mean_logprob: float | None = None
    """Mean natural-log probability of these tokens under the model, or None where it is not known."""
    reasoning: str | None = None
    """What the model wrote before the caption to find it; None: it wrote nothing of the kind. Where the text is empty,
    no answer followed."""
    reasoning_tokens: int = 0
    """Generated tokens of the reasoning and its marks; 0 also where they are not counted."""
    marks: tuple[str, ...] = ()
    """Remarks of checks, for the choice among candidates; they are found again each time, and kept nowhere."""

    @property
    def all_tokens(self) -> int:
        """Generated tokens, reasoning included."""
        return self.tokens + self.reasoning_tokens

    def __post_init__(self) -> None:
        if self.text.endswith(CUT_CHARACTER):
            object.__setattr__(self, "text", self.text.rstrip(CUT_CHARACTER))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request cost."""

    prompt_tokens: int = 0
    """Tokens of the prompt, vision tokens included, counted once for all candidates."""
    completion_tokens: int = 0
    """Generated tokens over all candidates."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one video has no caption."""

    kind: str
    """A key of `FAILURE_KINDS`."""
    message: str
    """One sentence for a person; it is made printable, without credentials."""
    attempts: int = field(default=1, compare=False)
    """How often reading was tried."""
    seconds: float = field(default=0.0, compare=False, repr=False)
    """Time spent on reading, over all tries."""
    trace: str | None = field(default=None, compare=False, repr=False)
    """The traceback of an error of this package, for the log of the run; it is kept nowhere else."""

    def __post_init__(self) -> None:
        if self.kind not in FAILURE_KINDS:
            raise ValueError(f"unknown failure kind {self.kind!r}; choose from {', '.join(FAILURE_KINDS)}")
        object.__setattr__(self, "message", printable(self.message))


LONGEST_MESSAGE = 300
"""Characters of an error's own text that a failure shows."""


def belongs_to_row(exc: BaseException) -> bool:
    """Whether an error can be that of one row: not one that is raised on purpose, of the machine, or of the user."""
    return isinstance(exc, Exception) and not isinstance(exc, (ReelscribeError, OSError, MemoryError))


def internal_failure(exc: BaseException) -> Failure:
    """The failure of a row that an unexpected error belongs to."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())[:LONGEST_MESSAGE]
    return Failure("internal_error", text, trace="".join(traceback.format_exception(exc)))


class BadRow(dict[str, Any]):
    """A row that is not asked about: it fails, and is passed on as it came.

    It holds the fields as far as they can be read; a value that Python cannot hold is an Arrow scalar or its JSON text.

    Args:
        fields: what can be read of the row.
        failure: why nothing is asked.
        line: the row as a line of JSON, where it came as one.
        added: fields that `line` lacks.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        *,
        failure: Failure,
        line: bytes | None = None,
        added: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(fields)
        self.failure = failure
        self.line = line
        self.added = dict(added or {})

    def with_fields(self, added: Mapping[str, Any]) -> BadRow:
        """The same row with fields that the run adds."""
        return BadRow({**self, **added}, failure=self.failure, line=self.line, added={**self.added, **added})

    def without_fields(self) -> BadRow:
        """Only why nothing is asked: plain values that travel to other processes."""
        return BadRow({}, failure=self.failure)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bad_row, (dict(self), self.failure, self.line, self.added)


def _bad_row(fields: Sample, failure: Failure, line: bytes | None, added: Sample) -> BadRow:
    return BadRow(fields, failure=failure, line=line, added=added)


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """What a captioner gives back for one request: candidates, or a failure."""

    request_id: RequestId
    """The request this answers."""
    candidates: tuple[Candidate, ...] = ()
    """The captions, in candidate order."""
    failure: Failure | None = None
    """Set when there are no candidates."""
    usage: Usage = field(default_factory=Usage)
    """Tokens spent."""

    def __post_init__(self) -> None:
        if bool(self.candidates) == (self.failure is not None):
            raise ValueError("a result holds either candidates or a failure")


def failure_to_dict(failure: Failure, *, video_index: int) -> Mapping[str, Any]:
    """The plain form of a failure that goes into a data set field."""
    return {"kind": failure.kind, "message": failure.message, "video_index": video_index}
