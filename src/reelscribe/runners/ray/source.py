"""The rows of a file as a Ray Data source."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from ...data import LeaveOut, open_source
from ...data.base import MAX_ROW_BYTES
from ...stores import AnyPath, StoredPath
from ...types import BadRow
from .forms import ROW, SAMPLE

SOURCE_ROWS = 256
"""Rows read from the input at a time."""


def rows_of(path: AnyPath, limit: int | None, *, images: bool, leave_out: LeaveOut | None, max_row_bytes: int) -> Any:
    """The rows of a file as a Ray Data source: one task on the driver's node reads as far ahead as there is room."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    place = path if isinstance(path, StoredPath) else path.absolute()

    class RowsDatasource(Datasource):  # type: ignore[misc]
        """The rows of a file, each with its index."""

        supports_distributed_reads = False

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_args: Any, **_options: Any) -> list[Any]:  # noqa: ARG002
            metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
            task = partial(row_tables, place, limit, images=images, leave_out=leave_out, max_row_bytes=max_row_bytes)
            return [ReadTask(task, metadata)]

    return RowsDatasource()


def row_tables(
    path: AnyPath,
    limit: int | None,
    *,
    images: bool = False,
    leave_out: LeaveOut | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Iterator[Any]:
    """The rows of a file as tables of index and pickled row; for an unreadable row only its failure."""
    import pyarrow as pa

    source = islice(open_source(path, images=images, leave_out=leave_out, max_row_bytes=max_row_bytes), limit)
    rows = enumerate(row.without_fields() if isinstance(row, BadRow) else row for row in source)
    while some := list(islice(rows, SOURCE_ROWS)):
        numbers = pa.array([number for number, _ in some], pa.int64())
        yield pa.table({ROW: numbers, SAMPLE: pa.array([pickle.dumps(row) for _, row in some], pa.binary())})
