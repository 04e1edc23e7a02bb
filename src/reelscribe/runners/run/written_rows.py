"""What tells the rows of an output again, and what a person wrote into them: two tables of a journal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .database import Database, Values
from .journal_tables import MAKING
from .payload import are_texts, json_of

ADD_MADE = "INSERT OR REPLACE INTO making VALUES (?, ?, ?, ?, ?, ?, ?)"
_BOTH = ("written", "making")


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """What tells a row of the output again, and whether a person has changed it."""

    row: int
    """Index of the row of the input that it was made of."""
    place: int
    """Which of the rows that were made of it; -1: the original."""
    key: bytes
    """Digest of its video and time window, which finds it in an output whose rows were moved."""
    said: bytes
    """Digest of its captions."""
    rest: bytes
    """Digest of its other fields."""
    text: str | None = None
    """In a videofolder, the file with its captions, relative to the table; in a saved data set, a digest that finds the
    row by the name of its video, in hexadecimal digits."""

    def values(self, part: int) -> Values:
        """The record of a row that is in a part."""
        return self.row, self.place, part, self.key, self.said, self.rest, self.text


class WrittenRows:
    """Digests of the rows of one run's output, and edits of them; its methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known_rows(self, key: bytes) -> tuple[list[WrittenRow], list[WrittenRow]]:
        """What was written, and what is being made, of rows with this key, in their order."""
        sql = "SELECT row, place, key, said, rest, text FROM {} WHERE key = ? OR text = ? ORDER BY row, place"
        written, making = (self._database.rows(sql.format(table), key, key.hex()) for table in _BOTH)
        return [_written_row(*found) for found in written], [_written_row(*found) for found in making]

    def is_known(self, key: bytes, said: bytes, rest: bytes) -> bool:
        """Whether a row was written, or is being made, as it is."""
        values = (key, key.hex(), said, rest)
        question = "SELECT EXISTS (SELECT 1 FROM {} WHERE (key = ? OR text = ?) AND said = ? AND rest = ?)"
        return any(self._database.rows(question.format(table), *values)[0][0] for table in _BOTH)

    def count_written(self) -> int:
        """Rows of the output that has its final name."""
        return int(self._database.rows("SELECT COUNT(*) FROM written")[0][0])

    def count_making(self) -> int:
        """Rows of the parts."""
        return int(self._database.rows("SELECT COUNT(*) FROM making")[0][0])

    def count_making_rows(self, key: bytes, end: int) -> int:
        """Rows of the input before this one that have this key and are in the parts."""
        question = "SELECT COUNT(DISTINCT row) FROM making WHERE key = ? AND row < ?"
        return int(self._database.rows(question, key, end)[0][0])

    def edit(self, key: bytes) -> Any:
        """What a person wrote into the first row with this key; None: nothing."""
        found = self._database.rows("SELECT value FROM edits WHERE key = ? AND nth = 0 AND place = 0", key)
        return self._edit_of(found[0][0]) if found else None

    def _edit_of(self, text: Any) -> Any:
        """What a person wrote: captions, or the fields of a row that hold them."""
        value = json_of(text)
        parts = value.values() if isinstance(value, dict) else [value]
        if value is None or not all(one is None or isinstance(one, str) or are_texts(one) for one in parts):
            raise self._database.damaged("a caption that was edited by hand is no text")
        return value

    def written_texts(self) -> Iterator[WrittenRow]:
        """Rows whose captions have a file of their own, a bounded number at a time."""
        last = (-1, -2)
        while found := self._database.rows(
            "SELECT row, place, key, said, rest, text FROM written WHERE (row, place) > (?, ?) AND text IS NOT NULL "
            "ORDER BY row, place LIMIT 4096", *last
        ):  # fmt: skip
            yield from (_written_row(*values) for values in found)
            last = found[-1][:2]

    def index_written(self) -> None:
        """Make rows quick to find by their keys."""
        with self._database.transaction() as db:
            for table in _BOTH:
                db.execute(f"CREATE INDEX IF NOT EXISTS {table}_key ON {table} (key)")
                db.execute(f"CREATE INDEX IF NOT EXISTS {table}_text ON {table} (text)")

    def edits(self) -> list[tuple[bytes, int, int, Any]]:
        """What persons wrote: key, which of the rows with that key, place, value."""
        found = self._database.rows("SELECT key, nth, place, value FROM edits ORDER BY key, nth, place")
        return [(key, nth, place, self._edit_of(value)) for key, nth, place, value in found]

    def add_edits(self, edits: Iterable[tuple[bytes, int, int, Any]]) -> None:
        """Keep what persons wrote, as `edits` gives it."""
        with self._database.transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO edits VALUES (?, ?, ?, ?)",
                ((key, nth, place, json.dumps(value)) for key, nth, place, value in edits),
            )

    def mark_made(self, key: bytes, said: bytes) -> None:
        """A row that is being made has other captions than its part."""
        with self._database.transaction() as db:
            db.execute("UPDATE making SET said = ? WHERE key = ?", (said, key))

    def drop_edits(self) -> None:
        """Forget what persons wrote."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM edits")

    def take_place(self, db: sqlite3.Connection) -> None:
        """Within a transaction: the rows that were being made are those that were written."""
        db.execute("DROP TABLE written")
        db.execute("DROP INDEX IF EXISTS making_key")
        db.execute("DROP INDEX IF EXISTS making_text")
        db.execute("ALTER TABLE making RENAME TO written")
        db.execute(MAKING)


def _written_row(*values: Any) -> WrittenRow:
    row, place, key, said, rest, text = values
    return WrittenRow(row, place, key, said, rest, text.decode("utf-8", "replace") if isinstance(text, bytes) else None)
