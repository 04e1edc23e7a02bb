"""The single SQLite file of a journal, locked by one process at a time; the lock ends with the process, however it
ends.

It is in write-ahead mode: a record torn by a crash is dropped when it is opened. Independent of the tables' content;
translates errors of SQLite.
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
"""Delay before a removed folder is restored."""
MOST_WAITING = 512
"""Most records that wait to be written together."""
Values = tuple[Any, ...]


class Database:
    """A connection whose methods may be called from any thread.

    Args:
        folder: an existing folder.

    Raises:
        JournalBusyError: another process holds the lock.
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
        """When it was last seen to exist."""
        with self.errors():
            self._sign()

    def close(self) -> None:
        """Write pending records and release the lock."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._write_waiting()
            self._db.close()

    def _open(self) -> sqlite3.Connection:
        """Open the database with an exclusive lock: this mode needs no shared memory, so it also works on network file
        systems."""
        database = sqlite3.connect(self.folder / DATABASE, timeout=0, isolation_level=None, check_same_thread=False)
        database.text_factory = bytes  # text that is not UTF-8 is a bad value of one row, not a damaged journal
        try:
            check_schema(database)
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if not make_tables(database):
                raise DataError(
                    f"the journal in {str(self.folder)!r} was written by another reelscribe version, whose schema is "
                    f"not known here (known: up to {VERSION}); resume with that version, or start from "
                    "scratch (--overwrite)"
                )
        except BaseException:
            database.close()
            raise
        return database

    def check_there(self) -> None:
        """Check that nobody has removed the folder, and restore its content if somebody has.

        Raises:
            DataError: it was removed.
        """
        self.looked = time.monotonic()
        with suppress(OSError):
            if (self.folder / DATABASE).stat().st_ino == self._inode:
                return
        with self._lock, self.errors():
            time.sleep(SETTLE_SECONDS)  # the removal may still be in progress
            (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
            for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                (self.folder / name).unlink(missing_ok=True)
            self._write_waiting()
            with closing(sqlite3.connect(self.folder / DATABASE)) as copy:
                self._db.backup(copy)
            self._db.close()
            self._db = self._open()  # pending answers go there
            self._inode = (self.folder / DATABASE).stat().st_ino
        raise DataError(
            f"the run folder {str(self.folder)!r} was removed or replaced during the run; its journal has been "
            "restored with all answers: rerun the same command to resume"
        )

    # statements

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements atomically."""
        with self._lock, self.errors():
            self._write_waiting()
            with _transaction(self._db):
                yield self._db

    def rows(self, sql: str, *values: Any) -> list[Values]:
        """The rows of a query."""
        with self._lock, self.errors():
            self._write_waiting()
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def asked(self, sql: str, *values: Any) -> Iterator[Iterable[Values]]:
        """The rows of a query one by one, for a caller that may stop early."""
        with self._lock, self.errors():
            self._write_waiting()
            with closing(self._db.execute(sql, values)) as found:
                yield found

    def has_any(self, table: str) -> bool:
        """Whether a table has a row."""
        return bool(self.rows(f"SELECT EXISTS (SELECT 1 FROM {table})")[0][0])

    def write(self, sql: str, values: Values) -> None:
        """Write one record, which survives the process from now on: a single statement is its own transaction."""
        with self._lock, self.errors():
            self._write_waiting()
            self._db.execute(sql, values)

    def write_later(self, sql: str, values: Values) -> None:
        """Write a record together with others, before the next query or write: for records that a later session can
        recover if they are lost with the process."""
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
        """Translate errors of SQLite and of the disk."""
        try:
            yield
        except sqlite3.OperationalError as exc:
            if is_busy(exc):
                raise JournalBusyError(
                    f"another process{self._owner()} is writing this output ({self.folder}); wait until it has finished"
                ) from exc
            raise DataError(f"cannot write the journal in {str(self.folder)!r}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise self.damaged(str(exc)) from exc
        except UnicodeDecodeError as exc:  # SQLite's own message contained bytes of the file
            raise self.damaged(str(exc)) from exc
        except OSError as exc:
            raise DataError(f"cannot write the journal in {str(self.folder)!r}: {exc.strerror or exc}") from exc

    def damaged(self, what: str) -> DataError:
        """The error for a value not written by any run."""
        return DataError(f"the journal in {str(self.folder)!r} is damaged ({what}); start from scratch (--overwrite)")

    def _sign(self) -> None:
        """Record the owner, for messages only: the lock itself is the database's."""
        path = self.folder / OWNER
        temporary = path.with_name(f"{OWNER}.{os.getpid()}")  # a new file: the existing one may have a second hard link
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
    """Whether another process holds the database."""
    code = getattr(exc, "sqlite_errorcode", 0)  # errors raised in this module have none
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
