"""Parquet: a file or a folder of files in, one file out, a bounded piece at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from ..stores import AnyPath
from ..types import BadRow, Sample
from .arrow import add_new_fields, contains, merge_schemas, plain, plain_rows, plain_schema, rows_to_table
from .base import (
    BYTES_PER_VALUE,
    DEFAULT_LAYOUT,
    MAX_ROW_BYTES,
    Format,
    Layout,
    NewFields,
    check_regular,
    too_large,
    understanding,
    writing,
)
from .temporary import FileSink, TemporaryFile

READ_BYTES = 32 * 2**20
"""Rows are turned into Python values in batches of about this size."""
READ_ROWS = 1024
"""Most rows in such a batch."""
READ_VALUES = 512 * 1024
"""Most values in such a batch."""
DICTIONARY_BYTES = 2**28
"""Most bytes of the texts of a batch if rows share them in the file."""
GROUP_ROWS = 8192
"""Rows in a written row group."""
GROUP_BYTES = 64 * 2**20
"""A row group is closed early when its strings and bytes reach about this size."""


class ParquetSource:
    """The rows of a Parquet file, or of the files of a folder in order."""

    def __init__(
        self, path: AnyPath, files: Sequence[AnyPath] | None = None, *, max_row_bytes: int = MAX_ROW_BYTES
    ) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._files = [path] if files is None else list(files)
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        empty: Sample = dict.fromkeys(self.schema().names)
        for path in self._files:
            for row in plain_rows(_batches(path), where=str(path), max_row_bytes=self.max_row_bytes):
                yield _completed(row, empty)

    def fields(self) -> list[str] | None:
        """The columns."""
        return list(self.schema().names)

    def count(self) -> int | None:
        """The sum of the counts in the files' footers."""
        return sum(int(footer.num_rows) for footer, _ in self._footers)

    def schema(self) -> Any:
        """The schema of the file; for a folder, one that can hold all of its files' rows."""
        return merge_schemas([schema for _, schema in self._footers], where=f"the files of {str(self.path)!r}")

    def files(self) -> Sequence[AnyPath]:
        """The files."""
        return self._files

    def binary_columns(self) -> list[str]:
        """Columns that may contain bytes, according to the footers."""
        return sorted({name for footer, schema in self._footers for name in _binary_columns(footer, schema)})

    @cached_property
    def _footers(self) -> list[tuple[Any, Any]]:
        return [self._checked_footer(path) for path in self._files]

    def _checked_footer(self, path: AnyPath) -> tuple[Any, Any]:
        """A file's footer, unless its rows exceed the limit."""
        footer, schema = _footer(path)
        twice = sorted(name for name, count in Counter(schema.names).items() if count > 1)
        if twice:
            raise DataError(f"{str(path)!r} names the column {twice[0]!r} more than once")
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            values = sum(group.column(k).num_values for k in range(group.num_columns))
            rows = max(1, group.num_rows)
            most_values = self.max_row_bytes // BYTES_PER_VALUE
            if group.total_byte_size > self.max_row_bytes * rows or values > most_values * rows:
                raise too_large(f"row group {i} of {str(path)!r} is of larger rows", limit_bytes=self.max_row_bytes)
        return footer, schema


def _binary_columns(footer: Any, schema: Any) -> set[str]:
    import pyarrow as pa

    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    binary = {field.name for field in schema if contains(field.type, lambda type_: any(one(type_) for one in kinds))}
    found = set()
    for group in (footer.row_group(i) for i in range(footer.num_row_groups)):
        for chunk in (group.column(k) for k in range(group.num_columns)):
            name, statistics = chunk.path_in_schema.partition(".")[0], chunk.statistics
            is_bytes = chunk.physical_type.endswith("BYTE_ARRAY") and statistics is not None
            if name in binary and is_bytes and statistics.logical_type.type == "NONE" and statistics.num_values:
                found.add(name)
    return found


def _completed(row: Sample, empty: Sample) -> Sample:
    """Complete a row with all columns of the data set."""
    whole = {**empty, **row}
    return BadRow(whole, failure=row.failure) if isinstance(row, BadRow) else whole


def _footer(path: AnyPath) -> tuple[Any, Any]:
    check_regular(path, role="Parquet file")
    with _open(path) as file:
        return file.metadata, plain_schema(file.schema_arrow)


def _batches(path: AnyPath) -> Iterator[Any]:
    check_regular(path, role="Parquet file")
    with _open(path) as file:
        yield from file.iter_batches(batch_size=_batch_rows(file.metadata))


def _batch_rows(footer: Any) -> int:
    """Rows that are decoded at once: as many as fit a bounded size, even if rows share a long text."""
    size = values = shared = 0
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        size += group.total_byte_size
        for k in range(group.num_columns):
            chunk = group.column(k)
            values += chunk.num_values
            if chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in one for one in chunk.encodings):
                shared = max(shared, chunk.total_uncompressed_size)
    by_size = READ_BYTES * footer.num_rows // max(1, size)
    by_values = READ_VALUES * footer.num_rows // max(1, values)
    return int(max(1, min(READ_ROWS, by_size, by_values, DICTIONARY_BYTES // max(1, shared))))


@contextmanager
def _open(path: AnyPath) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with understanding(path, as_="Parquet"), pq.ParquetFile(path if isinstance(path, Path) else path.open()) as file:
        yield file


class ParquetSink(FileSink):
    """Writes one Parquet file in row groups of bounded size.

    The types of known columns are kept; those of other fields come from their values. When a later value does not fit
    (a column was all null so far, a new field appears, integers become decimals), the groups written so far are copied
    into the wider type.
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
        """Add one row; a full group is written."""
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
        """Continue with a wider schema, converting the groups written so far."""
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
    """Join the row groups of several files into one, in order; the last one's types include those of all before it."""
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
        DataError: the schema cannot hold them; the message names `where`.
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
    """The approximate size of a value in bytes."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_weight, value))
    return 8


FORMAT = Format(
    name="parquet",
    suffixes=(".parquet",),
    source=ParquetSource,
    many="Parquet files",
    written=(".parquet",),
    sink=ParquetSink,
    part_sink=ParquetSink,
    part="parquet",
    join=join_parquet,
    holds_bytes=True,
    has_types=True,
)
