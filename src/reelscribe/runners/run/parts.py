"""The output under construction: parts of a fixed number of input rows, each a complete file of the output's format.

A part gets its name when its last row is written; parts unknown to the journal are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data import Sink, Target, schema_of
from ...data.base import NewFields
from ...errors import DataError
from ...rows.outcome import RowOutcome
from ...types import Sample
from ..report.summary import Counts
from .journal import Journal
from .part_records import Part
from .written_rows import WrittenRow

Keep = Callable[[Sample, Path, list[str]], list[str]]
"""See `Layout.keep`."""
UNFINISHED = "unfinished"
"""In the name of a part left by an interrupted run."""


class PartedOutput:
    """Takes the outcomes of rows in order and writes them part by part.

    Args:
        journal: records each finished part.
        target: the output.
        schema: Arrow schema of the source's rows, if there is one.
        new_fields: fields the run adds.
        part_rows: input rows per part.
    """

    def __init__(self, journal: Journal, target: Target, *, schema: Any, new_fields: NewFields, part_rows: int) -> None:
        self._journal = journal
        self._target = target
        self._new_fields = new_fields
        self._part_rows = min(part_rows, target.format.part_rows or part_rows)
        self._done = self._usable_parts()
        self._schema = schema if not self._done else schema_of(self._path(len(self._done) - 1)) or schema
        self._sink: Sink | None = None
        self._counts, self._failures, self._written = Counts(), list[Sample](), list[WrittenRow]()

    @property
    def done(self) -> list[Part]:
        """Parts that are already finished."""
        return list(self._done)

    @property
    def rows_done(self) -> int:
        """Input rows in those parts."""
        return sum(int(part.counts["rows_in"]) for part in self._done)

    def write(
        self,
        outcome: RowOutcome,
        samples: list[Sample],
        failures: list[Sample],
        *,
        written: Iterable[WrittenRow] = (),
        kept_edits: int = 0,
    ) -> None:
        """Write the outcome of one row.

        Args:
            outcome: the outcome, for the counts.
            samples: its output rows.
            failures: its rows of the failures file.
            written: digests of its output rows.
            kept_edits: number of manual edits in them.
        """
        sink = self._sink or self._open_sink()
        for sample in samples:
            sink.write(sample)
        self._failures += failures
        self._written += written
        self._counts.add(outcome, rows_out=len(samples), kept_edits=kept_edits)
        if self._counts.rows_in == self._part_rows:
            self._end_part()

    def end(self) -> None:
        """End the last part."""
        if self._counts.rows_in or not self._done:
            self._end_part()
        self.close()

    def join(self, keep: Keep | None = None) -> None:
        """Join all parts under the final name.

        Args:
            keep: see `Layout.keep`.

        Raises:
            DataError: the output cannot be written, or a part was removed.
        """
        self._journal.check_there()
        for path in map(self._path, range(len(self._done))):
            if not path.is_file():
                raise DataError(
                    f"the part {str(path)!r} was removed during the run; rerun the same command to make it again"
                )
        layout = replace(self._target.layout, keep=keep)
        replace(self._target, layout=layout).join([self._path(part.number) for part in self._done])

    def close(self, *, keep: bool = False) -> None:
        """Drop the incomplete part, or keep it under a name that marks it as such."""
        sink, self._sink = self._sink, None
        if sink is None:
            return
        with suppress(Exception):  # a full disk is reported by the original error
            if keep and self._counts.rows_in:
                sink.commit(self._path(len(self._done), UNFINISHED).name)
        with suppress(Exception):
            sink.__exit__(None, None, None)

    def _open_sink(self) -> Sink:
        path = self._path(len(self._done))
        self._sink = self._target.open_part(path, schema=self._schema, new_fields=self._new_fields).__enter__()
        return self._sink

    def _end_part(self) -> None:
        self._journal.check_there()
        sink = self._sink or self._open_sink()
        try:
            sink.commit()
        except DataError as exc:
            self._journal.check_there()
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
            raise DataError(
                f"the folder {str(self._journal.part_folder)!r} was removed during the run; rerun the same command to "
                "make the parts again"
            ) from exc
        sink.__exit__(None, None, None)
        part = Part(len(self._done), self._counts.as_dict())
        self._journal.parts.add(part, self._failures, self._written)
        self._schema = schema_of(self._path(part.number)) or self._schema
        self._done.append(part)
        self._sink, self._counts, self._failures, self._written = None, Counts(), [], []

    def _usable_parts(self) -> list[Part]:
        """The parts in the journal whose files exist; anything else is removed."""
        parts: list[Part] = []
        for part in self._journal.parts.finished():
            if part.number != len(parts) or not self._path(part.number).is_file():
                break
            parts.append(part)
        self._journal.parts.keep(len(parts))
        known = {self._path(part.number) for part in parts}
        for path in self._journal.part_folder.iterdir():
            if path not in known:
                path.unlink()
        return parts

    def _path(self, number: int, *marks: str) -> Path:
        return self._journal.part_folder / ".".join([f"{number:06}", *marks, self._target.format.part])
