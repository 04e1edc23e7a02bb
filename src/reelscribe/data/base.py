"""Common base of all formats: sources of rows, sinks for rows, and the choice of one by a path's name."""

from __future__ import annotations

import io
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from ..errors import DataError, ReelscribeError
from ..rows.columns import NewFields
from ..settings import MAX_ROW_BYTES
from ..stores import AnyPath
from ..types import Sample, TimeWindow
from ..video.limits import DEFAULT_LIMITS, ReadLimits

__all__ = [
    "MAX_ROW_BYTES",
    "Format",
    "Layout",
    "LeaveOut",
    "NewFields",
    "Sink",
    "Source",
    "UpTo",
    "reading",
    "size_now",
    "writing",
]

LeaveOut = Callable[[AnyPath], bool]
"""Whether a file of a folder, or of a pattern, is excluded from the input."""
BYTES_PER_VALUE = 16
"""A row may hold one value per so many bytes of the limit: an empty list takes three bytes in a file, and about twenty
times as many in memory."""


def too_large(what: str, *, limit_bytes: int) -> DataError:
    """The error for a row that exceeds the limit."""
    size = f"{limit_bytes / 2**20:,.0f} MiB" if limit_bytes >= 2**20 else f"{limit_bytes:,} bytes"
    return DataError(
        f"{what}; a row may have {size} and {limit_bytes // BYTES_PER_VALUE:,} values: remove it, or raise "
        "--max-row-bytes (max_row_bytes)"
    )


def check_regular(path: AnyPath, *, role: str) -> None:
    """Refuse to open anything but a file or a folder: a pipe would block.

    Raises:
        DataError: it is a pipe, a socket or a device.
    """
    if not isinstance(path, Path):
        return
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # any error shows when it is opened
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    kind = next((name for test, name in kinds.items() if test(mode)), "no file")
    raise DataError(f"the {role} {str(path)!r} is {kind}; name a regular file, which can be read more than once")


@contextmanager
def understanding(path: AnyPath, *, as_: str) -> Iterator[None]:
    """Turn any exception of a library that reads a file into a `DataError` that names the file.

    Raises:
        DataError: the file is not of the expected format.
    """
    try:
        with reading(path):
            yield
    except ReelscribeError:
        raise
    except BaseException as exc:
        # a panic of a Rust library is not an `Exception`, and Arrow raises `MemoryError` for bogus sizes in a file
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        if isinstance(exc, MemoryError) and type(exc).__name__ != "ArrowMemoryError":
            raise
        raise DataError(f"cannot read {str(path)!r} as {as_}: {_first_line(exc)}") from exc


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0][:500] or type(exc).__name__


class Source(Protocol):
    """Rows of a data set; can be iterated more than once and holds only a piece of it in memory."""

    path: AnyPath
    """The file or folder it reads."""
    folder: AnyPath
    """Folder that relative video paths are relative to."""

    def __iter__(self) -> Iterator[Sample]:
        """The rows in file order; `DataError` for anything that cannot be read."""

    def fields(self) -> list[str] | None:
        """Names of all fields if known without reading rows, else None."""

    def count(self) -> int | None:
        """Number of rows if cheap to find, else None."""

    def schema(self) -> Any:
        """The Arrow schema of the rows if the format has one, else None."""

    def files(self) -> Sequence[AnyPath]:
        """The files that are read for rows."""


class Sink(Protocol):
    """Writes rows; the final name appears at `commit`, and leaving the context without it removes the output."""

    def __enter__(self) -> Self:
        """Open a temporary file next to the final name."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary file, unless committed."""

    def check(self, row: Sample) -> None:
        """Raise `DataError` if the format cannot hold the values of this row; writes nothing."""

    def write(self, row: Sample) -> None:
        """Write one row."""

    def finish(self) -> None:
        """Flush everything to the temporary file; only `commit` may follow."""

    def commit(self, name: str | None = None) -> None:
        """Finish, if not yet done, and give the file its final name, or another one in the same folder."""


WHOLE = TimeWindow()
"""The window of a whole video."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What formats that store videos or captions separately must know about the rows; plain values."""

    video_field: str | None = None
    """Field with the single video of a row; None: rows have lists of videos."""
    caption_field: str | None = None
    """Field with the captions."""
    root: AnyPath | None = None
    """Folder that relative video paths are relative to."""
    with_videos: bool = False
    """Whether the videos themselves are copied to the output."""
    limits: ReadLimits = DEFAULT_LIMITS
    """Which videos may be read."""
    keep: Callable[[Sample, Path, list[str]], list[str]] | None = None
    """Takes a row of a videofolder's table, the file for its captions and the captions, and returns those to write: a
    file that a person has edited keeps its own."""
    window_fields: tuple[str, str] | None = None
    """Fields with a row's own start and end; None: rows are about whole videos."""
    window: TimeWindow = WHOLE
    """The window of rows without their own."""
    cut: str | None = None
    """How parts of videos are cut out, a key of `video.cutting.CUTS`; None: they are not."""
    pieces: Path | None = None
    """Folder for them until the output is made."""
    replaces: bool = False
    """Whether existing videos of the same name may be replaced."""


DEFAULT_LAYOUT = Layout()


class UpTo(io.RawIOBase):
    """The bytes of a local file at the time it was opened as an input: data appended later is ignored.

    Args:
        path: the file.
        size: its size at that time; None: all of it.
        whole_lines: whether a line that was incomplete then is read to its end.
    """

    def __init__(self, path: Path, size: int | None, *, whole_lines: bool = False) -> None:
        self._file = path.open("rb", buffering=0)
        self._left = size
        self._whole_lines = whole_lines
        self._in_line = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as data is left."""
        view = memoryview(buffer)
        if self._left is None:
            return self._file.readinto(view) or 0
        if self._left > 0:
            count = self._file.readinto(view[: self._left]) or 0
            self._left -= count
            self._in_line = self._whole_lines and bool(count) and view[count - 1] != ord("\n")
            return count
        return self._rest_of_line(view) if self._in_line else 0

    def _rest_of_line(self, view: memoryview) -> int:
        count = self._file.readinto(view) or 0
        end = bytes(view[:count]).find(b"\n")
        self._in_line = bool(count) and end < 0
        return count if end < 0 else end + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def size_now(path: AnyPath) -> int | None:
    """The size of a local regular file; None: it is something else."""
    if not isinstance(path, Path):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@runtime_checkable
class Bounded(Protocol):
    """A source with a limit on the size of a row in memory."""

    max_row_bytes: int
    """The largest row that is read, as it is stored."""


@runtime_checkable
class Pictured(Protocol):
    """A source whose samples may have a still picture instead of a video."""

    images: bool
    """Whether such a picture is the sample's video."""


@runtime_checkable
class KnowsBytes(Protocol):
    """A source that knows without reading rows which of its columns contain bytes."""

    def binary_columns(self) -> Iterable[str]:
        """Their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: its source and its sink; either may be missing.

    An output is made of parts, each a complete file of rows, which are joined under the final name.

    >>> Format(name="lines", suffixes=(".lines",), written=(".lines",), source=LinesSource, sink=LinesSink)
    """

    name: str
    """Its name."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the files that are read."""
    source: Callable[..., Source] | None = None
    """Reads a file, given its path, or, for `many`, the files of a folder, given the folder and the files."""
    many: str | None = None
    """Name for several files that make up one data set in a folder, or by a pattern; None: they never do."""
    folder_source: Callable[[AnyPath], Source | None] | None = None
    """Reads a folder that is a data set itself; returns None if the folder is something else."""
    written: tuple[str, ...] = ()
    """Suffixes of outputs."""
    is_named: bool = False
    """Whether `--format` names it; the output is then named by a folder."""
    sink: Callable[..., Sink] | None = None
    """Writes a whole file, given its path, `schema` and `new_fields`; None: outputs are made only of parts."""
    part_sink: Callable[..., Sink] | None = None
    """Writes a part, given its path, `schema`, `new_fields` and `layout`; None: parts are JSON lines."""
    part: str = "jsonl"
    """Suffix of a part, without its dot."""
    join: Callable[[Sequence[Path], Path, Layout], None] | None = None
    """Writes the rows of one or more parts, in order, under the final name; None: `sink` takes them all."""
    part_rows: int | None = None
    """Rows of the input in a part; None: the run's default."""
    is_own_folder: Callable[[Path], bool] | None = None
    """For a folder output: whether an existing folder holds only such an output; else None."""
    table: Callable[[Path], Path] | None = None
    """For an output among local videos: the file that the run writes there, given the output's name. It has one row per
    video, and may include parts of videos that are cut out."""
    holds_videos: bool = False
    """Whether it can include videos from other files."""
    needs_one_video: bool = False
    """Whether rows must have one video each if videos are included."""
    holds_bytes: bool = False
    """Whether values of rows may be bytes."""
    has_types: bool = False
    """Whether all values of a column have one type."""
    has_relative_paths: bool = False
    """Whether paths of videos in the output are relative to it."""
    captioned_rows: Callable[[Path], Iterator[tuple[Sample, str | None]]] | None = None
    """Reads an output whose samples are separate files: each row, and the text next to it; else None."""
    check_installed: Callable[[], object] | None = None
    """Raises if a package that joins the output is missing; None: it needs no extra."""

    @property
    def label(self) -> str:
        """Its name on the command line: its name, or its first suffix."""
        return self.name if self.is_named else self.written[0]


@contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Turn an operating system error while reading a file into a `DataError`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"cannot read {str(path)!r}: {_reason(exc)}") from exc


@contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Turn an operating system error while writing a file into a `DataError`."""
    try:
        yield
    except OSError as exc:
        raise DataError(f"cannot write {str(path)!r}: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
