"""The rows of a data set as a run reads them, opened once, and the facts known about them in advance.

Facts that depend on rows are determined once from the first rows; a run then reads on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ..pipeline import weight_of
from ..rows.fields import FieldNames
from ..rows.forms import RowForm, choose_form
from ..types import Sample
from .base import Source
from .folder import IMAGE_SUFFIXES

MAX_HEAD_BYTES = 64 << 20
"""Bytes of rows that are kept for the run; if more are needed to determine the form, they are read again."""


class Head:
    """The first rows of a source, in a file that stays open; iterating gives those that were not examined yet.

    Args:
        source: the rows.
        limit: how many of them count; None: all.
    """

    def __init__(self, source: Source, limit: int | None) -> None:
        self._opened: Any = iter(source)
        self._rows = islice(self._opened, limit)
        self._kept: deque[Sample] | None = deque()
        self._room = MAX_HEAD_BYTES
        self.first: Sample | None = None
        """The first row; None: not examined, or there is none."""
        self.fields: dict[str, None] = {}
        """Names of the fields of the examined rows, in order of appearance."""

    def __iter__(self) -> Iterator[Sample]:
        for row in self._rows:
            self.first = row if self.first is None else self.first
            self.fields.update(dict.fromkeys(row))
            self._keep(row)
            yield row

    def _keep(self, row: Sample) -> None:
        self._room -= weight_of(row)
        if self._kept is not None and self._room >= 0:
            self._kept.append(row)
        else:
            self._kept = None

    def look_for(self, name: str) -> None:
        """Examine rows up to the first that has this field."""
        if name not in self.fields:
            next((row for row in self if name in row), None)

    @property
    def is_whole(self) -> bool:
        """Whether all examined rows are kept."""
        return self._kept is not None

    def all_rows(self) -> Iterator[Sample]:
        """Every row from the first; once, and only if `is_whole`."""
        assert self._kept is not None
        while self._kept:
            yield self._kept.popleft()
        yield from self._rows

    def close(self) -> None:
        """Close the file."""
        self._kept = None
        if hasattr(self._opened, "close"):
            self._opened.close()


@dataclass(frozen=True)
class Input:
    """The input of a run: its rows, and the facts that checks and the run use."""

    source: Source
    """The source of the rows."""
    limit: int | None
    """How many rows are taken; None: all."""
    form: RowForm
    """The form of the rows."""
    fields: list[str]
    """Names of the fields, as far as known: all if the format has them, else those of the rows up to the first that
    shows the form and the first with its own prompt."""
    first: Sample | None
    """The first row; None: there is none."""
    _heads: list[Head] = field(default_factory=list, repr=False, compare=False)
    """The open file; None once the rows were taken."""
    _size: Any = field(default=None, repr=False, compare=False)
    """How far the file was to be read when it was opened."""

    @classmethod
    def open(cls, source: Source, names: FieldNames, *, limit: int | None = None) -> Input:
        """Open a source and examine as many rows as needed.

        Args:
            source: the rows.
            names: names of the fields.
            limit: how many rows are taken; None: all.

        Raises:
            DataError: the rows have no form, or cannot be read.
        """
        head = Head(source, limit)
        form = choose_form(head, names, hint=_still_pictures)
        known = source.fields()
        if not known and names.prompt_key is not None:
            head.look_for(names.prompt_key)
        return cls(source, limit, form, known or list(head.fields), head.first, [head], getattr(source, "size", None))

    @cached_property
    def count(self) -> int | None:
        """Number of rows of the source if cheap to find, whatever the limit; else None."""
        return self.source.count()

    @property
    def total(self) -> int | None:
        """Number of rows that are taken, if known."""
        if self.limit is None or self.count is None:
            return self.limit if self.count is None else self.count
        return min(self.limit, self.count)

    def rows(self, start: int = 0) -> Iterator[Sample]:
        """The rows from this one on: the first time from the open file, later from a new one.

        A file at an address is reopened, since a server may have dropped the connection while a model was loading; so
        is one that is to be read further than when it was opened.
        """
        heads, self._heads[:] = list(self._heads), []
        for head in heads:
            is_as_opened = isinstance(self.source.path, Path) and self._size == getattr(self.source, "size", None)
            if is_as_opened and head.is_whole:
                return islice(head.all_rows(), start, None)
            head.close()
        return islice(self.source, start, self.limit)

    def close(self) -> None:
        """Close the file if it will not be read."""
        while self._heads:
            self._heads.pop().close()


def _still_pictures(fields: Iterable[str]) -> str:
    """The hint on still pictures of a tar shard, if it has some."""
    has_images = any(f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES for name in fields)
    return "; still pictures are captioned with --allow-images (allow_images)" if has_images else ""
