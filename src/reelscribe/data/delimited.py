"""Comma- and tab-separated files with a header line: every value is a string, or null where nothing is written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..record import Sample
from .base import reading

LONGEST_FIELD = 2**31 - 1
"""Characters in one field; the default of the csv module, 131,072, is shorter than some texts."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class DelimitedSource:
    """The rows of a CSV or TSV file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent
        self._delimiter = DELIMITERS[path.suffix.lower()]

    def __iter__(self) -> Iterator[Sample]:
        for line, values, header in self._records():
            if len(values) != len(header):
                raise DataError(f"{self.path}:{line} has {len(values)} values; the header names {len(header)} fields")
            yield {name: value or None for name, value in zip(header, values, strict=True)}

    def _records(self) -> Iterator[tuple[int, list[str], list[str]]]:
        """(line number, values, header) of every row that is not blank."""
        csv.field_size_limit(LONGEST_FIELD)
        with reading(self.path), self.path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=self._delimiter, strict=True)
            try:
                header = self._checked_header(next(reader, []))
                yield from ((reader.line_num, values, header) for values in reader if values)
            except (csv.Error, UnicodeDecodeError) as exc:
                raise DataError(f"{self.path}:{reader.line_num} cannot be read as CSV: {exc}") from exc

    def _checked_header(self, header: list[str]) -> list[str]:
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{self.path}:1 names the field {twice[0]!r} more than once")
        return header

    def fields(self) -> list[str] | None:
        """The names of the header line."""
        with reading(self.path), self.path.open(newline="", encoding="utf-8-sig") as file:
            try:
                return next(csv.reader(file, delimiter=self._delimiter), [])
            except (csv.Error, UnicodeDecodeError) as exc:
                raise DataError(f"{self.path}:1 cannot be read as CSV: {exc}") from exc

    def count(self) -> int | None:
        """Unknown: a quoted value may hold line ends."""
        return None

    def schema(self) -> Any:
        """All values are strings, which the rows say themselves."""
        return None

    def files(self) -> list[Path]:
        """The file itself."""
        return [self.path]
