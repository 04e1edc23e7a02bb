"""What to ask about a row, and what is kept of the answers. Pure: no file is opened, no model is run.

How a row is read and where captions go is its form's to say (`forms.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..answering.selection import SELECTORS, Choice
from ..errors import SettingsError
from ..models.written import parted
from ..seeds import content_seed
from ..types import (
    CUT_CHARACTER,
    BadRow,
    CaptionRequest,
    CaptionResult,
    Failure,
    RequestId,
    Sample,
    TimeWindow,
    Usage,
    belongs_to_row,
    internal_failure,
)
from .asks import Ask
from .fields import FieldNames
from .forms import RowForm
from .outcome import Kept, RowOutcome
from .slot import RefusedRowError, Slot
from .tokens import ordinary_text

TRIED_TWICE = ("empty_caption", "no_answer", "not_finite")
"""Failures of the model that another seed may avoid."""

Results = Mapping[RequestId, CaptionResult]
"""Answers by the key of their request."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked about one row."""

    sample: Sample
    """The row as it came."""
    slots: tuple[Slot, ...] = ()
    """The videos that are asked about."""
    requests: tuple[CaptionRequest, ...] = ()
    """One for each video and ask; those of one video stand next to each other."""
    failure: tuple[int, Failure] | None = None
    """Video index and failure of a row that cannot be asked about."""


@dataclass(frozen=True)
class Planner:
    """The rules of a run for its rows, as plain values."""

    form: RowForm
    """How rows are read, and where captions go."""
    asks: tuple[Ask, ...]
    """What is asked of each video."""
    seed: int
    """Seed of the run."""
    window: TimeWindow = field(default_factory=TimeWindow)
    """Part of a video to look at where the row does not say."""

    @property
    def names(self) -> FieldNames:
        """How the fields are called."""
        return self.form.names

    def ask_of(self, id_: RequestId) -> Ask:
        """The ask that a request is for."""
        return next(ask for ask in self.asks if ask.name == id_.ask)

    def plan(self, row: Sample, number: int) -> Plan:
        """What to ask about one row: a request for each of its videos and each ask.

        Args:
            row: as it came.
            number: its index in the stream.
        """
        if isinstance(row, BadRow):
            return Plan(row, failure=(0, row.failure))
        try:
            return self._plan(row, number)
        except RefusedRowError as exc:
            return Plan(row, failure=(exc.video, exc.failure))
        except SettingsError as exc:
            return Plan(row, failure=(0, Failure("bad_sample", str(exc))))
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return Plan(row, failure=(0, internal_failure(exc)))

    def _plan(self, row: Sample, number: int) -> Plan:
        slots = tuple(self.form.slots(row, window=self.window))
        return Plan(row, slots, tuple(self._requests(slots, number)))

    def _requests(self, slots: Sequence[Slot], number: int) -> Iterator[CaptionRequest]:
        for index, slot in enumerate(slots):
            for ask in self.asks:
                prompt = slot.prompt if isinstance(slot.prompt, str) else ask.prompt
                yield CaptionRequest(
                    id=RequestId(number, index, ask.name),
                    video=slot.video,
                    prompt=prompt,
                    system_prompt=ask.system_prompt,
                    num_candidates=ask.num_candidates,
                    seed=content_seed(self.seed, "generate", slot.text, slot.video, index, prompt),
                    window=slot.window,
                )

    def checked(self, result: CaptionResult) -> CaptionResult:
        """The result without reasoning in its texts, or a failure where the numbers behind it are not finite, or its
        texts are empty."""
        try:
            return self._checked(result)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return CaptionResult(result.request_id, failure=internal_failure(exc))

    def _checked(self, result: CaptionResult) -> CaptionResult:
        if result.failure is not None:
            return result
        result = replace(result, candidates=tuple(parted(one) for one in result.candidates))
        if any(one.mean_logprob is not None and not math.isfinite(one.mean_logprob) for one in result.candidates):
            failure = Failure("not_finite", "the model computed numbers that are not finite for this video")
            return CaptionResult(result.request_id, failure=failure, usage=result.usage)
        if not any(self._texts(result)):
            return CaptionResult(result.request_id, failure=self.lack_of(result), usage=result.usage)
        return result

    def lack_of(self, result: CaptionResult) -> Failure:
        """The failure that candidates without a text are."""
        pairs = zip(result.candidates, self._texts(result), strict=True)
        empty = [(str(i), one.reasoning is not None) for i, (one, text) in enumerate(pairs) if not text]
        told = f"candidate {', '.join(number for number, _ in empty)} of {len(result.candidates)}"
        if any(reasoned for _, reasoned in empty):
            return Failure("no_answer", f"the model reasoned, but gave no answer for {told}; --thinking-tokens "
                           "(thinking_tokens) and --max-tokens (max_tokens) are its budgets")  # fmt: skip
        return Failure("empty_caption", f"the model gave no text for {told}")

    def is_worth_another_try(self, result: CaptionResult) -> bool:
        """Whether another seed may give a checked result that is of use."""
        if result.failure is not None:
            return result.failure.kind in TRIED_TWICE
        return self.ask_of(result.request_id).keep == "all" and not all(self._texts(result))

    def asked_again(self, request: CaptionRequest) -> CaptionRequest:
        """The same request with another seed."""
        return replace(request, seed=content_seed(request.seed, "again"))

    @staticmethod
    def of_second_try(result: CaptionResult) -> CaptionResult:
        """The checked result of a request that was asked again; a failure says so."""
        if result.failure is None:
            return result
        return replace(result, failure=replace(result.failure, attempts=2))

    def _texts(self, result: CaptionResult) -> list[str]:
        return [ordinary_text(one.text, self.names.tokens).rstrip(CUT_CHARACTER) for one in result.candidates]

    def finish(self, plan: Plan, results: Results, number: int) -> RowOutcome:
        """What is kept for one planned row; its output rows are made by `placed`.

        Args:
            plan: what was asked.
            results: the answers to all of its requests, by their keys.
            number: index of the row in the stream.
        """
        try:
            return self._finish(plan, results, number)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            return RowOutcome(number, plan.sample, failures=[(0, internal_failure(exc))])

    def _finish(self, plan: Plan, results: Results, number: int) -> RowOutcome:
        answers = [results[request.id] for request in plan.requests]
        pairs = zip(plan.requests, answers, strict=True)
        failures = [(request.id.video, one.failure) for request, one in pairs if one.failure is not None]
        if plan.failure is not None:
            failures.append(plan.failure)
        kept = {} if failures else {ask.name: self._keep(ask, plan, results, failures) for ask in self.asks}
        return RowOutcome(
            number,
            plan.sample,
            kept=kept,
            failures=failures,
            videos=len(plan.requests),
            usage=Usage(
                sum(one.usage.prompt_tokens for one in answers), sum(one.usage.completion_tokens for one in answers)
            ),
        )

    def _keep(self, ask: Ask, plan: Plan, results: Results, failures: list[tuple[int, Failure]]) -> Kept:
        """Kept candidates of an ask, one list a choice, in video order; empty captions go to `failures`."""
        columns = []
        for request in plan.requests:
            if request.id.ask != ask.name:
                continue
            result = results[request.id]
            pairs = zip(result.candidates, self._texts(result), strict=True)
            candidates = [one if one.text == text else replace(one, text=text) for one, text in pairs]
            written = [one for one in candidates if one.text]
            if len(written) < len(candidates) and (ask.keep == "all" or not written):
                failures.append((request.id.video, self.lack_of(result)))
            choice = Choice(plan.slots[request.id.video].original, content_seed(request.seed, "select"))
            offered = candidates if ask.keep == "all" else written
            columns.append(SELECTORS[ask.keep](offered, choice) if offered else [])
        return [list(row) for row in zip(*columns, strict=False) if all(one.text for one in row)]

    def placed(self, outcome: RowOutcome) -> RowOutcome:
        """The outcome with its output rows; an unexpected error while they are made is a failure of the row."""
        try:
            return replace(outcome, samples=self.form.place(outcome.sample, outcome))
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            failed = outcome.failed(internal_failure(exc))
            return replace(failed, samples=self.form.place(failed.sample, failed))
