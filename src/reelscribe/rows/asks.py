"""What is asked of each video."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models.captioner import GenerationConfig

UNNAMED = ""
"""Name of the only ask of a run, as in the operator's contract."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt that every video is captioned with, and how its captions are chosen."""

    name: str = UNNAMED
    """Part of the key of its requests and answers; unique within a run."""
    prompt: str = ""
    """The prompt for rows without their own."""
    system_prompt: str | None = None
    """The system message, if any."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How captions are generated."""
    num_candidates: int = 1
    """Captions to write for each video (M)."""
    keep: str = "random_any"
    """The selector that chooses among them, a key of `SELECTORS`."""
