"""How rows lie in the tables that travel through a cluster, what is asked about them, and what comes out.

Plain values. Knows no cluster.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...answering.acceptance import Acceptance
from ...errors import FailedSamplesError
from ...rows.columns import batch_fields, batch_to_rows, rows_to_batch
from ...rows.forms import RowForm
from ...rows.plan import Plan, Planner, Results
from ...stores import AnyPath
from ...types import CaptionRequest, CaptionResult
from ..run.identity import RunIdentity
from ..run.marks import video_mark
from ..run.payload import payload_of

ROW = "row"
"""Column of a row's index in the input; rows go by it where they are written and looked up again."""
SAMPLE = "sample"
"""Column of a row, pickled: it goes from one process of the job to another, and into no file of the run."""
PLANS = "__reelscribe_plans"
"""Column of what is asked about a row, pickled; the same is true of it."""
ANSWERS = "answered"
"""Column of what the row's videos were answered, plain: video, ask, digest of the request, result as JSON, and the kind
of failure that an answer with candidates is."""


class BlockForm(Protocol):
    """How rows lie in the tables that travel, and what becomes of their answers. Plain values."""

    is_numbered: bool
    """Whether rows have an index in the input, by which their videos are known to all processes."""

    def planner(self, planner: Planner) -> Planner:
        """The operator's rules for rows of this form."""

    def plans(self, table: Any, planner: Planner) -> list[Plan]:
        """What to ask about the rows of a table."""

    def planned(self, table: Any, plans: Sequence[Plan]) -> Any:
        """The table that goes to a captioner, with its rows' plans."""

    def plans_in(self, table: Any) -> tuple[Any, list[Plan]]:
        """Such a table as `made` takes it, and the plans."""

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """The table that goes on, of the rows' plans and the answers by their keys."""


@dataclass(frozen=True)
class SampleForm:
    """A data set's own columns; output samples come out."""

    skip_op_error: bool = True
    """Whether a failed sample is let through."""

    is_numbered = False

    def planner(self, planner: Planner) -> Planner:
        """See `BlockForm`."""
        return planner

    def plans(self, table: Any, planner: Planner) -> list[Plan]:
        """See `BlockForm`."""
        return [planner.plan(row, number) for number, row in enumerate(batch_to_rows(table))]

    def planned(self, table: Any, plans: Sequence[Plan]) -> Any:
        """See `BlockForm`."""
        return table.append_column(PLANS, _packed(plans))

    def plans_in(self, table: Any) -> tuple[Any, list[Plan]]:
        """See `BlockForm`."""
        plans, rows = _unpacked(table), table.drop_columns([PLANS])
        return rows, [replace(plan, sample=row) for plan, row in zip(plans, batch_to_rows(rows), strict=True)]

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """See `BlockForm`.

        Raises:
            FailedSamplesError: a sample failed and may not.
        """
        outcomes = [planner.placed(planner.finish(plan, results, row)) for row, plan in enumerate(plans)]
        for failure in (failure for one in outcomes for _, failure in one.failures):
            if not self.skip_op_error:
                raise FailedSamplesError(f"a sample failed: {failure.kind}: {failure.message}", batch=[])
        made, new_fields = [sample for one in outcomes for sample in one.samples], planner.form.new_fields()
        extra = [name for name, kind in new_fields.items() if kind != "text"]
        return rows_to_batch(made, batch_fields(table, made=made, extra=extra), like=table, new_fields=new_fields)


def answers_type(*, with_ask: bool = True) -> Any:
    """The Arrow type of the column of answers; without asks as it was before these had names."""
    import pyarrow as pa

    fields = {
        "video": pa.int64(),
        "ask": pa.string(),
        "digest": pa.binary(),
        "result": pa.string(),
        "lack": pa.string(),
    }
    return pa.list_(pa.struct({name: kind for name, kind in fields.items() if with_ask or name not in ("ask", "lack")}))


@dataclass(frozen=True)
class FileForm:
    """Rows of a file, each whole beside its index; answers come out, to be kept."""

    form: RowForm
    """The form of the rows."""
    identity: RunIdentity
    """What an answer is an answer to."""
    root: AnyPath | None = None
    """What relative video paths are relative to."""

    is_numbered = True

    def planner(self, planner: Planner) -> Planner:
        """See `BlockForm`."""
        return replace(planner, form=self.form)

    def plans(self, table: Any, planner: Planner) -> list[Plan]:
        """See `BlockForm`."""
        rows = zip(table[ROW].to_pylist(), table[SAMPLE].to_pylist(), strict=True)
        return [planner.plan(pickle.loads(row), number) for number, row in rows]

    def planned(self, table: Any, plans: Sequence[Plan]) -> Any:
        """See `BlockForm`."""
        import pyarrow as pa

        return pa.table({ROW: table[ROW], PLANS: _packed(plans)})

    def plans_in(self, table: Any) -> tuple[Any, list[Plan]]:
        """See `BlockForm`."""
        return table, _unpacked(table)

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """See `BlockForm`."""
        import pyarrow as pa

        answers = [
            [self._answer(planner.acceptance, request, results[request.id]) for request in plan.requests]
            for plan in plans
        ]
        return pa.table({ROW: table[ROW], ANSWERS: pa.array(answers, answers_type())})

    def _answer(self, acceptance: Acceptance, request: CaptionRequest, result: CaptionResult) -> dict[str, Any]:
        lack = acceptance.lack(request, result) if result.failure is None else None
        return {
            "video": request.id.video,
            "ask": request.id.ask,
            "digest": self.identity.digest(request),
            "result": payload_of(result, video_mark(request.video, self.root)),
            "lack": None if lack is None else lack.kind,
        }


def _packed(plans: Sequence[Plan]) -> Any:
    """A column of plans, without their rows."""
    import pyarrow as pa

    return pa.array([pickle.dumps(replace(plan, sample={})) for plan in plans], pa.binary())


def _unpacked(table: Any) -> list[Plan]:
    return [pickle.loads(plan) for plan in table[PLANS].to_pylist()]
