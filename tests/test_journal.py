"""The journal: its versions, its hold, answers by ranges of rows, and what a killed process leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reelscribe import DataError, ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.errors import JournalBusyError
from reelscribe.runners.run import answers as answers_module
from reelscribe.runners.run import database as database_module
from reelscribe.runners.run import journal_tables
from reelscribe.runners.run.journal import Journal, remove_run
from reelscribe.runners.run.part_records import Part
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import DATABASE, run_folder
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, RequestId
from rows import jsonl, load

TOKEN = "<__dj__video>"
ROWS = [{"id": i, "text": f"{TOKEN} old {i}", "videos": [f"clip{i}.mp4"]} for i in range(20)]

TABLES_1 = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE results (
    row INTEGER NOT NULL, video INTEGER NOT NULL, digest BLOB NOT NULL, kind TEXT, payload TEXT NOT NULL,
    PRIMARY KEY (row, video)) WITHOUT ROWID;
CREATE TABLE earlier_results (digest BLOB PRIMARY KEY, payload TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (number INTEGER PRIMARY KEY, counts TEXT NOT NULL);
CREATE TABLE failures (
    part INTEGER NOT NULL, place INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (part, place)) WITHOUT ROWID;
CREATE TABLE written (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID;
CREATE TABLE making (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID;
CREATE TABLE edits (
    key BLOB NOT NULL, nth INTEGER NOT NULL, place INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (key, nth, place)) WITHOUT ROWID;
"""
"""The tables as version 1 made them."""


class Words:
    """Words of a request, and which rows were asked for; `stop_at` ends the run there."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.stop_at = stop_at

    def __call__(self, request: CaptionRequest, i: int) -> str:
        if request.id.row == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(request.id.row)
        return f"{Path(request.video).stem} {i} {request.seed % 1000}"


def operator(words: Any, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words), **parameters)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / ".out.jsonl.run") as one:
        yield one


def answer(id_: RequestId, text: str = "words") -> CaptionResult:
    return CaptionResult(id_, (Candidate(f"{text} of {id_.row} {id_.video} {id_.ask}", tokens=3),))


def digest_of(id_: RequestId) -> bytes:
    return f"{id_.row:08}{id_.video:04}{id_.ask:>4}".encode()


def add(journal: Journal, *ids: RequestId) -> None:
    for id_ in ids:
        journal.answers.add(id_, digest_of(id_), answer(id_), failed=None)


def found(journal: Journal, *ids: RequestId) -> list[CaptionResult | None]:
    return [journal.answers.result(id_, digest_of(id_)) for id_ in ids]


def as_killed(journal: Journal, folder: Path) -> Path:
    """The folder of a run as it is if its process is killed now."""
    shutil.copytree(journal.folder, folder)
    return folder


def as_version_1(folder: Path) -> None:
    """Turn a journal into what version 1 would have written."""
    with closing(sqlite3.connect(folder / DATABASE)) as now, closing(sqlite3.connect(folder / "before")) as before:
        before.executescript(TABLES_1)
        for table in ("facts", "parts", "failures", "written", "making", "edits"):
            rows = now.execute(f"SELECT * FROM {table}").fetchall()
            if rows:
                before.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        results = now.execute("SELECT row, video, digest, kind, payload FROM results").fetchall()
        before.executemany("INSERT INTO results VALUES (?, ?, ?, ?, ?)", results)
        earlier = now.execute("SELECT digest, payload FROM earlier_results").fetchall()
        before.executemany("INSERT INTO earlier_results VALUES (?, ?)", earlier)
        before.execute("PRAGMA user_version = 1")
        before.commit()
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "before").rename(folder / DATABASE)


def stopped(source: Path, output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=12)), source, output, part_rows=5)


# versions


def test_a_run_of_version_1_resumes_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole, output, rest = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", Words()
    caption_file(operator(Words()), source, whole, part_rows=5)
    stopped(source, output)
    as_version_1(run_folder(output))
    summary = caption_file(operator(rest), source, output, part_rows=5)
    assert rest.asked == list(range(12, 20))
    assert (summary.known_rows, summary.known_videos) == (10, 12)
    assert output.read_bytes() == whole.read_bytes()


def test_a_finished_run_of_version_1_is_updated_and_retried(source: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    caption_file(operator(Words()), source, output)
    as_version_1(run_folder(output))
    caption_file(operator(again, caption_key="made"), source, output, update=True)
    as_version_1(run_folder(output))
    assert caption_file(operator(again, caption_key="made"), source, output, retry=()).is_old
    assert again.asked == []
    assert all("made" in row for row in load(output)[1::2])


def test_an_update_that_version_1_began_finds_what_it_set_aside(source: Path, tmp_path: Path) -> None:
    output, rest = tmp_path / "out.jsonl", Words()
    caption_file(operator(Words()), source, output)
    jsonl(source, [{"id": 99, "text": TOKEN, "videos": ["new.mp4"]}, *ROWS])
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=0)), source, output, update=True)
    as_version_1(run_folder(output))
    caption_file(operator(rest), source, output)
    assert rest.asked == [0], "rows that have moved are found by their digests"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_process_that_is_killed_while_it_brings_tables_up_leaves_version_1(
    source: Path, tmp_path: Path, after: int
) -> None:
    output, rest = tmp_path / "out.jsonl", Words()
    stopped(source, output)
    as_version_1(run_folder(output))
    code = (
        "import os, sys; from pathlib import Path\n"
        "from reelscribe.runners.run import journal_tables as tables\n"
        "original, left = tables._bring_up, [int(sys.argv[2])]\n"
        "def killing(database, table):\n"
        "    if not left[0]: os.kill(os.getpid(), 9)\n"
        "    left[0] -= 1\n"
        "    original(database, table)\n"
        "    if not left[0] and table == 'earlier_results': os.kill(os.getpid(), 9)\n"
        "tables._bring_up = killing\n"
        "from reelscribe.runners.run.journal import Journal; Journal(Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(run_folder(output)), str(after)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM results").fetchone() == (12,)
    caption_file(operator(rest), source, output, part_rows=5)
    assert rest.asked == list(range(12, 20))


def test_a_journal_of_a_later_version_is_one_line_and_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    stopped(source, output)
    with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(
        DataError, match=r"another reelscribe version, .* resume with that version, or .*--overwrite"
    ) as caught:
        caption_file(operator(Words()), source, output)
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_value_of_version_1_that_no_run_wrote_is_asked_again(source: Path, tmp_path: Path) -> None:
    output, rest = tmp_path / "out.jsonl", Words()
    stopped(source, output)
    as_version_1(run_folder(output))
    with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database, database:
        database.execute("UPDATE results SET payload = x'80ff' WHERE row = 11")
        database.execute("INSERT INTO results VALUES ('odd', 0, x'00', NULL, '{}')")
    caption_file(operator(rest), source, output, part_rows=5)
    assert rest.asked == list(range(11, 20))


# the hold


def test_a_journal_that_is_held_is_an_error_of_its_own(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalBusyError, match=rf"another process \(number {os.getpid()} on .*\) is writing"):
        Journal(journal.folder)
    with pytest.raises(JournalBusyError):
        remove_run(tmp_path / "out.jsonl")
    assert journal.folder.exists()


def test_a_damaged_journal_is_removed_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """Who holds a journal is known by the kind of an error, not by its words."""
    output = tmp_path / "another process, database is locked" / "out.jsonl"
    run_folder(output).mkdir(parents=True)
    (run_folder(output) / DATABASE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DataError, match="damaged") as caught:
        Journal(run_folder(output))
    assert not isinstance(caught.value, JournalBusyError)
    remove_run(output)
    assert not run_folder(output).exists()


# answers


def test_asks_of_one_video_have_answers_of_their_own(journal: Journal, tmp_path: Path) -> None:
    ids = [RequestId(row, video, ask) for row in range(3) for video in range(2) for ask in ("", "long", "short")]
    add(journal, *ids)
    with Journal(as_killed(journal, tmp_path / "killed")) as again:
        assert found(again, *ids) == [answer(id_) for id_ in ids]
        assert again.answers.count(1) == 12
        assert again.forget([RequestId(1, 1, "long")]) == 1
        assert found(again, RequestId(1, 1, "long"), RequestId(1, 1)) == [None, answer(RequestId(1, 1))]
        assert not again.answers.has(RequestId(1, 1, "other"))


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_answers_are_found_in_any_order_of_asking(journal: Journal, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(answers_module, "RANGE_ANSWERS", most)
    ids = [RequestId(row, video) for row in (0, 1, 4, 5, 9) for video in range(4)]
    add(journal, *ids)
    journal.answers.add_all([])
    missing = [RequestId(row, 0) for row in (2, 3, 7, 100)]
    for order in (sorted([*ids, *missing]), sorted([*ids, *missing], reverse=True), [*missing, *ids]):
        assert found(journal, *order) == [answer(id_) if id_ in ids else None for id_ in order]


@pytest.mark.parametrize("most", [2, 1000])
def test_an_answer_is_found_that_was_added_where_was_read_already(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(answers_module, "RANGE_ANSWERS", most)
    journal.answers.add_all([])
    for row in range(20):
        assert found(journal, RequestId(row, 0)) == [None]
        add(journal, RequestId(row, 0))
    assert found(journal, *(RequestId(row, 0) for row in range(20))) == [answer(RequestId(row, 0)) for row in range(20)]
    journal.forget([RequestId(7, 0)])
    assert found(journal, RequestId(7, 0)) == [None]


def test_what_a_range_holds_is_bounded_in_bytes(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "RANGE_BYTES", 10_000)
    ids = [RequestId(row, 0) for row in range(100)]
    for id_ in ids:
        journal.answers.add(id_, digest_of(id_), answer(id_, "x" * 1000), failed=None)
    journal.answers.add_all([])
    for id_ in ids:
        assert found(journal, id_) == [answer(id_, "x" * 1000)]
        assert len(journal.answers._range.found) <= 11


def test_an_answer_is_safe_when_it_is_added(journal: Journal, tmp_path: Path) -> None:
    ids = [RequestId(row, 0) for row in range(10)]
    for count, id_ in enumerate(ids, start=1):
        add(journal, id_)
        with Journal(as_killed(journal, tmp_path / f"killed-{count}")) as again:
            assert again.answers.count() == count


def test_what_is_adopted_is_safe_before_and_after_it_is_written(journal: Journal, tmp_path: Path) -> None:
    """Until then it is among what was set aside; a part that rests on it is never there without it."""
    ids = [RequestId(row, 0) for row in range(10)]
    add(journal, *ids)
    journal.set_aside()

    def adopt(one: Journal) -> None:
        for id_ in ids:
            kept = one.answers.earlier(id_, digest_of(id_))
            assert kept is not None
            assert kept.result == answer(id_)
            one.answers.adopt(id_, digest_of(id_), kept, failed=None)

    adopt(journal)
    with Journal(as_killed(journal, tmp_path / "before")) as again:
        adopt(again)
    journal.parts.add(Part(0, {"rows_in": 10, "failures": {}}), [])
    with Journal(as_killed(journal, tmp_path / "behind")) as again:
        assert again.answers.count() == 10
    journal.finish()
    assert found(journal, *ids) == [answer(id_) for id_ in ids]


def test_an_answer_that_was_set_aside_is_found_for_a_row_that_has_moved(journal: Journal) -> None:
    ids = [RequestId(row, 0) for row in range(5)]
    add(journal, *ids)
    journal.set_aside()
    for id_ in ids:
        moved = RequestId(id_.row + 3, 0)
        kept = journal.answers.earlier(moved, digest_of(id_))
        assert kept is not None
        assert kept.result.request_id == moved
    assert journal.answers.earlier(ids[0], b"another digest") is None


@pytest.mark.parametrize("how", ["again", "update"])
def test_a_replay_asks_the_database_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Counted, not timed: some statements for hundreds of rows."""
    rows = [{"id": i, "video": f"clip{i}.mp4"} for i in range(1000)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    caption_file(operator(Words(), caption_num=4), source, output)
    before, statements = output.read_bytes(), list[str]()
    opened = database_module.Database._open

    def traced(self: Any) -> sqlite3.Connection:
        connection = opened(self)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(database_module.Database, "_open", traced)
    again = Words()
    if how == "again":
        output.unlink()
        caption_file(operator(again, caption_num=4), source, output)
        assert output.read_bytes() == before
    else:
        caption_file(operator(again, caption_num=4, keep_candidate_mode="all"), source, output, update=True)
    assert again.asked == []
    asked = [one for one in statements if not one.startswith("INSERT OR REPLACE")]
    assert 0 < len(asked) < 100, "questions and commits"


def test_tables_are_made_once(journal: Journal) -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        assert journal_tables.make_tables(database)
        assert journal_tables.make_tables(database)
        assert database.execute("PRAGMA user_version").fetchone() == (journal_tables.VERSION,)
