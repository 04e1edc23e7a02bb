"""Where rows come from and where they go: one module a format, chosen by the suffix of the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..stores import STORES, AnyPath, StoredPath, located, scheme_of
from .base import NewFields, Sink, Source, by_suffix, reading
from .delimited import DelimitedSink, DelimitedSource
from .folder import VIDEO_SUFFIXES, VideoFileSource, list_files, list_stored
from .hf_dataset import saved_dataset
from .hub_dataset import HubSource, is_hub_dataset
from .jsonl import JsonlSink, JsonlSource
from .lance_dataset import LanceSource, is_lance
from .parquet import ParquetSink, ParquetSource
from .target import BY_NAME, BY_SUFFIX, Target, schema_of
from .webdataset import TarSink, TarSource

SOURCES: dict[str, Callable[[Any], Source]] = {
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
    ".tar": TarSource,
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
    ".csv": DelimitedSink,
    ".tsv": DelimitedSink,
    ".tar": TarSink,
}
"""Suffix of a file to what writes it."""

MANY: dict[str, Callable[[Any, Sequence[Any]], Source]] = {".parquet": ParquetSource, ".tar": TarSource}
"""Suffix of files that make one data set, in a folder or by a pattern, to what reads them."""

__all__ = [
    "BY_NAME",
    "BY_SUFFIX",
    "SINKS",
    "SOURCES",
    "NewFields",
    "Sink",
    "Source",
    "Target",
    "open_sink",
    "open_source",
    "schema_of",
]


def open_source(path: str | AnyPath) -> Source:
    """The rows at a path or an address: a data file, a video, a folder, or a pattern such as `shards/*.tar`.

    Raises:
        DataError: nothing is there, the suffix is unknown, or a folder holds several kinds.
    """
    path = located(path)
    if isinstance(path, StoredPath):
        return _stored_source(path)
    if not path.exists():
        return _matching(path)
    if path.is_dir():
        return _folder_source(path)
    return by_suffix(SOURCES, path, role="input")(path)


def _stored_source(path: StoredPath) -> Source:
    """What is at an address."""
    if is_hub_dataset(path):
        return HubSource(path)
    with reading(path):
        there, is_folder = path.exists(), path.is_dir()
    if not there:
        raise DataError(f"there is nothing at {str(path)!r}")
    if is_folder:
        with reading(path):
            if scheme_of(path.url) in STORES and (saved := _saved(path)) is not None:
                return saved
            return _source_of(path, list_stored(path, (*MANY, *VIDEO_SUFFIXES)))
    return by_suffix(SOURCES, path, role="input")(path)


def _matching(pattern: Path) -> Source:
    """The files of a pattern, as one data set."""
    files = [Path(found) for found in sorted(glob(str(pattern)))]  # noqa: PTH207 (absolute patterns, too)
    if not files:
        raise DataError(f"there is no file or folder {str(pattern)!r}")
    return by_suffix(MANY, pattern, role="pattern")(pattern, files)


def _folder_source(path: Path) -> Source:
    return _saved(path) or _source_of(path, list_files(path, (*MANY, *VIDEO_SUFFIXES)))


def _saved(path: AnyPath) -> Source | None:
    """What reads a folder that is a data set itself; None: it holds files."""
    return saved_dataset(path) or (LanceSource(path) if is_lance(path) else None)


def _source_of(path: AnyPath, files: Sequence[AnyPath]) -> Source:
    """The rows of the files of a folder."""
    kinds = {suffix if (suffix := file.suffix.lower()) in MANY else "video" for file in files}
    if not files:
        raise DataError(
            f"no videos, Parquet files or tar shards under {str(path)!r}; videos are {', '.join(VIDEO_SUFFIXES)}"
        )
    if len(kinds) > 1:
        raise DataError(f"the folder {str(path)!r} holds {_listed(kinds)}; name the file itself, or a pattern")
    (kind,) = kinds
    return MANY[kind](path, files) if kind in MANY else VideoFileSource(path, files)


def _listed(kinds: set[str]) -> str:
    names = {".parquet": "Parquet files", ".tar": "tar shards", "video": "videos"}
    return " and ".join(names[kind] for kind in names if kind in kinds)


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
