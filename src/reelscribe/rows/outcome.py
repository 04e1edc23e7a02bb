"""What becomes of a row, as plain values between its answers and the rows of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..types import Candidate, Failure, Sample, Usage
from .asks import UNNAMED

T = TypeVar("T")

Kept = Sequence[Sequence[Candidate]]
"""What one ask came to: for each kept choice the candidates, in the order of the videos."""


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What one row became."""

    row: int
    """Index in the stream, from 0."""
    sample: Sample
    """The row as it came."""
    kept: Mapping[str, Kept] = field(default_factory=dict)
    """Name of an ask to the candidates that are kept; nothing where a video failed."""
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    """(video index, failure)."""
    videos: int = 0
    """Videos of the row that were asked about."""
    usage: Usage = field(default_factory=Usage)
    """Tokens spent on the row."""
    samples: list[Sample] = field(default_factory=list)
    """Output rows, once the row's form has made them: the original first if it is kept, then the generated ones in
    candidate order."""

    @property
    def candidates(self) -> Kept:
        """What is kept of the unnamed ask."""
        return self.kept.get(UNNAMED, ())

    @property
    def captions(self) -> list[list[str]]:
        """For each generated row its captions in video order; empty where nothing was generated."""
        return self.each(lambda one: one.text)

    @property
    def finish_reasons(self) -> list[list[str]]:
        """For each of `captions` why it ended: `stop`, or `length` where it was cut at the token limit."""
        return self.each(lambda one: one.finish_reason)

    @property
    def reasonings(self) -> list[list[str | None]]:
        """For each of `captions` the reasoning before it; None where the model wrote none."""
        return self.each(lambda one: one.reasoning or None)

    def each(self, value: Callable[[Candidate], T]) -> list[list[T]]:
        """A value of each candidate that is kept of the unnamed ask."""
        return [[value(one) for one in candidates] for candidates in self.candidates]

    def failed(self, failure: Failure) -> RowOutcome:
        """The outcome of a row that came to nothing after all."""
        return replace(self, kept={}, failures=[(0, failure)], samples=[])
