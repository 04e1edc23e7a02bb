"""A journal's records of the parts of an output: their counts and failures."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from ...types import Sample
from ..report.summary import Counts
from .database import Database
from .payload import json_of
from .written_rows import ADD_MADE, WrittenRow


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the output."""

    number: int
    """Its index, from 0."""
    counts: dict[str, Any]
    """Counts of its rows."""


class PartRecords:
    """The finished parts of one run; its methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def finished(self) -> list[Part]:
        """The finished parts, in order, up to the first with invalid counts or failures."""
        parts: list[Part] = []
        for number, text in self._database.rows("SELECT number, counts FROM parts ORDER BY number"):
            counts = _counts_of(text)
            if counts is None or not isinstance(number, int) or not self._are_entries(number):
                break
            parts.append(Part(number, counts))
        return parts

    def _are_entries(self, part: int) -> bool:
        """Whether all failures of a part are readable."""
        entries = self._database.rows("SELECT entry FROM failures WHERE part = ?", part)
        return all(isinstance(json_of(entry), dict) for (entry,) in entries)

    def add(self, part: Part, failures: Iterable[Sample], written: Iterable[WrittenRow] = ()) -> None:
        """Record a finished part with its failures and the digests of its rows."""
        entries = [(part.number, place, json.dumps(entry)) for place, entry in enumerate(failures)]
        with self._database.transaction() as db:
            db.execute("INSERT INTO parts VALUES (?, ?)", (part.number, json.dumps(part.counts)))
            db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", entries)
            db.executemany(ADD_MADE, (one.values(part.number) for one in written))

    def keep(self, count: int) -> None:
        """Keep the first `count` parts and drop the rest."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM parts WHERE number >= ?", (count,))
            db.execute("DELETE FROM failures WHERE part >= ?", (count,))
            db.execute("DELETE FROM making WHERE part >= ?", (count,))

    def failures(self) -> Iterator[Sample]:
        """The failures of all finished parts, in row order."""
        for part in self.finished():
            entries = self._database.rows("SELECT entry FROM failures WHERE part = ? ORDER BY place", part.number)
            for (entry,) in entries:
                yield json.loads(entry)


def drop_parts(db: sqlite3.Connection) -> None:
    """Drop all parts, within a transaction: the output will be rebuilt."""
    db.execute("DELETE FROM parts")
    db.execute("DELETE FROM failures")
    db.execute("DELETE FROM making")
    db.execute("DELETE FROM facts WHERE name = 'finished'")


def _counts_of(text: Any) -> dict[str, Any] | None:
    """The counts of a part; None if they are invalid."""
    counts = json_of(text)
    if not isinstance(counts, dict) or not isinstance(counts.get("failures"), dict) or "rows_in" not in counts:
        return None
    numbers = [*counts["failures"].values(), *(value for name, value in counts.items() if name != "failures")]
    whole = all(isinstance(number, int) and number >= 0 for number in numbers)
    return counts if whole and counts.keys() <= {one.name for one in fields(Counts)} else None
