"""The special tokens of a text, and the text without them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ..errors import SettingsError


@dataclass(frozen=True)
class SpecialTokens:
    """The strings that mark media and chunk ends in a text (Data-Juicer's by default)."""

    video: str = "<__dj__video>"
    """Marks a video."""
    image: str = "<__dj__image>"
    """Marks an image."""
    audio: str = "<__dj__audio>"
    """Marks an audio clip."""
    eoc: str = "<|__dj__eoc|>"
    """Ends a chunk."""

    def __post_init__(self) -> None:
        if not all(self.all) or any(a in b for a in self.all for b in self.all if a is not b):
            raise SettingsError(
                f"special tokens must be four non-empty strings, none of them part of another; got {self.all!r}"
            )

    @property
    def all(self) -> tuple[str, str, str, str]:
        """The four tokens."""
        return (self.video, self.image, self.audio, self.eoc)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches any of the tokens, the longest first."""
        return re.compile("|".join(re.escape(token) for token in sorted(self.all, key=len, reverse=True)))


DEFAULT_TOKENS = SpecialTokens()


def ordinary_text(text: str, tokens: SpecialTokens = DEFAULT_TOKENS) -> str:
    """The text without special tokens, stripped; none is left even if removing one would form another."""
    while tokens.pattern.search(text):
        text = tokens.pattern.sub("", text)
    return text.strip()
