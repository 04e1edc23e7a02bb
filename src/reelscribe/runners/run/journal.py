"""The progress of a run, in a file that survives any end of the process.

A journal consists of the run's identity and state (plain values by name), its answers (`Answers`), the finished parts
of its output (`PartRecords`) and digests of the output's rows (`WrittenRows`): tables of one `Database`, which one
process holds at a time. Operations on several of them are done here, atomically.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import DataError, JournalBusyError
from ...stores import can_name_a_file
from ...types import RequestId
from .answers import Answers
from .database import Database, is_busy
from .journal_tables import check_schema
from .part_records import PartRecords, drop_parts
from .run_folder import DATABASE, PARTS, check_run_folder, keep_from_git, remove_empty_parents, run_folder
from .written_rows import WrittenRows


class Journal:
    """The journal of one run; a context manager. Its methods may be called from any thread.

    Args:
        folder: its folder; created if missing.

    Raises:
        JournalBusyError: another process has it.
        DataError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_run_folder(folder)
        try:
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            keep_from_git(folder)
        except OSError as exc:
            raise DataError(f"cannot write the journal in {str(folder)!r}: {exc.strerror or exc}") from exc
        self._database = Database(folder)
        try:
            self.answers = Answers(self._database)
        except BaseException:
            self._database.close()
            raise
        self.parts = PartRecords(self._database)
        self.written = WrittenRows(self._database)

    def check_there(self) -> None:
        """See `Database.check_there`."""
        self._database.check_there()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def remove(self) -> None:
        """Remove the folder and release the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)
        remove_empty_parents(self.folder)
        self.close()

    def close(self) -> None:
        """Release the journal."""
        self._database.close()

    # identity and state of the run

    def fact(self, name: str) -> Any:
        """The plain value stored under this name; None: there is none."""
        found = self._database.rows("SELECT value FROM facts WHERE name = ?", name)
        try:
            value = json.loads(found[0][0]) if found else None
        except (ValueError, TypeError, RecursionError) as exc:
            raise self._damaged(f"its value of {name!r} is not JSON") from exc
        if value is not None and not _FACTS.get(name, _is_any)(value):
            raise self._damaged(f"its value of {name!r} has the wrong type")
        return value

    def identity(self) -> Any:
        """The run's identity (see `RunIdentity.as_dict`); None: the run is new.

        Raises:
            DataError: the stored value is not an identity.
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
            raise self._damaged("it does not say which run it belongs to")
        return kept

    def command(self) -> dict[str, Any] | None:
        """Everything needed to redo the run; None: it was given a captioner from Python.

        Raises:
            DataError: the stored value is not a command.
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
        return self._database.damaged(what)

    def keep(self, **facts: Any) -> None:
        """Store plain values; existing ones under these names are replaced."""
        with self._database.transaction() as db:
            _keep(db, facts)

    # several tables at once

    def forget(self, ids: Iterable[RequestId]) -> int:
        """Drop these answers, and the parts; returns how many were dropped."""
        with self._database.transaction() as db:
            dropped = self.answers.drop(db, ids)
            if dropped:
                drop_parts(db)
        if dropped:
            self._remove_part_files()
        return dropped

    def forget_failures(self, kinds: Iterable[str] | None) -> int:
        """Drop answers that are failures of these kinds (None: of any), and the parts; returns how many were
        dropped."""
        with self._database.transaction() as db:
            dropped = self.answers.drop_failures(db, kinds)
            if dropped:
                drop_parts(db)
        if dropped:
            self._remove_part_files()
        return dropped

    def make_again(self) -> None:
        """Drop the parts: the output is rebuilt from the answers."""
        with self._database.transaction() as db:
            drop_parts(db)
        self._remove_part_files()

    def set_aside(self, *, keep: bool = True) -> None:
        """Start over, with the captions so far available to identical requests; failures are retried.

        Args:
            keep: false drops the captions too.
        """
        with self._database.transaction() as db:
            self.answers.set_aside(db, keep=keep)
            drop_parts(db)
        self._remove_part_files()

    def finish(self, **facts: Any) -> None:
        """The output has its final name: the parts are no longer needed; answers stay for `retry`.

        Args:
            facts: further values to store.
        """
        with self._database.transaction() as db:
            _keep(db, {"finished": True, **facts})
            self.written.take_place(db)
            self.answers.drop_earlier(db)
        self._remove_part_files()

    @property
    def part_folder(self) -> Path:
        """Where the parts are."""
        return self.folder / PARTS

    def _remove_part_files(self) -> None:
        with self._database.errors():
            shutil.rmtree(self.part_folder, ignore_errors=True)
            self.part_folder.mkdir(exist_ok=True)


def _keep(db: sqlite3.Connection, facts: dict[str, Any]) -> None:
    values = [(name, json.dumps(value)) for name, value in facts.items()]
    db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", values)


def remove_run(output: Path) -> None:
    """Remove the folder of an earlier run with this output; refuses while another process is writing it.

    Raises:
        JournalBusyError: another process has it.
    """
    remove_run_folder(run_folder(output))


def remove_run_folder(folder: Path) -> None:
    """Remove the folder of a run.

    Raises:
        JournalBusyError: another process has it.
        DataError: something in it is a link.
    """
    check_run_folder(folder)
    if not folder.exists():
        return
    try:
        with Journal(folder):
            shutil.rmtree(folder)  # while it is locked
    except JournalBusyError:
        raise
    except DataError:
        shutil.rmtree(folder)
    remove_empty_parents(folder)


def is_finished(folder: Path) -> bool | None:
    """Whether the run of a folder is finished; None: a process holds it.

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
        if is_busy(exc):
            return None
        raise DataError(f"cannot read the journal in {str(folder)!r}: {exc}") from exc
    return found is not None and found[0] == "true"


_ROW_NAMES = {"input", "allow_remote", "media_root", "max_source_seconds", "max_source_pixels", "max_source_frames",
              "max_source_bytes"}  # fmt: skip
_WRITING_NAMES = {"model_revision"}
"""Names that an identity needs to be comparable."""


def _is_any(_value: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_made(value: Any) -> bool:
    return isinstance(value, dict) and "state" in value and _is_count(value.get("ns"))


_FACTS: dict[str, Callable[[Any], bool]] = {
    "made": _is_made, "texts_kept": _is_count, "input_bytes": _is_count,
    "failures": can_name_a_file,
}  # fmt: skip
"""Name of a fact to the test for its values."""
