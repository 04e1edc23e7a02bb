"""The frames that a transformers video processor itself would select from a file, and the user's changes to that.

Knows no family by name: the processor's own `sample_frames` is called, with the settings that its own reader would
pass, and the effect of a setting is found out by calling it for an imaginary video.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..video.frames.library_rules import FrameRule, Question
from ..video.frames.moments import FrameSettings

Indices = NDArray[np.int64]

DEFAULT_FPS = 2.0
"""Frames per second if a processor gives none."""
DEFAULT_MAX_FRAMES = 32
"""Most frames if a processor gives neither a rate nor a number."""
_NOT_FOR_SAMPLING = frozenset({"input_data_format", "do_convert_rgb", "do_sample_frames", "device", "video_metadata"})
"""Settings that processors remove before they sample."""
_CAPS = ("max_frames", "max_num_frames")
"""Attributes with which processors limit the number of frames; some name a limit `num_frames`."""
_PROBE_FPS = 24.0


@dataclass(frozen=True, slots=True)
class ProcessorRule:
    """The rule of a video processor; it carries the processor as bytes, so that it can be sent to another machine."""

    pickled: bytes
    """The video processor."""
    samples: bool
    """Whether the processor chooses the number of frames; otherwise that is done here, and it chooses which."""
    knows_fps: bool
    """Whether it honours a given rate."""
    caps: tuple[str, ...]
    """Its attributes that limit the number of frames."""
    fps: float
    """Frames per second if the number is chosen here."""
    max_frames: int
    """Most frames if the number is chosen here."""
    multiple: int
    """If the number of frames was changed, the last one is repeated until it is a multiple of this."""
    least: int
    """Fewest frames that the processor accepts; the last one is repeated up to this number."""
    settings: FrameSettings = field(default_factory=FrameSettings)
    """The user's settings."""

    def override(self, settings: FrameSettings) -> FrameRule:
        """This rule with the user's settings."""
        given = {
            name: getattr(settings, name)
            for name in ("fps", "num_frames", "min_frames", "max_frames")
            if getattr(settings, name) is not None
        }
        return replace(self, settings=replace(self.settings, **given))

    def choose(self, question: Question) -> Sequence[int]:
        """The processor's choice, within the user's limits; if it fails, as some do for very short videos, or cannot
        give the requested number, evenly spread frames."""
        number = self._number(question)
        taken = self._taken(question, number)
        distinct = np.unique(taken)
        if number is not None and len(distinct) != number:
            distinct = _even(question.total_frames, number)
        distinct = self._limited(distinct, question.total_frames)
        if np.array_equal(distinct, np.unique(taken)):
            return taken
        return self._padded(distinct.tolist())

    def _number(self, question: Question) -> int | None:
        """How many frames to take, if the processor does not choose."""
        user, total = self.settings, question.total_frames
        if user.num_frames is not None:
            return min(user.num_frames, total)
        if self.samples and (user.fps is None or self.knows_fps):
            return None
        fixed = None if user.fps is not None or self.samples else _attribute(self, "num_frames")
        wanted = fixed or int(total / question.fps * (user.fps or self.fps))
        low = user.min_frames or 2
        high = user.max_frames or max(self.max_frames, fixed or 0, low)
        return max(1, min(max(wanted, min(low, high)), high, total))

    def _taken(self, question: Question, number: int | None) -> list[int]:
        settings: dict[str, Any] = {}
        if number is not None:
            settings = {"num_frames": number, "fps": None}
        elif self.settings.fps is not None:
            settings = {"fps": self.settings.fps}
        if number is None and self.settings.max_frames is not None:
            settings |= dict.fromkeys(self.caps, self.settings.max_frames)
        taken = _ask(self.pickled, question, settings)
        if taken:
            return taken + taken[-1:] * (self.least - len(taken))
        fallback = number or _attribute(self, "num_frames") or int(question.duration_seconds * self.fps)
        return self._padded(_even(question.total_frames, fallback).tolist())

    def _limited(self, distinct: Indices, total: int) -> Indices:
        """The frames within the user's limits: some of the processor's, or more, evenly spread."""
        low, high = self.settings.min_frames, self.settings.max_frames
        if high is not None and len(distinct) > high:
            thinned: Indices = distinct[_even(len(distinct), high)]
            return thinned
        if low is not None and len(distinct) < min(low, total):
            return _even(total, min(low, total))
        return distinct

    def _padded(self, chosen: list[int]) -> list[int]:
        count = max(len(chosen), self.least)
        return chosen + chosen[-1:] * (count + -count % self.multiple - len(chosen))

    def most_frames(self) -> int:
        """Most frames of any video up to an hour."""
        lengths = (1, 10, 30, 31, 60, 300, 301, 3600)
        return max(len(self.choose(_seconds(length))) for length in lengths)


def processor_rule(video: Any, *, samples: bool, least: int = 1) -> ProcessorRule:
    """The rule of a video processor.

    Args:
        video: the processor.
        samples: whether it samples when it reads a file itself and no number is requested.
        least: fewest frames that it accepts.
    """
    pickled = _as_bytes(video)
    fps = getattr(video, "fps", None)
    has_rate = fps is not None or getattr(video, "num_frames", None) is not None
    max_frames = getattr(video, "max_frames", None) if has_rate or samples else None
    return ProcessorRule(
        pickled=pickled,
        samples=samples,
        knows_fps=samples and _knows_fps(pickled),
        caps=_caps(video, pickled) if samples else (),
        fps=float(fps or DEFAULT_FPS),
        max_frames=int(max_frames or (768 if samples else DEFAULT_MAX_FRAMES)),
        multiple=_multiple(video, pickled) if samples else 1,
        least=least,
    )


def _multiple(video: Any, pickled: bytes) -> int:
    """The temporal patch if the processor accepts only whole ones, else 1: then it pads the last one itself."""
    patch = int(getattr(video, "temporal_patch_size", None) or 1)
    counts = [len(_ask(pickled, _seconds(tenths / 10), {})) for tenths in range(13, 133, 7)]
    return patch if all(count % patch == 0 for count in counts) else 1


def _knows_fps(pickled: bytes) -> bool:
    """Whether a lower rate gives proportionally fewer frames."""
    minute = _seconds(60)
    counts = [len(set(_ask(pickled, minute, {"fps": rate}))) for rate in (0.25, 0.5)]
    return abs(counts[0] - 15) <= 2 and abs(counts[1] - 30) <= 2


def _caps(video: Any, pickled: bytes) -> tuple[str, ...]:
    """Attributes that limit the number of frames: those named so, and `num_frames` if a short video gets fewer."""
    caps = [name for name in _CAPS if getattr(video, name, None) is not None]
    number = getattr(video, "num_frames", None)
    if number is not None:
        short = _seconds(number / 4)
        taken = len(set(_ask(pickled, short, {})))
        if 0 < taken < min(number, short.total_frames):
            caps.append("num_frames")
    return tuple(caps)


def _seconds(length: float) -> Question:
    total = max(1, round(length * _PROBE_FPS))
    return Question(total, _PROBE_FPS, total / _PROBE_FPS)


def _even(total: int, count: int) -> Indices:
    """Positions of `count` of `total` frames, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, max(1, min(count, total))).round().astype(np.int64))


def _attribute(rule: ProcessorRule, name: str) -> Any:
    return getattr(_loaded(rule.pickled), name, None)


_STAYS: dict[bytes, Any] = {}
"""Processors of this process that cannot be pickled, by their stand-in bytes."""


def _as_bytes(video: Any) -> bytes:
    try:
        return pickle.dumps(video)
    except Exception:  # a model's own code may hold anything
        key = f"stays in process {os.getpid()}: {len(_STAYS)}".encode()
        _STAYS[key] = video
        return key


@lru_cache(maxsize=8)
def _loaded(pickled: bytes) -> Any:
    if pickled in _STAYS:
        return _STAYS[pickled]
    try:
        return pickle.loads(pickled)
    except Exception as exc:  # it belongs to another process, or its code is not on this machine
        raise ModelError(f"the model's video processor, which selects frames, cannot be loaded here: {exc}") from exc


def _ask(pickled: bytes, question: Question, settings: Mapping[str, Any]) -> list[int]:
    """The indices that the processor's own reader would take, in its order; empty if it takes none, or fails.

    Args:
        pickled: the processor.
        question: the video.
        settings: attributes that differ from the processor's own.
    """
    from transformers.video_utils import VideoMetadata

    video = copy.copy(_loaded(pickled))
    for name, value in settings.items():
        setattr(video, name, value)
    names = [name for name in video.valid_kwargs.__annotations__ if name not in _NOT_FOR_SAMPLING]
    own = {name: getattr(video, name, None) for name in names} | _without_none(settings)
    metadata = VideoMetadata(
        total_num_frames=question.total_frames, fps=question.fps, duration=question.duration_seconds
    )
    try:
        indices = [int(index) for index in video.sample_frames(metadata=metadata, **own)]
    except Exception:  # each has its own way to refuse what it cannot sample
        return []
    return [index for index in indices if 0 <= index < question.total_frames]


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
