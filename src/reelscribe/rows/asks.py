"""What is asked of each video."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models.captioner import GenerationConfig

UNNAMED = ""
"""Name of the one ask of a run that has no others, as the operator's contract has it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that is asked of every video, and how its captions are chosen."""

    name: str = UNNAMED
    """Part of the key of its requests and answers; distinct within a run."""
    prompt: str = ""
    """What the model is asked where a row has no prompt of its own."""
    system_prompt: str | None = None
    """The system message, if any."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How captions are generated."""
    num_candidates: int = 1
    """Captions to write for each video (M)."""
    keep: str = "random_any"
    """How captions are chosen among them, a key of `SELECTORS`."""
