"""Frame rules that only a model's own library implements: the question they answer, and how a process that does not
load that library asks it.

A reading process sends the question over the socket that its requests come from; its parent has the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .policy import FrameSettings


class Question(NamedTuple):
    """The input of a rule: a video, or a part of one, at a constant rate."""

    total_frames: int
    """Frames, at least 1."""
    fps: float
    """Frames per second."""
    duration_seconds: float
    """Length in seconds."""


class Answer(NamedTuple):
    """A rule's answer, on its way to the process that asked."""

    indices: Sequence[int]
    """As `FrameRule.choose` returns them."""


class FrameRule(Protocol):
    """A rule for frames; plain values, so that it can go to another machine."""

    def choose(self, question: Question) -> Sequence[int]:
        """Positions of the frames to show, at least one, in the order in which they are shown, perhaps repeated."""

    def override(self, settings: FrameSettings) -> FrameRule:
        """This rule with the user's settings."""

    def most_frames(self) -> int:
        """Most frames of any video up to an hour."""


@dataclass(frozen=True, slots=True)
class ParentsRule:
    """In a reading process: the rule of its parent."""

    def choose(self, question: Question) -> Sequence[int]:
        """The parent's answer."""
        if _ask is None:
            raise RuntimeError("the frame rule lives in another process, and no way to call it was set up")
        return _ask(question)

    def override(self, _settings: FrameSettings) -> FrameRule:
        """Itself: the parent has the user's settings."""
        return self

    def most_frames(self) -> int:
        """Not needed where videos are read."""
        raise NotImplementedError


_ask: Callable[[Question], Sequence[int]] | None = None


def ask_with(ask: Callable[[Question], Sequence[int]]) -> None:
    """Set, once in a reading process, how its parent is asked."""
    global _ask
    _ask = ask
