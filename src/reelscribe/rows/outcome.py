"""The outcome of a row, as plain values between its answers and the output rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..types import Candidate, Failure, Sample, Usage
from .asks import UNNAMED

T = TypeVar("T")

Kept = Sequence[Sequence[Candidate]]
"""Result of one ask: for each kept choice its candidates, in video order."""


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """The outcome of one row."""

    row: int
    """Index in the stream, from 0."""
    sample: Sample
    """The row as it came."""
    kept: Mapping[str, Kept] = field(default_factory=dict)
    """Name of an ask to its kept candidates; empty if a video failed."""
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    """(video index, failure)."""
    videos: int = 0
    """Number of videos of the row that were sent to the model."""
    usage: Usage = field(default_factory=Usage)
    """Tokens spent on the row."""
    samples: list[Sample] = field(default_factory=list)
    """Output rows, set by the row's form: the original first if it is kept, then the generated ones in candidate
    order."""

    @property
    def candidates(self) -> Kept:
        """Kept candidates of the unnamed ask."""
        return self.kept.get(UNNAMED, ())

    @property
    def captions(self) -> list[list[str]]:
        """The captions of each generated row in video order; empty if nothing was generated."""
        return self.each(lambda one: one.text)

    @property
    def finish_reasons(self) -> list[list[str]]:
        """Why each of `captions` ended: `stop`, or `length` if it was cut off at the token limit."""
        return self.each(lambda one: one.finish_reason)

    @property
    def reasonings(self) -> list[list[str | None]]:
        """The reasoning before each of `captions`; None if the model wrote none."""
        return self.each(lambda one: one.reasoning or None)

    def each(self, value: Callable[[Candidate], T]) -> list[list[T]]:
        """A value of each kept candidate of the unnamed ask."""
        return [[value(one) for one in candidates] for candidates in self.candidates]

    def failed(self, failure: Failure) -> RowOutcome:
        """The outcome of a row that failed after all."""
        return replace(self, kept={}, failures=[(0, failure)], samples=[])
