"""Which videos were with a model when its process died, so that the one that kills it is found and given up.

Plain values; who keeps this, and where, is the runner's business.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

MAX_DEATHS = 2
"""How often a process may die while it works on one video alone before that video is given up."""


@dataclass
class Suspects:
    """Videos that are with a model, by the process that has them.

    A holder that dies tells nobody: what it had is noticed when somebody else begins with the same videos.
    """

    holders: dict[Hashable, str] = field(default_factory=dict)
    """Video to who has it, or had it last."""
    deaths: dict[Hashable, int] = field(default_factory=dict)
    """Suspect to the times it was tried alone without an end."""

    def begin(self, holder: str, videos: Iterable[Hashable]) -> dict[Hashable, int]:
        """Note who begins with these videos.

        Returns:
            Those that are suspects, because another holder began with them and did not end, with how often each was
            tried alone since. They are to be tried alone, the others together.
        """
        suspects = {}
        for video in videos:
            if self.holders.setdefault(video, holder) != holder:
                suspects[video] = self.deaths.get(video, 0)
        return suspects

    def try_alone(self, video: Hashable) -> None:
        """A suspect is about to be tried alone."""
        self.deaths[video] = self.deaths.get(video, 0) + 1

    def end(self, videos: Iterable[Hashable]) -> None:
        """These videos have an answer."""
        for video in videos:
            self.holders.pop(video, None)
            self.deaths.pop(video, None)
