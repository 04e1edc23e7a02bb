"""The one SQLite file of a journal, held by one process at a time; the hold ends with the process, however that ends.

It is in write-ahead mode: a record that was torn by a crash is dropped when it is opened. What is in its tables is the
business of others; errors of SQLite become sentences here.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import DataError, JournalBusyError
from .journal_tables import VERSION, check_schema, make_tables
from .run_folder import DATABASE, OWNER, PARTS, open_new

SETTLE_SECONDS = 0.5
"""Time before a folder that was removed is put back."""
MOST_WAITING = 512
"""Records that wait to be written together."""
Values = tuple[Any, ...]


class Database:
    """A connection whose methods may be called from any thread.

    Args:
        folder: where it is; it exists.

    Raises:
        JournalBusyError: another process has it.
        DataError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Values]] = {}
        with self.errors():
            self._db = self._open()
            self._inode = (folder / DATABASE).stat().st_ino
        self.looked = time.monotonic()
        """When it was last seen to be there."""
        with self.errors():
            self._sign()

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._write_waiting()
            self._db.close()

    def _open(self) -> sqlite3.Connection:
        """The database, held for this process alone: in this mode it needs no memory shared between processes, so
        it also works on network file systems."""
        database = sqlite3.connect(self.folder / DATABASE, timeout=0, isolation_level=None, check_same_thread=False)
        database.text_factory = bytes  # a text that is not UTF-8 is a bad value of one row, not of the journal
        try:
            check_schema(database)
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if not make_tables(database):
                raise DataError(
                    f"the journal in {str(self.folder)!r} was written by a version of this package whose tables are "
                    f"not known here (known: {VERSION} and those before it); resume with that version, or start from "
                    "scratch (--overwrite)"
                )
        except BaseException:
            database.close()
            raise
        return database

    def check_there(self) -> None:
        """See that nobody has removed the folder; what it held is put back where somebody has.

        Raises:
            DataError: it was removed.
        """
        self.looked = time.monotonic()
        with suppress(OSError):
            if (self.folder / DATABASE).stat().st_ino == self._inode:
                return
        with self._lock, self.errors():
            time.sleep(SETTLE_SECONDS)  # whoever removes it may not have ended
            (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
            for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                (self.folder / name).unlink(missing_ok=True)
            self._write_waiting()
            with closing(sqlite3.connect(self.folder / DATABASE)) as copy:
                self._db.backup(copy)
            self._db.close()
            self._db = self._open()  # answers that are still on their way go there
            self._inode = (self.folder / DATABASE).stat().st_ino
        raise DataError(
            f"the run folder {str(self.folder)!r} was removed or replaced while the run was busy; its journal has been "
            "put back with all answers, and the same command resumes"
        )

    # statements

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Statements that hold together: all of them, or none."""
        with self._lock, self.errors():
            self._write_waiting()
            with _transaction(self._db):
                yield self._db

    def rows(self, sql: str, *values: Any) -> list[Values]:
        """What a question finds."""
        with self._lock, self.errors():
            self._write_waiting()
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def asked(self, sql: str, *values: Any) -> Iterator[Iterable[Values]]:
        """The same, one by one, for an owner who may stop before the end."""
        with self._lock, self.errors():
            self._write_waiting()
            with closing(self._db.execute(sql, values)) as found:
                yield found

    def has_any(self, table: str) -> bool:
        """Whether a table has a row."""
        return bool(self.rows(f"SELECT EXISTS (SELECT 1 FROM {table})")[0][0])

    def write(self, sql: str, values: Values) -> None:
        """One record, which outlives the process from here on: one statement is a transaction of its own."""
        with self._lock, self.errors():
            self._write_waiting()
            self._db.execute(sql, values)

    def write_later(self, sql: str, values: Values) -> None:
        """A record that is written together with others, before whatever is asked or written next: for what another go
        of the run would find again, were it lost with the process."""
        with self._lock:
            waiting = self._waiting.setdefault(sql, [])
            waiting.append(values)
            if len(waiting) >= MOST_WAITING:
                with self.errors():
                    self._write_waiting()

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        with _transaction(self._db):
            for sql, values in self._waiting.items():
                self._db.executemany(sql, values)
        self._waiting.clear()

    # errors

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of SQLite and of the disk as sentences."""
        try:
            yield
        except sqlite3.OperationalError as exc:
            if is_busy(exc):
                raise JournalBusyError(
                    f"another process{self._owner()} is writing this output ({self.folder}); wait until it has ended"
                ) from exc
            raise DataError(f"cannot write the journal in {str(self.folder)!r}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise self.damaged(str(exc)) from exc
        except UnicodeDecodeError as exc:  # SQLite's own message had bytes of the file in it
            raise self.damaged(str(exc)) from exc
        except OSError as exc:
            raise DataError(f"cannot write the journal in {str(self.folder)!r}: {exc.strerror or exc}") from exc

    def damaged(self, what: str) -> DataError:
        """The error for a value that no run wrote."""
        return DataError(f"the journal in {str(self.folder)!r} is damaged ({what}); start afresh (--overwrite)")

    def _sign(self) -> None:
        """Write down who holds it, for messages only: the hold itself is the database's."""
        path = self.folder / OWNER
        temporary = path.with_name(f"{OWNER}.{os.getpid()}")  # a new file: that one may have a second name
        temporary.unlink(missing_ok=True)
        with open_new(temporary) as file:
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        temporary.replace(path)

    def _owner(self) -> str:
        try:
            owner = json.loads((self.folder / OWNER).read_text("utf-8"))
            return f" (number {owner['pid']} on {owner['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def is_busy(exc: sqlite3.Error) -> bool:
    """Whether another process has the database."""
    code = getattr(exc, "sqlite_errorcode", 0)  # errors that are raised here have none
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
