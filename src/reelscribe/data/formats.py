"""The table of formats, and tables derived from it; packages add formats through `reelscribe.formats`.

A package's format is considered if no built-in one fits, or if it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..entry_points import FORMATS as GROUP
from ..entry_points import Table
from ..errors import DataError
from ..stores import AnyPath
from . import delimited, folder, hf_dataset, jsonl, lance_dataset, parquet, videofolder, webdataset
from .base import Format, Sink, Source

T = TypeVar("T")

FORMATS: Table[Format] = Table(
    GROUP,
    {
        row.name: row
        for row in (
            jsonl.FORMAT,
            parquet.FORMAT,
            delimited.FORMAT,
            webdataset.FORMAT,
            webdataset.SHARDS_FORMAT,
            videofolder.FORMAT,
            hf_dataset.FORMAT,
            lance_dataset.FORMAT,
            folder.FORMAT,
        )
    },
    what="format",
    fits=lambda row: isinstance(row, Format),
    rule="a reelscribe.data.base.Format",
)
"""Name of a format to its row."""


class Part(Mapping[str, T]):
    """A part of every format that has it, by suffix or name.

    Args:
        of: the part of one format, by its keys.
    """

    def __init__(self, of: Callable[[Format], Mapping[str, T]]) -> None:
        self.built_in = {key: part for row in FORMATS.built_in.values() for key, part in of(row).items()}
        """The parts of formats of this package."""
        self._of = of

    def __getitem__(self, key: str) -> T:
        return self.built_in[key] if key in self.built_in else self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        brought = (self._of(row) for name, row in FORMATS.usable() if name not in FORMATS.built_in)
        return self.built_in | {
            key: part for parts in brought for key, part in parts.items() if key not in self.built_in
        }


SOURCES: Part[Callable[..., Source]] = Part(lambda row: dict.fromkeys(row.suffixes, row.source) if row.source else {})
"""Suffix of a file to its source."""
MANY: Part[Callable[[Any, Sequence[Any]], Source]] = Part(
    lambda row: dict.fromkeys(row.suffixes, row.source) if row.source and row.many else {}
)
"""Suffix of files that make up one data set, in a folder or by a pattern, to their source."""
SINKS: Part[Callable[..., Sink]] = Part(lambda row: dict.fromkeys(row.written, row.sink) if row.sink else {})
"""Suffix of a file to its sink."""
BY_SUFFIX: Part[Format] = Part(lambda row: dict.fromkeys(row.written, row))
"""Suffix of an output to its format."""
BY_NAME: Part[Format] = Part(lambda row: {row.name: row} if row.is_named else {})
"""Name of a format whose output is named by a folder to the format."""


def by_suffix(table: Part[T], path: AnyPath, *, role: str) -> T:
    """The entry of a table whose key, a suffix such as `.jsonl.gz`, ends the path's name; the longest wins, built-in
    ones before those of packages.

    Raises:
        DataError: no key matches; the message lists them.
    """
    name = path.name.lower()
    for known in (table.built_in, table):
        for suffix in sorted(known, key=len, reverse=True):
            if name.endswith(suffix):
                return known[suffix]
    raise DataError(f"cannot tell the format of {role} {str(path)!r} from its name; expected one of {', '.join(table)}")
