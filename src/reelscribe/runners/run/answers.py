"""The answers in a journal, keyed by row, video and ask, each with a digest of its request.

They are written one at a time, durable at once, and read in ranges of rows of bounded size, in the order they are
needed.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...types import CaptionResult, Failure, RequestId
from .database import Database, Values
from .marks import UNKNOWN
from .payload import mark_of, payload_of, result_of

LOOK_SECONDS = 5.0
"""Interval between checks that the folder still exists."""
RANGE_ANSWERS = 512
"""Answers read per range; the last row is always read completely."""
RANGE_BYTES = 1 << 22
"""Bytes of answers read per range, with the same exception."""
_ADD = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)"
_RESULTS = "SELECT row, video, ask, digest, payload FROM results WHERE row >= ? ORDER BY row, video, ask"
_EARLIER = "SELECT row, digest, payload FROM earlier_results WHERE row >= ? ORDER BY row, video, ask, digest"
_SET_ASIDE = (
    "INSERT OR REPLACE INTO earlier_results SELECT row, video, ask, digest, payload FROM results WHERE kind IS NULL"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored answer."""

    result: CaptionResult
    """The answer."""
    payload: str
    """The text it was parsed from."""

    @property
    def mark(self) -> Any:
        """The video's state as plain values, or `UNKNOWN`."""
        return mark_of(self.payload)


@dataclass(slots=True)
class _Range:
    """The answers read for a range of rows."""

    first: int
    last: float
    found: dict[Any, tuple[bytes, bytes]] = field(default_factory=dict)
    """Key to digest and payload."""
    size: int = 0
    """Bytes of the payloads."""

    def covers(self, row: int) -> bool:
        return self.first <= row <= self.last

    def is_full(self, times: int) -> bool:
        return len(self.found) >= times * RANGE_ANSWERS or self.size >= times * RANGE_BYTES


_NONE = _Range(0, -1)


class Answers:
    """The answers of one run; its methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._range = self._earlier_range = _NONE
        self._has_earlier = database.has_any("earlier_results")
        self._is_indexed = False
        self._may_know = self.has_any

    @property
    def has_any(self) -> bool:
        """Whether there are any answers."""
        return self._has_earlier or self._database.has_any("results")

    def count(self, first_row: int = 0) -> int:
        """Number of answers from this row on."""
        return int(self._database.rows("SELECT COUNT(*) FROM results WHERE row >= ?", first_row)[0][0])

    def has(self, id_: RequestId) -> bool:
        """Whether this request is answered."""
        return self._at(id_) is not None

    def mark_at(self, id_: RequestId) -> Any:
        """The video's state when this request was answered."""
        found = self._at(id_)
        return UNKNOWN if found is None else mark_of(found[1])

    def result(self, id_: RequestId, digest: bytes) -> CaptionResult | None:
        """The answer to a request with this digest; None: not answered yet."""
        found = self._at(id_) if self._may_know else None
        return _usable(id_, found[1]) if found is not None and found[0] == digest else None

    def earlier(self, id_: RequestId, digest: bytes) -> Kept | None:
        """The answer to a request with this digest among those set aside; it stays there until the end."""
        payload = self._set_aside_as(id_.row, digest) if self._has_earlier else None
        result = None if payload is None else _usable(id_, payload)
        return None if payload is None or result is None else Kept(result, payload.decode("utf-8", "replace"))

    def add(
        self, id_: RequestId, digest: bytes, result: CaptionResult, *, failed: str | None, mark: Any = UNKNOWN
    ) -> None:
        """Store an answer. From now on it survives the process; a power cut may lose the last ones.

        Args:
            id_: row, video and ask.
            digest: the request's.
            result: the answer.
            failed: the failure kind under which a retry finds it.
            mark: the video's state as plain values.
        """
        self._look()
        values = (*id_, digest, failed, payload_of(result, mark))
        self._database.write(_ADD, values)
        self._note(id_, values)

    def adopt(self, id_: RequestId, digest: bytes, kept: Kept, *, failed: str | None) -> None:
        """Store an answer that was set aside. It also stays there until the end, so writing it may be deferred."""
        self._look()
        values = (*id_, digest, failed, kept.payload)
        self._database.write_later(_ADD, values)
        self._note(id_, values)

    def add_all(self, answers: Iterable[tuple[RequestId, bytes, CaptionResult, str | None, Any]]) -> None:
        """Store many answers at once, each with the arguments of `add`."""
        with self._database.transaction() as db:
            rows = ((*id_, digest, failed, payload_of(result, mark)) for id_, digest, result, failed, mark in answers)
            db.executemany(_ADD, rows)
        self._forget_ranges()
        self._may_know = True

    def fail(self, id_: RequestId, failure: Failure) -> None:
        """Replace an answer that proved unusable with this failure."""
        payload = payload_of(CaptionResult(id_, failure=failure))
        with self._database.transaction() as db:
            db.execute(
                "UPDATE results SET kind = ?, payload = ? WHERE row = ? AND video = ? AND ask = ?",
                (failure.kind, payload, *id_),
            )
        self._forget_ranges()

    # within a transaction

    def drop(self, db: sqlite3.Connection, ids: Iterable[RequestId]) -> int:
        """Drop these answers; returns how many existed."""
        self._forget_ranges()
        return max(0, db.executemany("DELETE FROM results WHERE row = ? AND video = ? AND ask = ?", ids).rowcount)

    def drop_failures(self, db: sqlite3.Connection, kinds: Iterable[str] | None) -> int:
        """Drop failures of these kinds (None: of any); returns how many existed."""
        self._forget_ranges()
        names = None if kinds is None else list(kinds)
        chosen = "kind IS NOT NULL" if names is None else f"kind IN ({', '.join('?' * len(names))})"
        return max(0, db.execute(f"DELETE FROM results WHERE {chosen}", names or []).rowcount)

    def set_aside(self, db: sqlite3.Connection, *, keep: bool) -> None:
        """Set captions aside, to be found by the digests of their requests alone; failures are dropped.

        Args:
            db: the transaction.
            keep: false drops the captions too.
        """
        db.execute(_SET_ASIDE if keep else "DELETE FROM earlier_results")
        db.execute("DELETE FROM results")
        self._forget_ranges()
        self._has_earlier = keep
        self._may_know = True

    def drop_earlier(self, db: sqlite3.Connection) -> None:
        """Drop the answers that were set aside."""
        db.execute("DROP INDEX IF EXISTS earlier_digest")
        db.execute("DELETE FROM earlier_results")
        self._forget_ranges()
        self._has_earlier = self._is_indexed = False

    # ranges

    def _look(self) -> None:
        if time.monotonic() - self._database.looked > LOOK_SECONDS:
            self._database.check_there()

    def _at(self, id_: RequestId) -> tuple[bytes, bytes] | None:
        """Digest and payload of the answer with this key."""
        with self._lock:
            if not self._range.covers(id_.row):
                self._range = self._read(_RESULTS, id_.row, lambda one: (one[0], one[1], _text(one[2])))
            return self._range.found.get(id_)

    def _set_aside_as(self, row: int, digest: bytes) -> bytes | None:
        """The payload of a request that was most likely in the same row before."""
        with self._lock:
            if not self._earlier_range.covers(row):
                self._earlier_range = self._read(_EARLIER, row, lambda one: one[1])
            found = self._earlier_range.found.get(digest)
            if found is not None:
                return found[1]
            if not self._is_indexed:
                with self._database.transaction() as db:
                    db.execute("CREATE INDEX IF NOT EXISTS earlier_digest ON earlier_results (digest)")
                self._is_indexed = True
        moved = self._database.rows("SELECT payload FROM earlier_results WHERE digest = ? LIMIT 1", digest)
        return moved[0][0] if moved else None

    def _read(self, sql: str, row: int, key: Any) -> _Range:
        """The rows from this one on, up to the limits of a range."""
        made, last = _Range(row, math.inf), row
        with self._database.asked(sql, row) as found:
            for one in found:
                if not (isinstance(one[0], int) and isinstance(one[-1], bytes)):  # not written by any run
                    continue
                if one[0] != last and made.is_full(1):
                    made.last = last
                    break
                last = one[0]
                made.found[key(one)] = one[-2:]
                made.size += len(one[-1])
        return made

    def _note(self, id_: RequestId, values: Values) -> None:
        """Add a newly written answer to the current range."""
        with self._lock:
            if not self._range.covers(id_.row):
                return
            if self._range.is_full(2):
                self._range = _NONE
                return
            self._range.found[id_] = (values[3], values[5].encode())
            self._range.size += len(values[5])

    def _forget_ranges(self) -> None:
        with self._lock:
            self._range = self._earlier_range = _NONE


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _usable(id_: RequestId, payload: bytes) -> CaptionResult | None:
    """Parse an answer; None if it was not written by a run: the video is captioned again."""
    try:
        return result_of(id_, payload)
    except ValueError:
        return None
