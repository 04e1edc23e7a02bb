"""The tables of a journal: creating them, migrating earlier versions, and rejecting foreign ones."""

from __future__ import annotations

import sqlite3

VERSION = 2
"""Schema version of the tables below; version 1 had one answer per video of a row."""

MAKING = """
CREATE TABLE IF NOT EXISTS making (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID
"""
_RESULTS = """
CREATE TABLE IF NOT EXISTS results (
    row INTEGER NOT NULL, video INTEGER NOT NULL, ask TEXT NOT NULL, digest BLOB NOT NULL, kind TEXT,
    payload TEXT NOT NULL, PRIMARY KEY (row, video, ask)) WITHOUT ROWID
"""
_EARLIER_RESULTS = """
CREATE TABLE IF NOT EXISTS earlier_results (
    row INTEGER NOT NULL, video INTEGER NOT NULL, ask TEXT NOT NULL, digest BLOB NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (row, video, ask, digest)) WITHOUT ROWID
"""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    _RESULTS,
    _EARLIER_RESULTS,
    "CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, counts TEXT NOT NULL)",
    """
CREATE TABLE IF NOT EXISTS failures (
    part INTEGER NOT NULL, place INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (part, place)) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS written (
    row INTEGER NOT NULL, place INTEGER NOT NULL, part INTEGER NOT NULL, key BLOB NOT NULL, said BLOB NOT NULL,
    rest BLOB NOT NULL, text TEXT, PRIMARY KEY (row, place)) WITHOUT ROWID
""",
    MAKING,
    """
CREATE TABLE IF NOT EXISTS edits (
    key BLOB NOT NULL, nth INTEGER NOT NULL, place INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (key, nth, place)) WITHOUT ROWID
""",
)
"""`written` has digests of the rows of the finished output, `making` those of the parts of the next one; `edits` has
manual corrections."""
_WITHOUT_ASKS = {
    "results": ("ask", _RESULTS, "SELECT row, video, '', digest, kind, payload"),
    "earlier_results": ("row", _EARLIER_RESULTS, "SELECT -1, -1, '', digest, payload"),
}
"""Table of version 1 to a column that it lacks, its successor, and its columns there: answers that were set aside had
lost their keys, and are found by their digests."""


def make_tables(database: sqlite3.Connection) -> bool:
    """Create missing tables and migrate those of version 1, atomically.

    Returns:
        False if they are of an unknown version; they stay unchanged.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, 1, VERSION):
        return False
    database.execute("BEGIN IMMEDIATE")
    try:
        for table in _WITHOUT_ASKS:
            _bring_up(database, table)
        for statement in _TABLES:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return True


def _bring_up(database: sqlite3.Connection, table: str) -> None:
    """Copy a table of version 1 into one with asks; values not written by a run are dropped, and captioned again."""
    missing, successor, values = _WITHOUT_ASKS[table]
    names = {
        bytes(name) for (name,) in database.execute("SELECT CAST(name AS BLOB) FROM pragma_table_info(?)", (table,))
    }
    if not names or missing.encode() in names:
        return
    database.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
    database.execute(successor)
    database.execute(f"INSERT OR IGNORE INTO {table} {values} FROM {table}_1")
    database.execute(f"DROP TABLE {table}_1")


def check_schema(database: sqlite3.Connection) -> None:
    """Check that a database, which may come from an untrusted folder, has only plain tables: a view, a trigger or a
    computed column could loop forever or exhaust memory.

    Raises:
        sqlite3.DatabaseError: it has anything else.
    """
    database.execute("PRAGMA trusted_schema = OFF")
    found = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, sql in found:
        kind, name, sql = (
            one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in (kind, name, sql)
        )
        if kind not in ("table", "index") or "VIRTUAL" in str(sql)[:20].upper():
            raise sqlite3.DatabaseError(f"it has a {kind} {name!r}, which no run creates")
        columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
        if kind == "table" and any(hidden for (hidden,) in columns):
            raise sqlite3.DatabaseError(f"the table {name!r} has computed columns, which no run creates")
