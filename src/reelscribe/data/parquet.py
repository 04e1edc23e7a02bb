"""Parquet: a file or a folder of files in, one file out, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from ..record import Sample
from ..stores import AnyPath
from .arrow import add_new_fields, merge_schemas, plain, plain_schema, rows_to_table
from .base import DEFAULT_LAYOUT, Layout, NewFields, reading, writing
from .temporary import FileSink, TemporaryFile

READ_BYTES = 32 * 2**20
"""Rows are turned into Python values in batches of about this size."""
READ_ROWS = 1024
"""Most rows in such a batch."""
GROUP_ROWS = 8192
"""Rows in a written row group."""
GROUP_BYTES = 64 * 2**20
"""A row group is closed early when its strings and bytes reach about this size."""


class ParquetSource:
    """The rows of a Parquet file, or of the files of a folder, one behind the other."""

    def __init__(self, path: AnyPath, files: Sequence[AnyPath] | None = None) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._files = [path] if files is None else list(files)

    def __iter__(self) -> Iterator[Sample]:
        empty: Sample = dict.fromkeys(self.schema().names)
        for path in self._files:
            for batch in _batches(path):
                yield from ({**empty, **row} for row in batch)

    def fields(self) -> list[str] | None:
        """The columns."""
        return list(self.schema().names)

    def count(self) -> int | None:
        """The sum of what the files' footers say."""
        return sum(int(footer.num_rows) for footer, _ in self._footers)

    def schema(self) -> Any:
        """The schema of the file; of a folder, one that holds all of its files' rows."""
        return merge_schemas([schema for _, schema in self._footers], where=f"the files of {str(self.path)!r}")

    def files(self) -> Sequence[AnyPath]:
        """The files."""
        return self._files

    @cached_property
    def _footers(self) -> list[tuple[Any, Any]]:
        return [_footer(path) for path in self._files]


def _footer(path: AnyPath) -> tuple[Any, Any]:
    with _open(path) as file:
        return file.metadata, plain_schema(file.schema_arrow)


def _batches(path: AnyPath) -> Iterator[list[Sample]]:
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
            yield plain(batch).to_pylist()


def _batch_rows(footer: Any) -> int:
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    return int(max(1, min(READ_ROWS, READ_BYTES * footer.num_rows // max(1, size))))


@contextmanager
def _open(path: AnyPath) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        try:
            with pq.ParquetFile(path if isinstance(path, Path) else path.open()) as file:
                yield file
        except pa.ArrowException as exc:
            raise DataError(f"cannot read {str(path)!r} as Parquet: {exc}") from exc


class ParquetSink(FileSink):
    """Writes one Parquet file in row groups of bounded size.

    The types of known columns are kept; those of other fields come from their values. When a later value does not
    fit (a column was all null so far, a new field comes up, whole numbers become decimals), the groups written so
    far are copied into the wider type.
    """

    def __init__(self, path: Path, *, schema: Any = None, new_fields: NewFields | None = None, **_unused: Any) -> None:
        self.path = path
        self._temporary = TemporaryFile(path)
        self._known = add_new_fields(schema, new_fields or {})
        self._schema: Any = None
        self._writer: Any = None
        self._group: list[Sample] = []
        self._group_bytes = 0
        self._rows = 0
        self._finished = False

    def __enter__(self) -> Self:
        self._temporary.create()
        return self

    def check(self, row: Sample) -> None:
        """See `Sink.check`."""
        rows_to_table([row], self._known, first_row=self._rows, where=str(self.path))

    def write(self, row: Sample) -> None:
        """Take one row; a full group is written."""
        self._group.append(row)
        self._group_bytes += _weight(row)
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """See `Sink.finish`."""
        if not self._finished:
            self._flush()
            self._close()
        self._finished = True

    def commit(self, name: str | None = None) -> None:
        """See `Sink.commit`."""
        self.finish()
        self._temporary.commit(name)

    def _flush(self) -> None:
        if self._writer is not None and not self._group:
            return
        schema = self._known if self._schema is None else self._schema
        table = rows_to_table(self._group, schema, first_row=self._rows, where=str(self.path))
        with writing(self.path):
            if self._writer is None or table.schema != self._schema:
                self._widen(table.schema)
            self._writer.write_table(table)
        self._rows += len(self._group)
        self._group, self._group_bytes = [], 0

    def _widen(self, schema: Any) -> None:
        """Go on with a wider schema, taking the groups written so far along."""
        import pyarrow.parquet as pq

        self._close()
        narrow = self._temporary.path.with_suffix(".narrow")
        self._temporary.path.replace(narrow)
        try:
            self._writer = pq.ParquetWriter(self._temporary.path, schema, compression="zstd")
            if self._schema is not None:
                self._copy(narrow, schema)
        finally:
            narrow.unlink()
        self._schema = schema

    def _copy(self, narrow: Path, schema: Any) -> None:
        with _open(narrow) as file:
            for i in range(file.num_row_groups):
                self._writer.write_table(_cast(file.read_row_group(i), schema))

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with writing(self.path):
                writer.close()


def join_parquet(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """One file of the row groups of several, in their order; the last one's types hold those of all before it."""
    import pyarrow.parquet as pq

    temporary = TemporaryFile(output)
    temporary.create()
    schema = file_schema(parts[-1])
    try:
        with writing(output), pq.ParquetWriter(temporary.path, schema, compression="zstd") as joined:
            for table in (table for part in parts for table in tables(part, schema, where=output)):
                joined.write_table(table)
        temporary.commit()
    finally:
        temporary.discard()


def tables(path: Path, schema: Any, *, where: Path) -> Iterator[Any]:
    """The row groups of a file, in the types of a schema.

    Raises:
        DataError: the schema cannot hold them; the text says that `where` cannot be written.
    """
    for table in _groups(path):
        yield _widened(table, schema, where)


def _groups(path: Path) -> Iterator[Any]:
    with _open(path) as file:
        for i in range(file.num_row_groups):
            yield plain(file.read_row_group(i))


def _widened(table: Any, schema: Any, output: Path) -> Any:
    import pyarrow as pa

    try:
        return _cast(table, schema)
    except pa.ArrowException as exc:
        raise DataError(f"cannot write {str(output)!r}: no type of a column holds all of its values: {exc}") from exc


def file_schema(path: Path) -> Any:
    """The Arrow schema of a file."""
    return _footer(path)[1]


def _cast(table: Any, schema: Any) -> Any:
    """The table with the columns and types of a wider schema; new columns are null."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _weight(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_weight, value))
    return 8
