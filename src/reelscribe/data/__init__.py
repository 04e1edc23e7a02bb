"""Where rows come from and where they go: one module a format, chosen by the suffix of the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .base import NewFields, Sink, Source, by_suffix
from .delimited import DelimitedSource
from .folder import VIDEO_SUFFIXES, VideoFileSource, list_files
from .jsonl import JsonlSink, JsonlSource, join_lines
from .parquet import ParquetSink, ParquetSource, file_schema, join_parquet

SOURCES: dict[str, Callable[[Path], Source]] = {
    ".jsonl": JsonlSource,
    ".jsonl.gz": JsonlSource,
    ".jsonl.zst": JsonlSource,
    ".json": JsonlSource,
    ".json.gz": JsonlSource,
    ".json.zst": JsonlSource,
    ".ndjson": JsonlSource,
    ".parquet": ParquetSource,
    ".csv": DelimitedSource,
    ".tsv": DelimitedSource,
    **dict.fromkeys(VIDEO_SUFFIXES, VideoFileSource),
}
"""Suffix of a file to what reads it."""

SINKS: dict[str, Callable[..., Sink]] = {
    ".jsonl": JsonlSink,
    ".jsonl.gz": JsonlSink,
    ".jsonl.zst": JsonlSink,
    ".json": JsonlSink,
    ".ndjson": JsonlSink,
    ".parquet": ParquetSink,
}
"""Suffix of a file to what writes it."""

__all__ = [
    "SINKS",
    "SOURCES",
    "NewFields",
    "Sink",
    "Source",
    "join_files",
    "open_sink",
    "open_source",
    "part_suffix",
    "schema_of",
]


def open_source(path: str | Path) -> Source:
    """The rows at a path: a data file, a video, or a folder of Parquet files or of videos.

    Raises:
        DataError: nothing is there, the suffix is unknown, or a folder holds both kinds.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no file or folder {str(path)!r}")
    if path.is_dir():
        return _folder_source(path)
    return by_suffix(SOURCES, path, role="input")(path)


def _folder_source(path: Path) -> Source:
    files = list_files(path, (".parquet", *VIDEO_SUFFIXES))
    parquet = [file for file in files if file.suffix.lower() == ".parquet"]
    if not files:
        raise DataError(f"no videos and no Parquet files under {str(path)!r}; videos are {', '.join(VIDEO_SUFFIXES)}")
    if parquet and len(parquet) < len(files):
        raise DataError(f"the folder {str(path)!r} holds Parquet files and videos; name the Parquet file itself")
    return ParquetSource(path, parquet) if parquet else VideoFileSource(path, files)


def open_sink(path: str | Path, *, schema: Any = None, new_fields: NewFields | None = None) -> Sink:
    """A sink for a path; a file that is there is replaced at `commit`.

    Args:
        path: the final name; its suffix is the format.
        schema: Arrow schema of the source's rows, where there is one.
        new_fields: fields the run adds to the rows.

    Raises:
        DataError: the suffix is unknown.
    """
    path = Path(path)
    return by_suffix(SINKS, path, role="output")(path, schema=schema, new_fields=new_fields)


def part_suffix(output: Path) -> str:
    """The suffix of the parts an output is made of, without its dot; what is compressed is so when they are joined."""
    return "parquet" if by_suffix(SINKS, output, role="output") is ParquetSink else "jsonl"


def join_files(parts: Sequence[Path], output: Path) -> None:
    """Write the rows of parts, in their order, to a file under its final name.

    Args:
        parts: at least one, in the format that `part_suffix` names.
        output: the final name; what is there is replaced.

    Raises:
        DataError: it cannot be written.
    """
    join = join_parquet if part_suffix(output) == "parquet" else join_lines
    join(parts, output)


def schema_of(part: Path) -> Any:
    """The Arrow schema of a part, where its format has one, else None."""
    return file_schema(part) if part.suffix == ".parquet" else None
