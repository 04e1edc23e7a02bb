"""A slot for captions in a row: one video to caption, and what its row specifies for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..types import Failure, TimeWindow


@dataclass(frozen=True, slots=True)
class Slot:
    """One video to caption."""

    video: Any
    """Its value as the row has it."""
    text: Any
    """The row's text field, from which seeds are derived; of any type."""
    original: str
    """Ordinary text around the video, which selectors may compare candidates with."""
    prompt: Any
    """The row's own prompt, if it is a string; otherwise the ask's prompt is used."""
    window: TimeWindow
    """The part of the video to caption."""


class RefusedRowError(Exception):
    """A row that cannot be captioned, with the failure of one of its videos."""

    def __init__(self, failure: Failure, *, video: int = 0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.video = video


def bad_sample(message: str, *, video: int = 0) -> RefusedRowError:
    """The error for a row that violates the contract."""
    return RefusedRowError(Failure("bad_sample", message), video=video)
