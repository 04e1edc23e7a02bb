"""Data sets of the Hugging Face hub by name, streamed: `hf://datasets/USER/NAME`, with `@REVISION`, and
`?split=…&name=…` if there are several splits or configurations.

`datasets` finds out what is in the repository: Parquet, JSON lines, CSV, WebDataset, a `videofolder`. Values are read
as they are stored: a video is `{"path", "bytes"}`, and nothing is decoded or fetched for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import DataError, ReelscribeError
from ..stores import AnyPath, StoredPath
from ..types import Sample
from .arrow import plain_rows
from .base import MAX_ROW_BYTES
from .hf_dataset import datasets_package

READ_ROWS = 64
"""Rows that are turned into Python values at once: they may hold videos."""
_REPOSITORY = re.compile(r"hf://datasets/([^/@?]+/[^/@?]+)(?:@(refs/[^/?]+/[^/?]+|[^/?]+))?/?(?:\?.*)?")
_SETTINGS = ("split", "name")


class HubSource:
    """The rows of one split of a data set on the hub, at its newest revision when it is opened; `path` has that
    revision, so that later readers find the same rows."""

    def __init__(self, path: StoredPath, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self.max_row_bytes = max_row_bytes
        datasets_package()  # missed before anything is asked for
        found = _REPOSITORY.fullmatch(path.url)
        assert found is not None
        query = urlsplit(path.url).query
        given = parse_qs(query)
        if unknown := given.keys() - set(_SETTINGS):
            raise DataError(f"{str(path)!r} accepts only ?split=… and &name=…; got {', '.join(sorted(unknown))}")
        self.path: AnyPath = path
        self._repository = found[1]
        self._split, self._name = (given[key][-1] if key in given else None for key in _SETTINGS)
        self._revision = self._newest(found[2] and unquote(found[2]))
        self.folder: AnyPath = StoredPath(f"hf://datasets/{self._repository}@{self._revision}", path.seconds)
        self.path = replace(self.folder, url=f"{self.folder.url}?{query}" if query else self.folder.url)

    def __iter__(self) -> Iterator[Sample]:
        return plain_rows(self._tables(), where=str(self.path), max_row_bytes=self.max_row_bytes)

    def _tables(self) -> Iterator[Any]:
        with self._reading():
            yield from self._dataset.with_format("arrow").iter(READ_ROWS)

    def _newest(self, asked: str | None) -> str:
        from huggingface_hub import HfApi

        with self._reading():
            return str(HfApi().dataset_info(self._repository, revision=asked).sha)

    @cached_property
    def _dataset(self) -> Any:
        with self._reading():
            splits = datasets_package().load_dataset(
                self._repository, self._name, revision=self._revision, streaming=True
            )
        names = list(splits)
        split = self._split or (names[0] if len(names) == 1 else None)
        if split not in splits:
            wrong = f"has no split {split!r}" if split else "has several splits"
            raise DataError(f"{str(self.path)!r} {wrong}; name one with ?split=…: {', '.join(names)}")
        found = splits[split]
        return found.decode(False) if found.features else found  # without features there is nothing to decode

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn errors of `datasets` and the hub into a `DataError`."""
        try:
            yield
        except (ReelscribeError, MemoryError):
            raise
        except Exception as exc:  # each format has its own
            told = str(exc).strip().partition("\n")[0] or type(exc).__name__
            hint = "; name one with ?name=…" if "Config name is missing" in told else ""
            raise DataError(f"cannot read {str(self.path)!r} from the hub: {told}{hint}") from exc

    def fields(self) -> list[str] | None:
        """The columns, if known without reading rows."""
        return list(self._dataset.column_names) if self._dataset.column_names else None

    def count(self) -> int | None:
        """As given by the repository, if it is."""
        splits = self._dataset.info.splits
        known = splits.get(str(self._dataset.split)) if splits else None
        return (known.num_examples or None) if known else None

    def schema(self) -> Any:
        """The schema of its features, if known."""
        return self._dataset.features.arrow_schema if self._dataset.features else None

    def files(self) -> Sequence[AnyPath]:
        """The repository at its revision."""
        return [self.folder]


def is_hub_dataset(path: StoredPath) -> bool:
    """Whether an address is of a whole data set, not of a file or a folder in it."""
    return _REPOSITORY.fullmatch(path.url) is not None
