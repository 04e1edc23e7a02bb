"""Plan the requests about a row, and choose among the answers. Pure: no file is opened, no model is run.

Reading a row and placing captions is up to its form (`forms.py`).
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
    """The requests about one row."""

    sample: Sample
    """The row as it came."""
    slots: tuple[Slot, ...] = ()
    """The videos to caption."""
    requests: tuple[CaptionRequest, ...] = ()
    """One per video and ask; those of one video are adjacent."""
    failure: tuple[int, Failure] | None = None
    """Video index and failure of a row that cannot be captioned."""


@dataclass(frozen=True)
class Planner:
    """A run's rules for its rows, as plain values."""

    form: RowForm
    """How rows are read, and where captions go."""
    asks: tuple[Ask, ...]
    """The asks for each video."""
    seed: int
    """Seed of the run."""
    window: TimeWindow = field(default_factory=TimeWindow)
    """Time window of videos for which the row sets none."""

    @property
    def names(self) -> FieldNames:
        """The field names."""
        return self.form.names

    def plan(self, row: Sample, number: int) -> Plan:
        """Plan one row: a request for each of its videos and each ask.

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
        """The rule for which answers are usable."""
        needs_all = frozenset(ask.name for ask in self.asks if ask.keep == "all")
        return Acceptance(partial(ordinary_text, tokens=self.names.tokens), needs_all)

    def finish(self, plan: Plan, results: Results, number: int) -> RowOutcome:
        """The outcome of one planned row; `placed` adds its output rows.

        Args:
            plan: the row's requests.
            results: the answers to all of its requests, by key.
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
        """Kept candidates of an ask, one list per choice, in video order; empty captions go to `failures`."""
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
        """The outcome with its output rows; an unexpected error while making them is a failure of the row."""
        try:
            return replace(outcome, samples=self.form.place(outcome.sample, outcome))
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            failed = outcome.failed(internal_failure(exc))
            return replace(failed, samples=self.form.place(failed.sample, failed))
