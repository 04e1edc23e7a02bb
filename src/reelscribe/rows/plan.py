"""What to ask about a row, and what is kept of the answers. Pure: no file is opened, no model is run.

How a row is read and where captions go is its form's to say (`forms.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from ..answering.acceptance import Acceptance
from ..answering.selection import SELECTORS, Choice
from ..errors import SettingsError
from ..seeds import content_seed
from ..types import (
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

    @cached_property
    def acceptance(self) -> Acceptance:
        """Which answers are of use."""
        needs_all = frozenset(ask.name for ask in self.asks if ask.keep == "all")
        return Acceptance(partial(ordinary_text, tokens=self.names.tokens), needs_all)

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
            videos=len(plan.slots),
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
            verdicts = self.acceptance.verdicts(request, result.candidates)
            candidates = [verdict.candidate for verdict in verdicts]
            usable = [verdict.candidate for verdict in verdicts if verdict.reason is None]
            if len(usable) < len(candidates) and (ask.keep == "all" or not usable):
                failures.append((request.id.video, self.acceptance.failure_of(verdicts)))
            choice = Choice(plan.slots[request.id.video].original, content_seed(request.seed, "select"))
            offered = candidates if ask.keep == "all" else usable
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
