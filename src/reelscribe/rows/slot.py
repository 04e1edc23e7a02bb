"""A place for captions in a row: one video that is asked about, and what its row says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..types import Failure, TimeWindow


@dataclass(frozen=True, slots=True)
class Slot:
    """One video that is asked about."""

    video: Any
    """Its value as the row has it."""
    text: Any
    """Text of the row, from which seeds are derived; of whatever type the row has."""
    original: str
    """Ordinary text that the video stands in, which selectors may compare candidates with."""
    prompt: Any
    """The row's own prompt, where this is a string; an ask's prompt is used otherwise."""
    window: TimeWindow
    """The part of the video to look at."""


class RefusedRowError(Exception):
    """A row that is not asked about: what there is to say of one of its videos."""

    def __init__(self, failure: Failure, *, video: int = 0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.video = video


def bad_sample(message: str, *, video: int = 0) -> RefusedRowError:
    """The refusal of a row that does not fit the contract."""
    return RefusedRowError(Failure("bad_sample", message), video=video)
