"""Tracks which videos were with a model when its process died, so that the one that kills it is found and given up.

Plain values; the runner decides where this is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

MAX_DEATHS = 2
"""How often a process may die while processing one video alone before that video is given up."""


@dataclass
class Suspects:
    """Videos that are with a model, by the process that has them.

    A process that dies reports nothing: its videos are noticed when another process starts on them.
    """

    holders: dict[Hashable, str] = field(default_factory=dict)
    """Video to the process that has it, or had it last."""
    deaths: dict[Hashable, int] = field(default_factory=dict)
    """Suspect to the number of times it was tried alone and not finished."""

    def begin(self, holder: str, videos: Iterable[Hashable]) -> dict[Hashable, int]:
        """Record that a process starts on these videos.

        Returns:
            The suspects among them, which another process started and did not finish, with how often each was tried
            alone since. They must be tried alone, the others together.
        """
        suspects = {}
        for video in videos:
            if self.holders.setdefault(video, holder) != holder:
                suspects[video] = self.deaths.get(video, 0)
        return suspects

    def try_alone(self, video: Hashable) -> None:
        """Record that a suspect is about to be tried alone."""
        self.deaths[video] = self.deaths.get(video, 0) + 1

    def end(self, videos: Iterable[Hashable]) -> None:
        """Record that these videos are answered."""
        for video in videos:
            self.holders.pop(video, None)
            self.deaths.pop(video, None)
