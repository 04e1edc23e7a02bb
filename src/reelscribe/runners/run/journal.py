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
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ...data.links import check_file, check_folder, check_sole_name, check_tree
from ...data.videofolder import NAMES as TABLE_NAMES
from ...errors import DataError
from ...stores import can_name_a_file
from ...types import Candidate, CaptionResult, Failure, RequestId, Sample, Usage
from ..report.summary import Counts

DATABASE = "journal.sqlite"
OWNER = "owner.json"
ERRORS_LOG = "errors.log"
"""Tracebacks of errors of this package, each with its row."""
PARTS = "parts"
PIECES = "pieces"
"""Parts of videos that wait for the output, and what tells those that are in it."""
REPLACES = "replaces"
"""A file that says that the run may replace videos of the same name."""
KEPT_FROM_UPLOADS = Path(".cache", "huggingface", "reelscribe")
"""Folder in a data set that uploads to the hub, and `datasets`, leave out."""
VERSION = 1
"""Of the tables below."""

_MAKING = """
CREATE TABLE IF NOT EXISTS making (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID
"""
_TABLES = f"""
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    row INTEGER NOT NULL, video INTEGER NOT NULL, digest BLOB NOT NULL, kind TEXT, payload TEXT NOT NULL,
    PRIMARY KEY (row, video)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS earlier_results (digest BLOB PRIMARY KEY, payload TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, counts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (
    part INTEGER NOT NULL, place INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (part, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID;
{_MAKING};
CREATE TABLE IF NOT EXISTS edits (
    key BLOB NOT NULL, nth INTEGER NOT NULL, place INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (key, nth, place)) WITHOUT ROWID;
"""
"""`written` has digests of the rows of the output that has its final name, `making` those of the parts of the next one;
`edits` has what a person wrote instead."""
_KEEP_CAPTIONS = "INSERT OR REPLACE INTO earlier_results SELECT digest, payload FROM results WHERE kind IS NULL"

_ADD = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)"
LOOK_SECONDS = 5.0
"""Time between two looks whether the folder is still there."""
SETTLE_SECONDS = 0.5
"""Time before a folder that was removed is put back."""
UNKNOWN = "unknown"
"""Instead of a video's mark: the answer is from before marks were kept, or the video is no file."""


def run_folder(output: Path) -> Path:
    """Where the journal and the parts of a run with this output are: beside it, and where the output is the table of a
    folder that is a data set itself, where uploads of that folder leave it out.

    >>> run_folder(Path("out.jsonl")), run_folder(Path("clips/metadata.jsonl"))
    (PosixPath('.out.jsonl.run'), PosixPath('clips/.cache/huggingface/reelscribe/metadata.jsonl.run'))
    """
    output = settled(output)
    beside = output.with_name(f".{output.name}.run")
    if output.name not in TABLE_NAMES or os.path.lexists(beside):  # runs of earlier versions go on where they are
        return beside
    return output.parent / KEPT_FROM_UPLOADS / f"{output.name}.run"


def check_run_folder(folder: Path) -> None:
    """See that nothing in a run's folder, which lies in a folder that may be anybody's, leads elsewhere.

    Raises:
        DataError: it, a folder that was made for it, or something in it is a link.
    """
    above = [place for place in folder.parents if place.name in KEPT_FROM_UPLOADS.parts]
    for place in reversed(above if folder.parent.name == KEPT_FROM_UPLOADS.name else []):
        check_folder(place, "the folder")
    check_tree(folder, "the folder of the run")
    for name in (DATABASE, ERRORS_LOG):
        check_sole_name(folder / name, "the journal" if name == DATABASE else "the log")
    for name in (OWNER, *(DATABASE + end for end in ("-wal", "-shm", "-journal"))):
        check_file(folder / name, "a file of the run")


def settled(output: Path) -> Path:
    """One name for an output that has several: links are followed, and where the file system takes names that differ
    in case for one, small letters are used."""
    if output.is_symlink():
        output = Path(os.path.realpath(output))
    return output.with_name(output.name.casefold()) if _ignores_case(output.parent) else output


def _ignores_case(folder: Path) -> bool:
    """Whether a folder is there under its name in other letters, and so what is in it will be."""
    folder = Path(os.path.realpath(folder))
    other = folder.with_name(folder.name.swapcase())
    if other == folder:
        return folder != folder.parent and _ignores_case(folder.parent)
    try:
        return other.samefile(folder)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the output."""

    number: int
    """Its place, from 0."""
    counts: dict[str, Any]
    """What its rows came to."""


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
        check_run_folder(folder)
        with self._errors():
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            keep_from_git(folder)
            self._db = self._open()
            self._inode = (folder / DATABASE).stat().st_ino
        self._looked = time.monotonic()
        self._has_earlier = self._has_any("earlier_results")
        self._may_know = self.has_answers
        self._owner(write=True)

    def check_there(self) -> None:
        """See that nobody has removed the folder; what it held is put back where somebody has.

        Raises:
            DataError: it was removed.
        """
        self._looked = time.monotonic()
        with suppress(OSError):
            if (self.folder / DATABASE).stat().st_ino == self._inode:
                return
        with self._lock, self._errors():
            time.sleep(SETTLE_SECONDS)  # whoever removes it may not have ended
            (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
            for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                (self.folder / name).unlink(missing_ok=True)
            with closing(sqlite3.connect(self.folder / DATABASE)) as copy:
                self._db.backup(copy)
            self._db.close()
            self._db = self._open()  # answers that are still on their way go there
            self._inode = (self.folder / DATABASE).stat().st_ino
        raise DataError(
            f"the run folder {str(self.folder)!r} was removed or replaced while the run was busy; its journal has been "
            "put back with all answers, and the same command resumes"
        )

    def _open(self) -> sqlite3.Connection:
        """The database, held for this process alone: in this mode it needs no memory shared between processes, so
        it also works on network file systems."""
        path = self.folder / DATABASE
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        database.text_factory = bytes  # a text that is not UTF-8 is a bad value of one row, not of the journal
        try:
            check_schema(database)
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
        remove_empty_parents(self.folder)
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
            temporary = path.with_name(f"{OWNER}.{os.getpid()}")  # a new file: that one may have a second name
            temporary.unlink(missing_ok=True)
            with open_new(temporary) as file:
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            temporary.replace(path)
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
            value = json.loads(found[0][0]) if found else None
        except (ValueError, TypeError, RecursionError) as exc:
            raise self._damaged(f"its value of {name!r} is no JSON") from exc
        if value is not None and not _FACTS.get(name, _is_any)(value):
            raise self._damaged(f"its value of {name!r} is of another kind")
        return value

    def identity(self) -> Any:
        """What the run is (see `RunIdentity.as_dict`); None: it is new.

        Raises:
            DataError: what is kept is no identity.
        """
        kept = self.fact("identity")
        if kept is None:
            return None
        if (
            not isinstance(kept, dict)
            or not all(
                isinstance(part, dict) and names <= part.keys()
                for part, names in ((kept.get("rows"), _ROW_NAMES), (kept.get("writing"), _WRITING_NAMES))
            )
            or not isinstance(kept["rows"]["input"], str)
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
            or not can_name_a_file(kept.get("input"))
            or not {"limit", "failures"} <= kept.keys()
            or not (kept["limit"] is None or (_is_count(kept["limit"]) and 0 <= kept["limit"] <= sys.maxsize))
            or not all(isinstance(kept.get(name), str | None) for name in ("format", "cut"))
            or not (kept["failures"] is None or can_name_a_file(kept["failures"]))
            or not isinstance(kept.get("max_row_bytes"), int | None)
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

    def count(self, first_row: int = 0) -> int:
        """Videos that are answered, from this row on."""
        return int(self._rows("SELECT COUNT(*) FROM results WHERE row >= ?", first_row)[0][0])

    def has_answer(self, id_: RequestId) -> bool:
        """Whether this video of this row is answered."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM results WHERE row = ? AND video = ?)", *id_[:2])[0][0])

    def mark_at(self, id_: RequestId) -> Any:
        """What the video at this place was when it was answered, see `mark`."""
        found = self._rows("SELECT payload FROM results WHERE row = ? AND video = ?", *id_[:2])
        return mark_of(found[0][0]) if found else UNKNOWN

    def result(self, id_: RequestId, digest: bytes) -> CaptionResult | None:
        """The answer to a request with this digest; None: there is none yet."""
        if not self._may_know:
            return None
        found = self._rows("SELECT payload FROM results WHERE row = ? AND video = ? AND digest = ?", *id_[:2], digest)
        return _usable(id_, found)

    def earlier_result(self, id_: RequestId, digest: bytes) -> CaptionResult | None:
        """The answer to a request with this digest among those that were set aside; it stays there until the end."""
        if not self._has_earlier:
            return None
        found = self._rows("SELECT payload FROM earlier_results WHERE digest = ?", digest)
        return _usable(id_, found)

    def earlier_mark(self, digest: bytes) -> Any:
        """What the video was when a request that was set aside was answered; `UNKNOWN`: that was not kept."""
        found = self._rows("SELECT payload FROM earlier_results WHERE digest = ?", digest)
        return mark_of(found[0][0]) if found else UNKNOWN

    def add(
        self, id_: RequestId, digest: bytes, result: CaptionResult, *, failed: str | None, mark: Any = UNKNOWN
    ) -> None:
        """Keep an answer. It outlives this process from here on; a power cut may take the last ones.

        Args:
            id_: row and video.
            digest: the request's.
            result: the answer.
            failed: the kind of failure, under which it is found when failures are tried again.
            mark: what the video was, as plain values.
        """
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.check_there()
        with self._transaction() as db:
            db.execute(_ADD, (*id_[:2], digest, failed, payload_of(result, mark)))

    def forget(self, ids: Iterable[RequestId]) -> int:
        """Drop these answers, and the parts; how many were dropped."""
        with self._transaction() as db:
            dropped = db.executemany(
                "DELETE FROM results WHERE row = ? AND video = ?", [one[:2] for one in ids]
            ).rowcount
            if dropped > 0:
                _drop_parts(db)
        if dropped > 0:
            self._remove_part_files()
        return max(0, int(dropped))

    def make_again(self) -> None:
        """Drop the parts: the output is made again from the answers."""
        with self._transaction() as db:
            _drop_parts(db)
        self._remove_part_files()

    def add_all(self, answers: Iterable[tuple[RequestId, bytes, CaptionResult, str | None, Any]]) -> None:
        """Keep many answers at once, each with what `add` takes; they are found from here on."""
        with self._transaction() as db:
            rows = (
                (*id_[:2], digest, failed, payload_of(result, mark)) for id_, digest, result, failed, mark in answers
            )
            db.executemany(_ADD, rows)
        self._may_know = True

    def fail(self, id_: RequestId, failure: Failure) -> None:
        """What was answered is of no use after all: the answer becomes this failure."""
        payload = payload_of(CaptionResult(id_, failure=failure))
        with self._transaction() as db:
            db.execute(
                "UPDATE results SET kind = ?, payload = ? WHERE row = ? AND video = ?",
                (failure.kind, payload, *id_[:2]),
            )

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

    def add_part(self, part: Part, failures: Iterable[Sample], written: Iterable[WrittenRow] = ()) -> None:
        """A part has its final name: its rows are done, and these are their failures, and digests of what it holds."""
        entries = [(part.number, place, json.dumps(entry)) for place, entry in enumerate(failures)]
        with self._transaction() as db:
            db.execute("INSERT INTO parts VALUES (?, ?)", (part.number, json.dumps(part.counts)))
            db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", entries)
            db.executemany(
                "INSERT OR REPLACE INTO making VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(one.row, one.place, part.number, one.key, one.said, one.rest, one.text) for one in written],
            )

    def keep_parts(self, count: int) -> None:
        """Keep the first parts and drop those behind them."""
        with self._transaction() as db:
            db.execute("DELETE FROM parts WHERE number >= ?", (count,))
            db.execute("DELETE FROM failures WHERE part >= ?", (count,))
            db.execute("DELETE FROM making WHERE part >= ?", (count,))

    def failures(self) -> Iterator[Sample]:
        """The failures of all finished parts, in the order of the rows."""
        for part in self.parts():
            for (entry,) in self._rows("SELECT entry FROM failures WHERE part = ? ORDER BY place", part.number):
                yield json.loads(entry)

    def finish(self, **facts: Any) -> None:
        """The output has its final name: the parts are not needed any more; answers stay for `retry`.

        Args:
            facts: what is to be kept besides.
        """
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('finished', 'true')")
            db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in facts.items()],
            )
            db.execute("DROP TABLE written")
            db.execute("DROP INDEX IF EXISTS making_key")
            db.execute("DROP INDEX IF EXISTS making_text")
            db.execute("ALTER TABLE making RENAME TO written")
            db.execute(_MAKING)
            db.execute("DELETE FROM earlier_results")
        self._has_earlier = False
        self._remove_part_files()

    # what was written, and what a person made of it

    def known_rows(self, key: bytes) -> tuple[list[WrittenRow], list[WrittenRow]]:
        """What was written, and what is being made, of rows with this key, in their order."""
        sql = "SELECT row, place, key, said, rest, text FROM {} WHERE key = ? OR text = ? ORDER BY row, place"
        written, making = (self._rows(sql.format(table), key, key.hex()) for table in ("written", "making"))
        return [_written_row(*found) for found in written], [_written_row(*found) for found in making]

    def is_known(self, key: bytes, said: bytes, rest: bytes) -> bool:
        """Whether a row was written, or is being made, as it is."""
        values = (key, key.hex(), said, rest)
        question = "SELECT EXISTS (SELECT 1 FROM {} WHERE (key = ? OR text = ?) AND said = ? AND rest = ?)"
        return any(self._rows(question.format(table), *values)[0][0] for table in ("written", "making"))

    def count_written(self) -> int:
        """Rows of the output that has its final name."""
        return int(self._rows("SELECT COUNT(*) FROM written")[0][0])

    def count_making(self) -> int:
        """Rows of the parts."""
        return int(self._rows("SELECT COUNT(*) FROM making")[0][0])

    def count_making_rows(self, key: bytes, end: int) -> int:
        """Rows of the input before this one that have this key and are in the parts."""
        return int(self._rows("SELECT COUNT(DISTINCT row) FROM making WHERE key = ? AND row < ?", key, end)[0][0])

    def edit(self, key: bytes) -> Any:
        """What a person wrote into the first row with this key; None: nothing."""
        found = self._rows("SELECT value FROM edits WHERE key = ? AND nth = 0 AND place = 0", key)
        return self._edit_of(found[0][0]) if found else None

    def _edit_of(self, text: Any) -> Any:
        """What a person wrote: captions, or the fields of a row that hold them."""
        value = _json_of(text)
        parts = value.values() if isinstance(value, dict) else [value]
        if value is None or not all(one is None or isinstance(one, str) or _are_texts(one) for one in parts):
            raise self._damaged("a caption that was edited by hand is no text")
        return value

    def written_texts(self) -> Iterator[WrittenRow]:
        """Rows whose captions have a file of their own, a bounded number at a time."""
        last = (-1, -2)
        while found := self._rows(
            "SELECT row, place, key, said, rest, text FROM written WHERE (row, place) > (?, ?) AND text IS NOT NULL "
            "ORDER BY row, place LIMIT 4096", *last
        ):  # fmt: skip
            yield from (_written_row(*values) for values in found)
            last = found[-1][:2]

    def index_written(self) -> None:
        """Make rows quick to find by their keys."""
        with self._transaction() as db:
            for table in ("written", "making"):
                db.execute(f"CREATE INDEX IF NOT EXISTS {table}_key ON {table} (key)")
                db.execute(f"CREATE INDEX IF NOT EXISTS {table}_text ON {table} (text)")

    def edits(self) -> list[tuple[bytes, int, int, Any]]:
        """What persons wrote: key, which of the rows with that key, place, value."""
        found = self._rows("SELECT key, nth, place, value FROM edits ORDER BY key, nth, place")
        return [(key, nth, place, self._edit_of(value)) for key, nth, place, value in found]

    def add_edits(self, edits: Iterable[tuple[bytes, int, int, Any]]) -> None:
        """Keep what persons wrote, as `edits` gives it."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO edits VALUES (?, ?, ?, ?)",
                ((key, nth, place, json.dumps(value)) for key, nth, place, value in edits),
            )

    def mark_made(self, key: bytes, said: bytes) -> None:
        """A row that is being made has other captions than its part."""
        with self._transaction() as db:
            db.execute("UPDATE making SET said = ? WHERE key = ?", (said, key))

    def drop_edits(self) -> None:
        """Forget what persons wrote."""
        with self._transaction() as db:
            db.execute("DELETE FROM edits")

    @property
    def part_folder(self) -> Path:
        """Where the parts are."""
        return self.folder / PARTS

    def _remove_part_files(self) -> None:
        with self._errors():
            shutil.rmtree(self.part_folder, ignore_errors=True)
            self.part_folder.mkdir(exist_ok=True)


def _written_row(*values: Any) -> WrittenRow:
    row, place, key, said, rest, text = values
    return WrittenRow(row, place, key, said, rest, text.decode("utf-8", "replace") if isinstance(text, bytes) else None)


def adopt_earlier_folder(output: Path) -> None:
    """Give the folder of a run that was begun under another name of its output, such as a link, the name it has now."""
    earlier, folder = output.with_name(f".{output.name}.run"), run_folder(output)
    if earlier == folder or not (earlier / DATABASE).exists() or folder.exists():
        return
    with suppress(OSError):
        earlier.rename(folder)


def keep_from_git(folder: Path) -> None:
    """Let git leave out what is of this machine alone."""
    with suppress(FileExistsError), open_new(folder / ".gitignore") as file:
        file.write("*\n")


def open_new(path: Path) -> IO[str]:
    """A new file; one that is there, a link too, is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o666), "w", encoding="utf-8")  # noqa: PTH123 - a descriptor


def remove_empty_parents(folder: Path) -> None:
    """Remove the folders that were made for a run's folder, where nothing else is in them."""
    for place in folder.parents:
        if place.name not in KEPT_FROM_UPLOADS.parts or folder.parent.name != KEPT_FROM_UPLOADS.name:
            return
        with suppress(OSError):
            place.rmdir()


def remove_run(output: Path) -> None:
    """Remove what an earlier run with this output left; refuses while another process writes it.

    Raises:
        DataError: another process has it.
    """
    remove_run_folder(run_folder(output))


def remove_run_folder(folder: Path) -> None:
    """The same, for where it is.

    Raises:
        DataError: another process has it, or something in it is a link.
    """
    check_run_folder(folder)
    if not folder.exists():
        return
    try:
        with Journal(folder):
            shutil.rmtree(folder)  # while it is held
    except DataError as exc:
        if "another process" in str(exc):
            raise
        shutil.rmtree(folder)
    remove_empty_parents(folder)


def is_finished(folder: Path) -> bool | None:
    """Whether the run of a folder is finished; None: a process has it.

    Raises:
        DataError: there is no journal, or it cannot be read, or something there is a link.
    """
    check_run_folder(folder)
    try:
        with closing(sqlite3.connect(f"{(folder / DATABASE).absolute().as_uri()}?mode=rw", timeout=0, uri=True)) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            check_schema(db)
            found = db.execute("SELECT value FROM facts WHERE name = 'finished'").fetchone()
    except sqlite3.DatabaseError as exc:
        if "locked" in str(exc):
            return None
        raise DataError(f"cannot read the journal in {str(folder)!r}: {exc}") from exc
    return found is not None and found[0] == "true"


def check_schema(database: sqlite3.Connection) -> None:
    """See that a database, which may lie in a folder that others have filled, has tables that only hold values: a view,
    a trigger or a computed column could go on without end, or fill the memory.

    Raises:
        sqlite3.DatabaseError: it has more than that.
    """
    database.execute("PRAGMA trusted_schema = OFF")
    found = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, sql in found:
        kind, name, sql = (
            one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in (kind, name, sql)
        )
        if kind not in ("table", "index") or "VIRTUAL" in str(sql)[:20].upper():
            raise sqlite3.DatabaseError(f"it has a {kind} {name!r}, which no run makes")
        columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
        if kind == "table" and any(hidden for (hidden,) in columns):
            raise sqlite3.DatabaseError(f"the table {name!r} computes values, which no run makes")


def _usable(id_: RequestId, found: list[tuple[Any, ...]]) -> CaptionResult | None:
    """The answer in a row of a table; None where there is none, or none that was written here: it is asked again."""
    with suppress(ValueError):
        return result_of(id_, found[0][0]) if found else None
    return None


def _drop_parts(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM parts")
    db.execute("DELETE FROM failures")
    db.execute("DELETE FROM making")
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


def _is_any(_value: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_made(value: Any) -> bool:
    return isinstance(value, dict) and "state" in value and _is_count(value.get("ns"))


_FACTS: dict[str, Callable[[Any], bool]] = {
    "made": _is_made, "texts_kept": _is_count, "input_bytes": _is_count,
    "failures": can_name_a_file,
}  # fmt: skip
"""Name of a fact to whether a value can be one."""


def _counts_of(text: Any) -> dict[str, Any] | None:
    """The counts of a part; None: it has none that add up with others."""
    counts = _json_of(text)
    if not isinstance(counts, dict) or not isinstance(counts.get("failures"), dict) or "rows_in" not in counts:
        return None
    numbers = [*counts["failures"].values(), *(value for name, value in counts.items() if name != "failures")]
    whole = all(isinstance(number, int) and number >= 0 for number in numbers)
    return counts if whole and counts.keys() <= {one.name for one in fields(Counts)} else None


def payload_of(result: CaptionResult, mark: Any = UNKNOWN) -> str:
    """A result as JSON in ASCII: lone surrogates are escaped, numbers come back as they were."""
    value: dict[str, Any] = {"u": [result.usage.prompt_tokens, result.usage.completion_tokens]}
    if result.failure is not None:
        failure = result.failure
        value["f"] = [failure.kind, failure.message, failure.attempts, failure.seconds]
    else:
        value["c"] = [_candidate_values(one) for one in result.candidates]
    if mark != UNKNOWN:
        value["m"] = mark
    return json.dumps(value, separators=(",", ":"))


def _candidate_values(one: Candidate) -> list[Any]:
    """A candidate as plain values; its reasoning stands there where it has some."""
    values: list[Any] = [one.text, one.finish_reason, one.tokens, one.mean_logprob]
    return values if one.reasoning is None else [*values, one.reasoning, one.reasoning_tokens]


def mark_of(payload: str | bytes) -> Any:
    """What the video was that this JSON is the answer for, or `UNKNOWN`."""
    value = _json_of(payload)
    return value.get("m", UNKNOWN) if isinstance(value, dict) else UNKNOWN


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
        yield from ((one.reasoning, (str, type(None))), (one.reasoning_tokens, (int,)))
    if (failure := result.failure) is not None:
        yield from ((failure.message, (str,)), (failure.attempts, (int,)), (failure.seconds, (int, float)))


def _is_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
