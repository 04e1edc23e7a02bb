"""Layout of rows in the tables sent through a cluster, their plans, and their output.

Plain values; independent of the cluster.
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
"""Column with a row's index in the input, its key when answers are written and looked up."""
SAMPLE = "sample"
"""Column with a pickled row: it is sent between processes of the job, and written to no file of the run."""
PLANS = "__reelscribe_plans"
"""Column with a row's pickled plan; likewise only sent between processes."""
ANSWERS = "answered"
"""Column with a row's answers as plain values: video, ask, digest of the request, result as JSON, and the failure kind
of an unusable answer with candidates."""


class BlockForm(Protocol):
    """Layout of rows in the tables, and the output for their answers. Plain values."""

    is_numbered: bool
    """Whether rows have an index in the input, by which all processes identify their videos."""

    def planner(self, planner: Planner) -> Planner:
        """The operator's rules for rows of this form."""

    def plans(self, table: Any, planner: Planner) -> list[Plan]:
        """Plans for the rows of a table."""

    def planned(self, table: Any, plans: Sequence[Plan]) -> Any:
        """The table for a captioner, with its rows' plans."""

    def plans_in(self, table: Any) -> tuple[Any, list[Plan]]:
        """Such a table in the form that `made` takes, and the plans."""

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """The output table, from the rows' plans and the answers by key."""


@dataclass(frozen=True)
class SampleForm:
    """A data set's own columns; the output is samples."""

    skip_op_error: bool = True
    """Whether a failed sample is passed through."""

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
            FailedSamplesError: a sample failed and failures are not allowed.
        """
        outcomes = [planner.placed(planner.finish(plan, results, row)) for row, plan in enumerate(plans)]
        for failure in (failure for one in outcomes for _, failure in one.failures):
            if not self.skip_op_error:
                raise FailedSamplesError(f"a sample failed: {failure.kind}: {failure.message}", batch=[])
        made, new_fields = [sample for one in outcomes for sample in one.samples], planner.form.new_fields()
        extra = [name for name, kind in new_fields.items() if kind != "text"]
        return rows_to_batch(made, batch_fields(table, made=made, extra=extra), like=table, new_fields=new_fields)


def answers_type(*, with_ask: bool = True) -> Any:
    """The Arrow type of the column of answers; without asks, the earlier format."""
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
    """Rows of a file, each with its index; the output is answers, to be stored."""

    form: RowForm
    """The form of the rows."""
    identity: RunIdentity
    """The identity that answers are tied to."""
    root: AnyPath | None = None
    """Folder that relative video paths are relative to."""

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
