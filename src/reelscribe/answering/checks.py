"""What can be wrong with a caption. To add a check, write one function and one row of `CHECKS`.

Checks are pure: they look at one candidate and its request, and open no file. `Acceptance` decides what follows from
their findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .. import entry_points
from ..entry_points import Table
from ..types import FAILURE_KINDS, Candidate, CaptionRequest

RETRIED_KINDS = frozenset({"empty_caption", "no_answer", "not_finite", "rejected"})
"""Failure kinds that another try may avoid, whether reported by a check or the captioner."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A remark about a candidate that stays usable."""

    name: str
    """The name selectors see in `Candidate.marks`."""


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Why a candidate is unusable: the video is retried, or fails with this kind."""

    problem: str
    """What is wrong, as a clause that names no candidate: `the model gave no text`."""
    kind: str = "rejected"
    """The failure kind when no tries are left, one of `RETRIED_KINDS`."""
    advice: str = ""
    """What the user can do about it, as a clause."""
    spoils_all: bool = False
    """Whether the other candidates of the request are unusable too."""

    def __post_init__(self) -> None:
        if self.kind not in RETRIED_KINDS:
            kinds = ", ".join(kind for kind in FAILURE_KINDS if kind in RETRIED_KINDS)
            raise ValueError(f"no retry exists for failures of kind {self.kind!r}; choose from {kinds}")


Check = Callable[[Candidate, CaptionRequest], Mark | AskAgain | None]
"""Checks a candidate, with its text as it would be written to the data set; None: no finding."""


def not_finite(candidate: Candidate, _request: CaptionRequest) -> AskAgain | None:
    """A probability is NaN or infinite: the model's output is meaningless."""
    if candidate.mean_logprob is None or math.isfinite(candidate.mean_logprob):
        return None
    return AskAgain("the model computed numbers that are not finite", kind="not_finite", spoils_all=True)


def empty(candidate: Candidate, _request: CaptionRequest) -> AskAgain | None:
    """No text, or none after the reasoning."""
    if candidate.text:
        return None
    if candidate.reasoning is None:
        return AskAgain("the model gave no text", kind="empty_caption")
    return AskAgain(
        "the model reasoned, but gave no answer",
        kind="no_answer",
        advice="--thinking-tokens (thinking_tokens) and --max-tokens (max_tokens) are its budgets",
    )


CHECKS: Table[Check] = Table(
    entry_points.CHECKS,
    {"not_finite": not_finite, "empty": empty},
    what="check",
    fits=callable,
    rule="a function of a candidate and its request",
)
"""Name of a check to its function, in order of precedence: the first finding names the failure. All checks run in every
run."""
