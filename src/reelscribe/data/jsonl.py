"""JSON lines, plain or compressed: one object per line, UTF-8."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from ..stores import AnyPath
from ..types import BadRow, Sample
from .arrow import scalar_value
from .base import DEFAULT_LAYOUT, MAX_ROW_BYTES, Format, Layout, UpTo, reading, size_now, too_large, writing
from .json_row import check_values, read_row
from .temporary import FileSink, TemporaryFile

COUNT_LIMIT_BYTES = 256 * 2**20
"""Lines are counted for the progress bar in files up to this size."""
READ_BYTES = 2**18
"""Bytes read at a time."""


def _read_plain(path: AnyPath, size: int | None) -> io.BufferedIOBase:
    return path.open("rb") if size is None else open_up_to(path, size, whole_lines=True)


def _read_gz(path: AnyPath, size: int | None) -> io.BufferedIOBase:
    if size is not None:
        return _GzipUpTo(open_up_to(path, size))
    return gzip.GzipFile(path, "rb") if isinstance(path, Path) else gzip.GzipFile(fileobj=path.open())


def _read_zst(path: AnyPath, size: int | None) -> io.BufferedIOBase:
    import pyarrow as pa

    if size is not None:
        return io.BufferedReader(pa.input_stream(open_up_to(path, size), compression="zstd"))
    return io.BufferedReader(pa.input_stream(str(path) if isinstance(path, Path) else path.open(), compression="zstd"))


def open_up_to(path: AnyPath, size: int, *, whole_lines: bool = False) -> io.BufferedReader:
    """A local file up to this size, see `UpTo`."""
    assert isinstance(path, Path)
    return io.BufferedReader(UpTo(path, size, whole_lines=whole_lines), READ_BYTES)


class _GzipUpTo(gzip.GzipFile):
    """A gzip file that also closes its underlying file."""

    def __init__(self, under: io.BufferedReader) -> None:
        self._under = under
        super().__init__(fileobj=under, mode="rb")

    def close(self) -> None:
        """Close both."""
        try:
            super().close()
        finally:
            self._under.close()


def _write_plain(path: Path) -> io.BufferedIOBase:
    return path.open("wb")


def _write_gz(path: Path) -> io.BufferedIOBase:
    return _NamelessGzipFile(path)


def _write_zst(path: Path) -> io.BufferedIOBase:
    import pyarrow as pa

    return io.BufferedWriter(pa.output_stream(str(path), compression="zstd"))


class _NamelessGzipFile(gzip.GzipFile):
    """A gzip file without name and time in its header: equal rows give equal bytes."""

    def __init__(self, path: Path) -> None:
        self._under = path.open("wb")
        super().__init__(filename="", mode="wb", fileobj=self._under, mtime=0)

    def close(self) -> None:
        """Close the file, and the underlying one."""
        try:
            super().close()
        finally:
            self._under.close()


Opener = Callable[[Path], io.BufferedIOBase]

READERS: dict[str, Callable[[AnyPath, int | None], io.BufferedIOBase]] = {".gz": _read_gz, ".zst": _read_zst}
"""Last suffix to the function that opens a compressed file for reading; other files are plain."""
WRITERS: dict[str, Opener] = {".gz": _write_gz, ".zst": _write_zst}
"""Last suffix to the function that opens a compressed file for writing."""


class JsonlSource:
    """The objects of a file with one JSON object per line; blank lines and data appended later are skipped."""

    def __init__(self, path: AnyPath, *, max_row_bytes: int | None = MAX_ROW_BYTES) -> None:
        self.path = path
        self.folder = path.parent
        self.size = size_now(path)
        """Bytes of a local file that are read: data appended later is ignored."""
        self._open = READERS.get(path.suffix.lower(), _read_plain)
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        with reading(self.path), self._open(self.path, self.size) as file:
            for number, line in enumerate(self._lines(file), start=1):
                if line.strip():
                    yield self._row(line, number)

    def _lines(self, file: io.BufferedIOBase) -> Iterator[bytes]:
        """The lines, none of which is held in memory before it is known to be within the limit."""
        if self.max_row_bytes is None:
            yield from file
            return
        number = 0
        while line := file.readline(self.max_row_bytes + 1):
            number += 1
            if len(line) > self.max_row_bytes:
                raise too_large(f"{self.path}:{number} is a longer line", limit_bytes=self.max_row_bytes)
            check_values(line, limit_bytes=self.max_row_bytes, where=f"{self.path}:{number}")
            yield line

    def _row(self, line: bytes, number: int) -> Sample:
        try:
            row = read_row(line.decode("utf-8-sig" if number == 1 else "utf-8"), where=f"{self.path}:{number}")
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{self.path}:{number} is not JSON: {_why(exc, line)}") from exc
        if not isinstance(row, dict):
            raise DataError(f"{self.path}:{number} must hold one JSON object; it holds {_name(row)}{_array_hint(row)}")
        return row

    def fields(self) -> list[str] | None:
        """Unknown: rows may differ."""
        return None

    def count(self) -> int | None:
        """The lines of a plain file of moderate size."""
        if not isinstance(self.path, Path) or self.path.suffix.lower() in READERS:
            return None
        if self.path.stat().st_size > COUNT_LIMIT_BYTES:
            return None
        with reading(self.path), self._open(self.path, self.size) as file:
            return sum(1 for line in file if not line.isspace())

    def schema(self) -> Any:
        """JSON lines have none."""
        return None

    def files(self) -> Sequence[AnyPath]:
        """The file itself."""
        return [self.path]


def _why(exc: Exception, line: bytes) -> str:
    if line.lstrip().startswith((b"[", b"{")) and not line.rstrip().endswith((b"]", b"}")):
        return f"{exc} (one object a line is needed; `jq -c .` or `jq -c '.[]'` makes that of other JSON)"
    return str(exc)


def _name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _array_hint(value: Any) -> str:
    return "; `jq -c '.[]'` writes one object a line" if isinstance(value, list) else ""


class JsonlSink(FileSink):
    """Writes one JSON object per line, valid whatever the strings contain: lone surrogates are escaped.

    NaN and infinities, which JSON lacks, become null; dates become ISO strings; bytes are an error.
    """

    def __init__(self, path: Path, **_unused: Any) -> None:
        self.path = path
        self._temporary = TemporaryFile(path)
        self._open = WRITERS.get(path.suffix.lower(), _write_plain)
        self._file: io.BufferedIOBase | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        self._temporary.create()
        with writing(self.path):
            self._file = self._open(self._temporary.path)
        return self

    def check(self, row: Sample) -> None:
        """See `Sink.check`."""
        encode_row(row, number=self._rows, path=self.path)

    def write(self, row: Sample) -> None:
        """Write one line."""
        assert self._file is not None
        line = encode_row(row, number=self._rows, path=self.path)
        try:
            self._file.write(line)
        except OSError:
            with writing(self.path):
                raise
        self._rows += 1

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._close()

    def commit(self, name: str | None = None) -> None:
        """See `Sink.commit`."""
        self.finish()
        self._temporary.commit(name)

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with writing(self.path):
                file.close()


def join_lines(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """Join the lines of plain files into one file, compressed according to its name."""
    temporary = TemporaryFile(output)
    temporary.create()
    try:
        with writing(output), WRITERS.get(output.suffix.lower(), _write_plain)(temporary.path) as joined:
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, joined, 1 << 20)
        temporary.commit()
    finally:
        temporary.discard()


def encode_row(row: Sample, *, number: int, path: Path) -> bytes:
    """One line of JSON with its line end.

    Args:
        row: plain values.
        number: index of the row in the file, for error messages.
        path: the file, for error messages.

    Raises:
        DataError: a value that JSON cannot hold; the message names its field and row.
    """
    if isinstance(row, BadRow) and row.line is not None:
        return _extended(row)
    try:
        return _dump(row)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        field = next((name for name, value in row.items() if not _fits(value)), "?")
        raise DataError(f"cannot write row {number} to {str(path)!r}: field {field!r}: {exc}") from exc


def _extended(row: BadRow) -> bytes:
    """A row's original line, with the fields that the run adds after its own."""
    assert row.line is not None
    line = row.line.strip()
    if not row.added:
        return line + b"\n"
    own = line[:-1].rstrip()
    comma = b"" if own.endswith(b"{") else b", "
    return own + comma + _dump(row.added).strip()[1:] + b"\n"


def _dump(value: Any) -> bytes:
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(_without_nan(value))
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its own JSON escape


def _fits(value: Any) -> bool:
    try:
        _dump(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def _plain(value: Any) -> Any:
    """The JSON form of values from other formats."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("JSON cannot hold bytes; write to a .parquet file, which can")
    if (shown := scalar_value(value)) is not value:
        return shown
    raise TypeError(f"JSON cannot hold a value of type {type(value).__name__}")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


FORMAT = Format(
    name="jsonl",
    suffixes=(".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".ndjson"),
    source=JsonlSource,
    written=(".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".ndjson"),
    sink=JsonlSink,
    join=join_lines,
)
