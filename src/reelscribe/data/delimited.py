"""Comma- and tab-separated files with a header line: every value is a string, or null if empty.

Lists and objects are written as JSON, as readers of such columns expect.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import DataError
from ..stores import AnyPath
from ..types import Sample
from .base import BYTES_PER_VALUE, DEFAULT_LAYOUT, MAX_ROW_BYTES, Format, Layout, reading, size_now, too_large, writing
from .jsonl import JsonlSink, JsonlSource, open_up_to
from .temporary import TemporaryFile

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class DelimitedSource:
    """The rows of a CSV or TSV file."""

    def __init__(self, path: AnyPath, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self.path = path
        self.folder = path.parent
        self._delimiter = DELIMITERS[path.suffix.lower()]
        self.size = size_now(path)
        """Bytes of a local file that are read: data appended later is ignored."""
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        with closing(self._records()) as records:
            _, header = next(records, (1, []))
            self._check_header(header)
            for line, values in records:
                if values and len(values) != len(header):
                    raise DataError(
                        f"{self.path}:{line} has {len(values)} values; the header names {len(header)} fields"
                    )
                if values:
                    yield {name: value or None for name, value in zip(header, values, strict=True)}

    def _records(self) -> Generator[tuple[int, list[str]], None, None]:
        """(line number, values) of the header and of every row."""
        csv.field_size_limit(max(self.max_row_bytes, csv.field_size_limit()))
        with reading(self.path), _texts(self.path, self.size) as file:
            lines = _Lines(file, str(self.path), self._delimiter, self.max_row_bytes)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            try:
                for values in reader:
                    yield reader.line_num, values
                    lines.start_row()
            except (csv.Error, UnicodeDecodeError) as exc:
                raise DataError(f"{self.path}:{reader.line_num} cannot be read as CSV: {exc}") from exc

    def _check_header(self, header: list[str]) -> None:
        twice = sorted(name for name, count in Counter(header).items() if count > 1)
        if twice:
            raise DataError(f"{self.path}:1 names the field {twice[0]!r} more than once")

    def fields(self) -> list[str] | None:
        """The names of the header line."""
        with closing(self._records()) as records:
            return next(records, (1, []))[1]

    def count(self) -> int | None:
        """Unknown: a quoted value may hold line ends."""
        return None

    def schema(self) -> Any:
        """Not needed: all values are strings."""
        return None

    def files(self) -> Sequence[AnyPath]:
        """The file itself."""
        return [self.path]


class _Lines:
    """The lines of a file for the csv module, within the limit of a row, which may span several."""

    def __init__(self, file: io.TextIOWrapper, where: str, delimiter: str, max_row_bytes: int) -> None:
        self._file = file
        self._where = where
        self._delimiter = delimiter
        self.max_row_bytes = max_row_bytes
        self._number = 0
        self.start_row()

    def start_row(self) -> None:
        """Start counting a new row."""
        self._length = self._values = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self.max_row_bytes + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._length += len(line)
        self._values += line.count(self._delimiter)
        if self._length > self.max_row_bytes or self._values > self.max_row_bytes // BYTES_PER_VALUE:
            raise too_large(f"{self._where}:{self._number} belongs to a larger row", limit_bytes=self.max_row_bytes)
        return line


def _texts(path: AnyPath, size: int | None) -> io.TextIOWrapper:
    """The text of a file up to this size."""
    file = path.open("rb") if size is None else open_up_to(path, size, whole_lines=True)
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


class DelimitedSink:
    """Writes a CSV or TSV file; rows wait in a file of JSON lines until the names of all fields are known."""

    def __init__(self, path: Path, **_unused: Any) -> None:
        self.path = path
        self._temporary = TemporaryFile(path)
        self._lines = JsonlSink(self._temporary.path.with_suffix(".jsonl"))

    def __enter__(self) -> Self:
        self._temporary.create()
        self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._lines.__exit__(kind, error, trace)
        finally:
            self._lines.path.unlink(missing_ok=True)
            self._temporary.discard()

    def check(self, row: Sample) -> None:
        """See `Sink.check`."""
        self._lines.check(row)

    def write(self, row: Sample) -> None:
        """Write one row."""
        self._lines.write(row)

    def finish(self) -> None:
        """See `Sink.finish`."""
        if not self._lines.path.exists():
            self._lines.commit()
            write_table([self._lines.path], self._temporary.path, delimiter=DELIMITERS[self.path.suffix.lower()])

    def commit(self, name: str | None = None) -> None:
        """See `Sink.commit`."""
        self.finish()
        self._temporary.commit(name)


def join_delimited(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """One file of the rows of files of JSON lines."""
    temporary = TemporaryFile(output)
    temporary.create()
    try:
        write_table(parts, temporary.path, delimiter=DELIMITERS[output.suffix.lower()])
        temporary.commit()
    finally:
        temporary.discard()


def write_table(parts: Sequence[Path], target: Path, *, delimiter: str) -> None:
    """The rows of JSON lines files as a table, with all fields in order of appearance."""
    with writing(target), target.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        names = list(dict.fromkeys(name for row in _rows(parts) for name in row))
        if names:
            table.writerow(names)
        for row in _rows(parts):
            table.writerow(_cell(row.get(name)) for name in names)


def _rows(parts: Iterable[Path]) -> Iterator[Sample]:
    return (row for part in parts for row in JsonlSource(part, max_row_bytes=None))


def _cell(value: Any) -> Any:
    """Strings and numbers as they are; booleans and nested values as JSON; null as an empty field."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (bool, list, dict)) else value


FORMAT = Format(
    name="csv",
    suffixes=tuple(DELIMITERS),
    source=DelimitedSource,
    written=tuple(DELIMITERS),
    sink=DelimitedSink,
    join=join_delimited,
)
