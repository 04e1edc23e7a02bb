"""Which answers of a model are usable, as one value; independent of how requests reach the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..models.written import parted
from ..seeds import content_seed
from ..types import (
    FAILURE_KINDS,
    Candidate,
    CaptionRequest,
    CaptionResult,
    Failure,
    belongs_to_row,
    internal_failure,
)
from .checks import CHECKS, RETRIED_KINDS, AskAgain, Check

MAX_TRIES = 2
"""Most tries per video."""


class Verdict(NamedTuple):
    """Findings of the checks for one candidate."""

    candidate: Candidate
    """The candidate with its text as it would be written to the data set, and its marks; without text if unusable."""
    check: str = ""
    """The first check that rejects it; empty: it is usable."""
    reason: AskAgain | None = None
    """That check's finding."""


@dataclass(frozen=True)
class Acceptance:
    """Decides whether an answer is usable."""

    text_of: Callable[[str], str]
    """Converts a model's text to the text that would be written to the data set."""
    needs_all: Collection[str] = ()
    """Names of the asks for which every candidate must be usable; for others one is enough."""
    max_tries: int = MAX_TRIES
    """Most tries per video."""
    checks: Mapping[str, Check] = field(default_factory=lambda: dict(CHECKS.items()))
    """Name of a check to its function; the first finding counts."""

    def checked(self, request: CaptionRequest, result: CaptionResult) -> tuple[CaptionResult, Failure | None]:
        """The result without reasoning in its texts, or a failure if none of them is usable; and why another try is
        worthwhile, None if it is not."""
        if result.failure is not None:
            return result, self.lack(request, result)
        try:
            candidates = tuple([parted(one) for one in result.candidates])
            if any(one is not before for one, before in zip(candidates, result.candidates, strict=True)):
                result = replace(result, candidates=candidates)
            verdicts = self.verdicts(request, result.candidates)
            lack = self._lack_of(request, verdicts)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return CaptionResult(result.request_id, failure=internal_failure(exc)), None
        if lack is not None and self._is_useless(verdicts):
            result = CaptionResult(result.request_id, failure=lack, usage=result.usage)
        return result, lack

    def lack(self, request: CaptionRequest, result: CaptionResult) -> Failure | None:
        """Why another try is worthwhile; None: it is not."""
        if result.failure is not None:
            return result.failure if result.failure.kind in RETRIED_KINDS else None
        return self._lack_of(request, self.verdicts(request, result.candidates))

    def _lack_of(self, request: CaptionRequest, verdicts: Sequence[Verdict]) -> Failure | None:
        if request.id.ask in self.needs_all:
            is_lacking = any(one.reason is not None for one in verdicts)
        else:
            is_lacking = self._is_useless(verdicts)
        return self.failure_of(verdicts) if is_lacking else None

    def next_try(self, request: CaptionRequest, *, tries: int = 1) -> CaptionRequest:
        """The next request after an unusable answer: the same, with another seed.

        Args:
            request: the original request.
            tries: number of tries so far.
        """
        seed = request.seed
        for _ in range(tries):  # 0005: seeds come from content, so that a second try is the same in any order
            seed = content_seed(seed, "again")
        return replace(request, seed=seed)

    def verdicts(self, request: CaptionRequest, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Run the checks; one verdict per candidate."""
        return [self._verdict(request, one) for one in candidates]

    def _verdict(self, request: CaptionRequest, candidate: Candidate) -> Verdict:
        text = self.text_of(candidate.text)
        shown = candidate if text == candidate.text else replace(candidate, text=text)
        marks: list[str] = []
        for name, check in self.checks.items():
            finding = check(shown, request)
            if finding is None:
                continue
            if isinstance(finding, AskAgain):
                return Verdict(replace(shown, text="") if shown.text else shown, name, finding)
            marks.append(finding.name)
        return Verdict(replace(shown, marks=tuple(marks)) if marks else shown)

    def _is_useless(self, verdicts: Sequence[Verdict]) -> bool:
        reasons = [one.reason for one in verdicts if one.reason is not None]
        return len(reasons) == len(verdicts) or any(reason.spoils_all for reason in reasons)

    def failure_of(self, verdicts: Sequence[Verdict]) -> Failure:
        """The failure for candidates some of which are unusable: the finding of the first check that has one.

        Findings that spoil all candidates take precedence. If a check has several kinds of findings, the kind listed
        first in `FAILURE_KINDS` counts.
        """
        found = [(i, one.check, one.reason) for i, one in enumerate(verdicts) if one.reason is not None]
        found = [one for one in found if one[2].spoils_all] or found
        first = min((check for _, check, _ in found), key=list(self.checks).index)
        reasons = {i: reason for i, check, reason in found if check == first}
        reason = min(reasons.values(), key=lambda one: list(FAILURE_KINDS).index(one.kind))
        named = f"candidate {', '.join(map(str, reasons))} of {len(verdicts)}"
        return Failure(
            reason.kind,
            f"{reason.problem} for {'this video' if reason.spoils_all else named}"
            + (f" (check {first!r})" if reason.kind == "rejected" else "")
            + (f"; {reason.advice}" if reason.advice else ""),
        )
