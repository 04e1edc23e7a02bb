"""Frames chosen by a rule that only a model's own library knows: what such a rule is asked, and how a process that does
not load that library asks it.

A process that reads sends the question over the socket that its requests come from; its parent has the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .policy import FrameSettings


class Question(NamedTuple):
    """What a rule goes by: a video, or a part of one, at a constant rate."""

    total_frames: int
    """Frames, at least 1."""
    fps: float
    """Frames per second."""
    duration_seconds: float
    """Length in seconds."""


class Answer(NamedTuple):
    """What a rule says, on its way to the process that asked."""

    indices: Sequence[int]
    """As `FrameRule.choose` gives them."""


class FrameRule(Protocol):
    """A rule for frames; plain values, so that it can go to another machine."""

    def choose(self, question: Question) -> Sequence[int]:
        """Positions of the frames to show, at least one, in the order in which they are shown, perhaps repeated."""

    def override(self, settings: FrameSettings) -> FrameRule:
        """This rule with what the user set."""

    def most_frames(self) -> int:
        """Frames that no video up to an hour exceeds."""


@dataclass(frozen=True, slots=True)
class ParentsRule:
    """In a process that reads: the rule of its parent."""

    def choose(self, question: Question) -> Sequence[int]:
        """The parent's answer."""
        if _ask is None:
            raise RuntimeError("the rule for frames lies in another process, and nobody said how to ask it")
        return _ask(question)

    def override(self, _settings: FrameSettings) -> FrameRule:
        """Itself: the parent knows what the user set."""
        return self

    def most_frames(self) -> int:
        """Not asked for where videos are read."""
        raise NotImplementedError


_ask: Callable[[Question], Sequence[int]] | None = None


def ask_with(ask: Callable[[Question], Sequence[int]]) -> None:
    """Say, once in a process that reads, how its parent is asked."""
    global _ask
    _ask = ask
