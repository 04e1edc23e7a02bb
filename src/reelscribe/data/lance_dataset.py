"""Lance data sets: folders whose name ends in `.lance`. The package `pylance` is an extra; it uses its own reader for
object stores, with settings from the environment (`AWS_ENDPOINT_URL`, …)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..stores import AnyPath, StoredPath
from ..types import Sample
from .arrow import plain_rows, plain_schema
from .base import DEFAULT_LAYOUT, MAX_ROW_BYTES, Format, Layout, understanding
from .parquet import ParquetSink, file_schema, tables
from .temporary import TemporaryFolder

READ_ROWS = 64
"""Rows that are turned into Python values at once: they may hold videos."""
VERSIONS = "_versions"
"""Folder that identifies a Lance data set."""


class LanceSource:
    """The rows of a data set's newest version."""

    def __init__(self, path: AnyPath, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self.path: AnyPath = path
        self._place = path
        self.folder: AnyPath = path.parent
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        return plain_rows(self._batches(), where=str(self.path), max_row_bytes=self.max_row_bytes)

    def _batches(self) -> Iterator[Any]:
        with understanding(self.path, as_="Lance"):
            yield from self._dataset.to_batches(batch_size=READ_ROWS)

    @cached_property
    def _dataset(self) -> Any:
        lance = lance_package()
        with understanding(self.path, as_="Lance"):
            return lance.dataset(self.path.url if isinstance(self.path, StoredPath) else str(self.path))

    def fields(self) -> list[str] | None:
        """The columns."""
        return list(self.schema().names)

    def count(self) -> int | None:
        """The number of rows."""
        with understanding(self.path, as_="Lance"):
            return int(self._dataset.count_rows())

    def schema(self) -> Any:
        """The schema of the newest version."""
        with understanding(self.path, as_="Lance"):
            return plain_schema(self._dataset.schema)

    def files(self) -> Sequence[AnyPath]:
        """The files of its versions: every change adds one."""
        versions = self._place / VERSIONS
        return versions.files() if isinstance(versions, StoredPath) else sorted(versions.glob("*"))


def join_lance(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """Write a data set of the rows of Parquet files."""
    import pyarrow as pa

    schema = file_schema(parts[-1])
    batches = (batch for part in parts for table in tables(part, schema, where=output) for batch in table.to_batches())
    folder = TemporaryFolder(output)
    folder.create()
    try:
        lance_package().write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(folder.path))
        folder.commit()
    except OSError as exc:
        raise DataError(f"cannot write {str(output)!r}: {str(exc).splitlines()[0]}") from exc
    finally:
        folder.discard()


def lance_package() -> Any:
    """The module `lance`.

    Raises:
        DataError: it is not installed.
    """
    try:
        import lance
    except ImportError as exc:
        raise DataError("Lance needs the package pylance: pip install 'reelscribe[lance]'") from exc
    return lance


def is_lance(folder: AnyPath) -> bool:
    """Whether a folder is a Lance data set."""
    return (folder / VERSIONS).is_dir()


def _saved(folder: AnyPath) -> LanceSource | None:
    return LanceSource(folder) if is_lance(folder) else None


FORMAT = Format(
    name="lance",
    folder_source=_saved,
    written=(".lance",),
    part_sink=ParquetSink,
    part="parquet",
    join=join_lance,
    check_installed=lance_package,
    is_own_folder=is_lance,
    holds_bytes=True,
    has_types=True,
)
