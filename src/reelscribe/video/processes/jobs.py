"""One video to read, its requesters and tries; and a cache of recently read clips."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...types import CaptionRequest, Clip, Failure

MAX_ATTEMPTS = 2
"""Tries before a video is given up."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A failure that occurred while decoding: worth one more try, in a fresh process and without shortcuts."""

    failure: Failure
    """What to report if it occurs again."""


@dataclass(eq=False, slots=True)
class Job:
    """One video to read, its requesters, and its tries."""

    key: Hashable
    """What is requested: the video and the window."""
    video: str | bytes
    """A path, a URL or a file's bytes."""
    settings: dict[str, Any]
    """Further arguments of the reader."""
    requests: list[CaptionRequest]
    """Its requesters."""
    attempts: int = 0
    """Finished tries."""
    seconds: float = 0.0
    """Time spent on them."""

    def tried(self, seconds: float) -> None:
        """Record a finished try."""
        self.attempts += 1
        self.seconds += seconds

    @property
    def is_given_up(self) -> bool:
        """Whether no try is left."""
        return self.attempts >= MAX_ATTEMPTS

    def failed(self, outcome: Failure | Doubt) -> Failure:
        """The failure to report, with tries and time."""
        failure = outcome.failure if isinstance(outcome, Doubt) else outcome
        return replace(failure, attempts=self.attempts, seconds=self.seconds)

    @property
    def nbytes(self) -> int:
        """Bytes that an entry takes, besides the clip."""
        return len(self.video) if isinstance(self.video, bytes) else 0


MAX_RECENT = 64
"""Clips that are kept, however small they are."""


@dataclass(slots=True)
class RecentClips:
    """Recently read clips, by request; the oldest go first."""

    max_bytes: int
    clips: OrderedDict[Hashable, tuple[Clip, int]] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def get(self, key: Hashable) -> Clip | None:
        """A clip that is still cached."""
        if key not in self.clips:
            return None
        self.clips.move_to_end(key)
        return self.clips[key][0]

    def put(self, job: Job, clip: Clip) -> None:
        """Add a clip, and drop old ones."""
        self.clips[job.key] = clip, job.nbytes + clip.nbytes
        self.nbytes += job.nbytes + clip.nbytes
        while self.nbytes > self.max_bytes or len(self.clips) > MAX_RECENT:
            _, (_, nbytes) = self.clips.popitem(last=False)
            self.nbytes -= nbytes


def plain_video(video: Any) -> str | bytes | None:
    """A sample's video value as a path or bytes, which any process can read; None if it is neither."""
    if isinstance(video, Mapping):
        data = video.get("bytes")
        video = video.get("path") if data is None else data
        if data is None and not isinstance(video, str | os.PathLike):  # bytes there would be a path
            return None
    if isinstance(video, bytearray | memoryview):
        return bytes(video)
    if isinstance(video, os.PathLike):
        path = os.fspath(video)
        return path if isinstance(path, str) else None
    return video if isinstance(video, str | bytes) else None
