"""What a run has done so far, in a file that survives any end of the process: answers, finished parts, failures.

One SQLite database in write-ahead mode: a record that was torn by a crash is dropped when it is opened. It is held
by one process at a time; the hold ends with the process, however that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import DataError
from ..record import Candidate, CaptionResult, Failure, RequestId, Sample, Usage
from .summary import Counts

DATABASE = "journal.sqlite"
OWNER = "owner.json"
PARTS = "parts"
VERSION = 1
"""Of the tables below."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    row INTEGER NOT NULL, video INTEGER NOT NULL, digest BLOB NOT NULL, kind TEXT, payload TEXT NOT NULL,
    PRIMARY KEY (row, video)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS earlier_results (digest BLOB PRIMARY KEY, payload TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, counts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (
    part INTEGER NOT NULL, place INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (part, place)) WITHOUT ROWID;
"""
_KEEP_CAPTIONS = "INSERT OR REPLACE INTO earlier_results SELECT digest, payload FROM results WHERE kind IS NULL"

_ADD = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)"


def run_folder(output: Path) -> Path:
    """Where the journal and the parts of a run with this output are.

    >>> run_folder(Path("out.jsonl"))
    PosixPath('.out.jsonl.run')
    """
    return output.with_name(f".{output.name}.run")


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the output."""

    number: int
    """Its place, from 0."""
    counts: dict[str, Any]
    """What its rows came to."""


class Journal:
    """The record of one run; a context. Its methods may be called from any thread.

    Args:
        folder: where it is; made if missing.

    Raises:
        DataError: another process has it, or it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        with self._errors():
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            self._db = self._open()
        self._has_earlier = self._has_any("earlier_results")
        self._may_know = self.has_answers
        self._owner(write=True)

    def _open(self) -> sqlite3.Connection:
        """The database, held for this process alone: in this mode it needs no memory shared between processes, so
        it also works on network file systems."""
        path = self.folder / DATABASE
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        database.text_factory = bytes  # a text that is not UTF-8 is a bad value of one row, not of the journal
        try:
            database.execute("PRAGMA trusted_schema = OFF")  # it may lie in a folder that others have filled
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            self._check_version(database)
        except BaseException:
            database.close()
            raise
        return database

    def _check_version(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise DataError(
                f"the journal in {str(self.folder)!r} is of another version of this package (form {version}, not "
                f"{VERSION}); go on with that one, or start afresh (--overwrite)"
            )
        database.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def remove(self) -> None:
        """Remove it, and let go of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            raise DataError(self._sentence(exc)) from exc
        except sqlite3.DatabaseError as exc:
            raise DataError(
                f"the journal in {str(self.folder)!r} is damaged ({exc}); start afresh (--overwrite)"
            ) from exc
        except UnicodeDecodeError as exc:  # SQLite's own message had bytes of the file in it
            raise self._damaged(str(exc)) from exc
        except OSError as exc:
            raise DataError(f"cannot write the journal in {str(self.folder)!r}: {exc.strerror or exc}") from exc

    def _sentence(self, exc: sqlite3.OperationalError) -> str:
        if "locked" in str(exc):
            return f"another process{self._owner()} is writing this output ({self.folder}); wait until it has ended"
        return f"cannot write the journal in {str(self.folder)!r}: {exc}"

    def _owner(self, *, write: bool = False) -> str:
        """Who holds it, for messages only: the hold itself is the database's."""
        path = self.folder / OWNER
        if write:
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), "utf-8")
            return ""
        try:
            owner = json.loads(path.read_text("utf-8"))
            return f" (number {owner['pid']} on {owner['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._db.execute(sql, values).fetchall()

    def _has_any(self, table: str) -> bool:
        return bool(self._rows(f"SELECT EXISTS (SELECT 1 FROM {table})")[0][0])

    # facts

    def fact(self, name: str) -> Any:
        """A plain value that was kept under this name; None: there is none."""
        found = self._rows("SELECT value FROM facts WHERE name = ?", name)
        try:
            return json.loads(found[0][0]) if found else None
        except (ValueError, TypeError, RecursionError) as exc:
            raise self._damaged(f"its value of {name!r} is no JSON") from exc

    def identity(self) -> Any:
        """What the run is (see `RunIdentity.as_dict`); None: it is new.

        Raises:
            DataError: what is kept is no identity.
        """
        kept = self.fact("identity")
        if kept is None:
            return None
        if not isinstance(kept, dict) or not all(
            isinstance(part, dict) and names <= part.keys()
            for part, names in ((kept.get("rows"), _ROW_NAMES), (kept.get("writing"), _WRITING_NAMES))
        ):
            raise self._damaged("it does not say which run it is of")
        return kept

    def command(self) -> dict[str, Any] | None:
        """What does the run again; None: it was given a captioner from Python.

        Raises:
            DataError: what is kept is no command.
        """
        kept = self.fact("command")
        if kept is None:
            return None
        if (
            not isinstance(kept, dict)
            or not isinstance(kept.get("parameters"), dict)
            or not isinstance(kept.get("input"), str)
            or not {"limit", "failures"} <= kept.keys()
            or not isinstance(kept["limit"], int | None)
            or not isinstance(kept["failures"], str | None)
        ):
            raise self._damaged("it does not say with what settings the run was made")
        return kept

    def _damaged(self, what: str) -> DataError:
        return DataError(f"the journal in {str(self.folder)!r} is damaged ({what}); start afresh (--overwrite)")

    def keep(self, **facts: Any) -> None:
        """Keep plain values; those there are under these names are replaced."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in facts.items()],
            )

    # answers

    @property
    def has_answers(self) -> bool:
        """Whether anything was answered so far."""
        return self._has_earlier or self._has_any("results")

    def count(self) -> int:
        """Videos that are answered."""
        return int(self._rows("SELECT COUNT(*) FROM results")[0][0])

    def result(self, id_: RequestId, digest: bytes) -> CaptionResult | None:
        """The answer to a request with this digest; None: there is none yet."""
        if not self._may_know:
            return None
        found = self._rows("SELECT payload FROM results WHERE row = ? AND video = ? AND digest = ?", *id_, digest)
        return _usable(id_, found)

    def earlier_result(self, id_: RequestId, digest: bytes) -> CaptionResult | None:
        """The answer to a request with this digest among those that were set aside; it stays there until the end."""
        if not self._has_earlier:
            return None
        found = self._rows("SELECT payload FROM earlier_results WHERE digest = ?", digest)
        return _usable(id_, found)

    def add(self, id_: RequestId, digest: bytes, result: CaptionResult, *, failed: str | None) -> None:
        """Keep an answer. It outlives this process from here on; a power cut may take the last ones.

        Args:
            id_: row and video.
            digest: the request's.
            result: the answer.
            failed: the kind of failure, under which it is found when failures are tried again.
        """
        with self._transaction() as db:
            db.execute(_ADD, (*id_, digest, failed, payload_of(result)))

    def add_all(self, answers: Iterable[tuple[RequestId, bytes, CaptionResult, str | None]]) -> None:
        """Keep many answers at once, each with what `add` takes; they are found from here on."""
        with self._transaction() as db:
            rows = ((*id_, digest, failed, payload_of(result)) for id_, digest, result, failed in answers)
            db.executemany(_ADD, rows)
        self._may_know = True

    def forget_failures(self, kinds: Iterable[str] | None) -> int:
        """Drop answers that are failures of these kinds (None: of any), and the parts; how many were dropped."""
        names = None if kinds is None else list(kinds)
        chosen = "kind IS NOT NULL" if names is None else f"kind IN ({', '.join('?' * len(names))})"
        with self._transaction() as db:
            dropped = db.execute(f"DELETE FROM results WHERE {chosen}", names or []).rowcount
            if dropped:
                _drop_parts(db)
        if dropped:
            self._remove_part_files()
        return int(dropped)

    def set_aside(self, *, keep: bool = True) -> None:
        """Begin anew, with the captions so far at hand for requests that are the same; what failed is tried again.

        Args:
            keep: false drops the captions too.
        """
        with self._transaction() as db:
            db.execute(_KEEP_CAPTIONS if keep else "DELETE FROM earlier_results")
            db.execute("DELETE FROM results")
            _drop_parts(db)
        self._has_earlier = keep
        self._may_know = True
        self._remove_part_files()

    # parts

    def parts(self) -> list[Part]:
        """The finished parts, in order, up to the first of which the counts or the failures are no good."""
        parts: list[Part] = []
        for number, text in self._rows("SELECT number, counts FROM parts ORDER BY number"):
            counts = _counts_of(text)
            if counts is None or not isinstance(number, int) or not self._are_entries(number):
                break
            parts.append(Part(number, counts))
        return parts

    def _are_entries(self, part: int) -> bool:
        """Whether all failures of a part can be read."""
        entries = self._rows("SELECT entry FROM failures WHERE part = ?", part)
        return all(isinstance(_json_of(entry), dict) for (entry,) in entries)

    def add_part(self, part: Part, failures: Iterable[Sample]) -> None:
        """A part has its final name: its rows are done, and these are their failures."""
        entries = [(part.number, place, json.dumps(entry)) for place, entry in enumerate(failures)]
        with self._transaction() as db:
            db.execute("INSERT INTO parts VALUES (?, ?)", (part.number, json.dumps(part.counts)))
            db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", entries)

    def keep_parts(self, count: int) -> None:
        """Keep the first parts and drop those behind them."""
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE number >= ?", (count,))
            db.execute("DELETE FROM failures WHERE part >= ?", (count,))

    def failures(self) -> Iterator[Sample]:
        """The failures of all finished parts, in the order of the rows."""
        for part in self.parts():
            for (entry,) in self._rows("SELECT entry FROM failures WHERE part = ? ORDER BY place", part.number):
                yield json.loads(entry)

    def finish(self) -> None:
        """The output has its final name: the parts are not needed any more; answers stay for `retry`."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('finished', 'true')")
            db.execute("DELETE FROM earlier_results")
        self._has_earlier = False
        self._remove_part_files()

    @property
    def part_folder(self) -> Path:
        """Where the parts are."""
        return self.folder / PARTS

    def _remove_part_files(self) -> None:
        with self._errors():
            shutil.rmtree(self.part_folder, ignore_errors=True)
            self.part_folder.mkdir(exist_ok=True)


def remove_run(output: Path) -> None:
    """Remove what an earlier run with this output left; refuses while another process writes it.

    Raises:
        DataError: another process has it.
    """
    folder = run_folder(output)
    if not folder.exists():
        return
    try:
        with Journal(folder):
            shutil.rmtree(folder)  # while it is held
    except DataError as exc:
        if "another process" in str(exc):
            raise
        shutil.rmtree(folder)


def _usable(id_: RequestId, found: list[tuple[Any, ...]]) -> CaptionResult | None:
    """The answer in a row of a table; None where there is none, or none that was written here: it is asked again."""
    with suppress(ValueError):
        return result_of(id_, found[0][0]) if found else None
    return None


def _drop_parts(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM parts")
    db.execute("DELETE FROM failures")
    db.execute("DELETE FROM facts WHERE name = 'finished'")


_ROW_NAMES = {"input", "allow_remote", "media_root", "max_source_seconds", "max_source_pixels", "max_source_frames",
              "max_source_bytes"}  # fmt: skip
_WRITING_NAMES = {"model_revision"}
"""Names without which an identity cannot be compared."""


def _json_of(text: Any) -> Any:
    """The value of a text of JSON; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _counts_of(text: Any) -> dict[str, Any] | None:
    """The counts of a part; None: it has none that add up with others."""
    counts = _json_of(text)
    if not isinstance(counts, dict) or not isinstance(counts.get("failures"), dict) or "rows_in" not in counts:
        return None
    numbers = [*counts["failures"].values(), *(value for name, value in counts.items() if name != "failures")]
    whole = all(isinstance(number, int) and number >= 0 for number in numbers)
    return counts if whole and counts.keys() <= {one.name for one in fields(Counts)} else None


def payload_of(result: CaptionResult) -> str:
    """A result as JSON in ASCII: lone surrogates are escaped, numbers come back as they were."""
    value: dict[str, Any] = {"u": [result.usage.prompt_tokens, result.usage.completion_tokens]}
    if result.failure is not None:
        failure = result.failure
        value["f"] = [failure.kind, failure.message, failure.attempts, failure.seconds]
    else:
        value["c"] = [[one.text, one.finish_reason, one.tokens, one.mean_logprob] for one in result.candidates]
    return json.dumps(value, separators=(",", ":"))


def result_of(id_: RequestId, payload: str | bytes) -> CaptionResult:
    """The result that became this JSON, as the answer to a request.

    Raises:
        ValueError: it is not what `payload_of` writes.
    """
    try:
        value = json.loads(payload)
        failure = Failure(*value["f"]) if "f" in value else None
        candidates = tuple(Candidate(*one) for one in value.get("c", ()))
        result = CaptionResult(id_, candidates, failure=failure, usage=Usage(*value["u"]))
    except (TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ValueError(f"no answer: {exc}") from exc
    if not all(_is_kind(one, kinds) for one, kinds in _kinds(result)):
        raise ValueError("an answer with values of other types")
    return result


def _kinds(result: CaptionResult) -> Iterator[tuple[Any, tuple[type, ...]]]:
    """The values of a result, each with the types it may have."""
    yield result.usage.prompt_tokens, (int,)
    yield result.usage.completion_tokens, (int,)
    for one in result.candidates:
        yield from ((one.text, (str,)), (one.finish_reason, (str,)), (one.tokens, (int,)))
        yield one.mean_logprob, (int, float, type(None))
    if (failure := result.failure) is not None:
        yield from ((failure.message, (str,)), (failure.attempts, (int,)), (failure.seconds, (int, float)))


def _is_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
