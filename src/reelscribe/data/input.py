"""The rows of a data set as a run takes them, opened once, and what is known of them before anything is asked.

Whatever has to be found out from rows is found out in one go from the first of them; a run then reads on from there.
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
"""Bytes of rows that are kept for the run; where more are needed to know the form, they are read again."""


class Head:
    """The first rows of a source, in a file that stays open; iterating gives those that were not looked at yet.

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
        """The first row; None: nobody has looked, or there is none."""
        self.fields: dict[str, None] = {}
        """Names of the fields of the rows that were looked at, in the order they came up."""

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
        """Look at rows up to the first that has this field."""
        if name not in self.fields:
            next((row for row in self if name in row), None)

    @property
    def is_whole(self) -> bool:
        """Whether all rows that were looked at are kept."""
        return self._kept is not None

    def all_rows(self) -> Iterator[Sample]:
        """Every row from the first; once, and where `is_whole`."""
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
    """The input of a run: its rows, and the facts that checks and the run go by."""

    source: Source
    """What reads the rows."""
    limit: int | None
    """How many rows are taken; None: all."""
    form: RowForm
    """The form of the rows."""
    fields: list[str]
    """Names of the fields, as far as they are known: all where the format has them, else those of the rows up to the
    first that tells the form and the first with its own prompt."""
    first: Sample | None
    """The first row; None: there is none."""
    _heads: list[Head] = field(default_factory=list, repr=False, compare=False)
    """What is open; nothing once the rows were taken."""
    _size: Any = field(default=None, repr=False, compare=False)
    """Up to where the file was to be read when it was opened."""

    @classmethod
    def open(cls, source: Source, names: FieldNames, *, limit: int | None = None) -> Input:
        """Open a source and look at as many rows as tell what there is to know.

        Args:
            source: the rows.
            names: how the fields are called.
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
        """Rows of the source where that is cheap to know, whatever the limit; else None."""
        return self.source.count()

    @property
    def total(self) -> int | None:
        """Rows that are taken, where that is known."""
        if self.limit is None or self.count is None:
            return self.limit if self.count is None else self.count
        return min(self.limit, self.count)

    def rows(self, start: int = 0) -> Iterator[Sample]:
        """The rows from this one on: the first time out of the file that is open, later out of a new one.

        A file at an address is opened anew, since a server may have let go of it while a model was loading; and so is
        one that is to be read further than when it was opened.
        """
        heads, self._heads[:] = list(self._heads), []
        for head in heads:
            is_as_opened = isinstance(self.source.path, Path) and self._size == getattr(self.source, "size", None)
            if is_as_opened and head.is_whole:
                return islice(head.all_rows(), start, None)
            head.close()
        return islice(self.source, start, self.limit)

    def close(self) -> None:
        """Close what is open and will not be read."""
        while self._heads:
            self._heads.pop().close()


def _still_pictures(fields: Iterable[str]) -> str:
    """How still pictures of a tar shard are taken, where there are some."""
    has_images = any(f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES for name in fields)
    return "; still pictures are captioned with --allow-images (allow_images)" if has_images else ""
