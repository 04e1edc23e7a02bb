"""A model's context: its positions, prompts that exceed them, and how many frames fit.

Knows no engine; the length of a prompt is passed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..printable import logger
from ..types import CaptionRequest, Clip, Failure
from ..video.frames.moments import distinct_frames, fewer_frames
from ..video.frames.policy import FramePolicy

MADE_FOR_TOKENS = {"Qwen2VLVideoProcessor": 24_576}
"""Class of the video processor to the longest video, in tokens, that the family's authors use: 24,576 x 28 x 28 pixels
in qwen-vl-utils. transformers limits each frame instead, so far longer prompts are possible there."""
AUTHORS_MAX_PIXELS = 768 * 28 * 28
"""Largest frame of that reader."""
_SCALED = frozenset({"linear", "dynamic"})
"""Types of rotary scaling whose factor is not part of `max_position_embeddings`."""

log = logger(__name__)


def most_positions(config: Any) -> int | None:
    """Tokens of prompt and answer together that a model accepts, from its config; None if it gives no limit.

    Args:
        config: the model's config, or one of its parts.
    """
    text = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    return max(limit, _scaled(rope, limit)) if isinstance(rope, Mapping) else limit


def _scaled(rope: Mapping[str, Any], limit: int) -> int:
    """Positions that rotary scaling reaches, as vLLM counts them."""
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if not isinstance(factor, int | float):
        return limit
    if kind == "yarn":
        return int(rope.get("original_max_position_embeddings", limit) * factor)
    return int(limit * factor) if kind in _SCALED else limit


@dataclass(frozen=True, slots=True)
class Context:
    """The space that a prompt must fit into."""

    positions: int | None
    """Tokens of prompt and answer together; None: unknown, so everything fits."""
    answer_tokens: int
    """Tokens reserved for the answer."""

    @property
    def room(self) -> int | None:
        """Tokens that a prompt may have."""
        return None if self.positions is None else self.positions - self.answer_tokens

    def failure(self, prompt_tokens: int) -> Failure | None:
        """The failure for a prompt of so many tokens; None: it fits."""
        if self.room is None or prompt_tokens <= self.room:
            return None
        return Failure(
            "too_many_tokens",
            f"the prompt has {prompt_tokens} tokens, which with {self.answer_tokens} for the caption exceeds the "
            f"model's context of {self.positions}; show fewer or smaller frames (max_frames, max_pixels), as many "
            "as fit (fit), or ask for shorter captions (max_tokens)",
        )


def fitted(clip: Clip, policy: FramePolicy, *, room: int, length_with: Callable[[Clip], int]) -> Clip | None:
    """The clip with the most of its frames whose prompt fits, evenly spread; None if not even one fits.

    Args:
        clip: what is shown.
        policy: how it was read.
        room: tokens that the prompt may have.
        length_with: gives the tokens of the prompt with a clip in it.
    """
    if length_with(clip) <= room:
        return clip

    def length(count: int) -> int:
        return length_with(fewer_frames(policy, clip, count))

    count = most_that_fit(length, most=distinct_frames(clip), room=room)
    return fewer_frames(policy, clip, count) if count else None


def most_that_fit(length: Callable[[int], int], *, most: int, room: int) -> int:
    """The largest number below `most` whose `length`, which grows evenly, is at most `room`; 0 if there is none."""
    first = length(1)
    if first > room or most < 2:
        return 0
    fits, too_many = 1, most
    each = (length(most) - first) / (most - 1) or 1.0
    guess = 1 + int((room - first) / each)
    while too_many - fits > 1:
        count = min(max(guess, fits + 1), too_many - 1)
        if length(count) <= room:
            fits, guess = count, count + 1
        else:
            too_many, guess = count, count - 1
    return fits


class LongPrompts:
    """Warns once if a prompt is far longer than the family was made for.

    Args:
        processor: the model's processor.
    """

    def __init__(self, processor: Any) -> None:
        self._most = MADE_FOR_TOKENS.get(type(getattr(processor, "video_processor", None)).__name__)

    def note(self, request: CaptionRequest, tokens: int) -> None:
        """Check the length of a prompt."""
        if self._most is None or tokens <= self._most:
            return
        log.warning(
            "the prompt of row %d has %d tokens; the authors of this model family use at most %d for a video: "
            "--max-pixels %d limits frames as their reader does, --max-frames limits their number",
            request.id.row, tokens, self._most, AUTHORS_MAX_PIXELS,
        )  # fmt: skip
        self._most = None
