"""What can be wrong with a caption. Adding a check is one function and one row of `CHECKS`.

Checks are pure: they look at one candidate and its request, and open no file. What follows from what they find is
decided by `Acceptance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .. import entry_points
from ..entry_points import Table
from ..types import FAILURE_KINDS, Candidate, CaptionRequest

RETRIED_KINDS = frozenset({"empty_caption", "no_answer", "not_finite", "rejected"})
"""Kinds of failure that another try may avoid, whether a check or the captioner found them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A remark about a candidate, which stays usable."""

    name: str
    """What selectors find in `Candidate.marks`."""


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Why a candidate is of no use: the video is asked about again, or fails in this way."""

    problem: str
    """What is wrong, as a clause that names no candidate: `the model gave no text`."""
    kind: str = "rejected"
    """The kind of failure where no try is left, one of `RETRIED_KINDS`."""
    advice: str = ""
    """What the user can do about it, as a clause."""
    spoils_all: bool = False
    """Whether the other candidates of the request are of no use either."""

    def __post_init__(self) -> None:
        if self.kind not in RETRIED_KINDS:
            kinds = ", ".join(kind for kind in FAILURE_KINDS if kind in RETRIED_KINDS)
            raise ValueError(f"no other try is worth making for failures of kind {self.kind!r}; choose from {kinds}")


Check = Callable[[Candidate, CaptionRequest], Mark | AskAgain | None]
"""Looks at a candidate, with its text as it would be written to the data set; None: nothing is wrong with it."""


def not_finite(candidate: Candidate, _request: CaptionRequest) -> AskAgain | None:
    """A probability that is NaN or infinite: the model computed nothing that means anything."""
    if candidate.mean_logprob is None or math.isfinite(candidate.mean_logprob):
        return None
    return AskAgain("the model computed numbers that are not finite", kind="not_finite", spoils_all=True)


def empty(candidate: Candidate, _request: CaptionRequest) -> AskAgain | None:
    """No text, or none behind the reasoning."""
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
"""Name of a check to its function, in the order in which they count: the first one that finds something names the
failure. All of them hold in every run."""
