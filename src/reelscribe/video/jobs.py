"""One video to read and who wants it; and clips that were read lately, in case they are wanted again."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..record import CaptionRequest, Clip


@dataclass(eq=False, slots=True)
class Job:
    """One video to read, and who wants it."""

    key: Hashable
    video: str | bytes
    settings: dict[str, Any]
    requests: list[CaptionRequest]
    crashes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that remembering it takes, besides the clip."""
        return len(self.video) if isinstance(self.video, bytes) else 0


@dataclass(slots=True)
class RecentClips:
    """Clips that were read lately, by what was asked for; the oldest go first."""

    max_bytes: int
    clips: OrderedDict[Hashable, tuple[Clip, int]] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def get(self, key: Hashable) -> Clip | None:
        """A clip that is still here."""
        if key not in self.clips:
            return None
        self.clips.move_to_end(key)
        return self.clips[key][0]

    def put(self, job: Job, clip: Clip) -> None:
        """Keep a clip, and let old ones go."""
        self.clips[job.key] = clip, job.nbytes + clip.nbytes
        self.nbytes += job.nbytes + clip.nbytes
        while self.nbytes > self.max_bytes:
            _, (_, nbytes) = self.clips.popitem(last=False)
            self.nbytes -= nbytes


def plain_video(video: Any) -> str | bytes | None:
    """A sample's video value as a path or bytes, which any process can read; None where it is neither."""
    if isinstance(video, Mapping):
        data = video.get("bytes")
        video = video.get("path") if data is None else data
    if isinstance(video, bytearray | memoryview):
        return bytes(video)
    if isinstance(video, os.PathLike):
        path = os.fspath(video)
        return path if isinstance(path, str) else None
    return video if isinstance(video, str | bytes) else None
