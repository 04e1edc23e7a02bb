"""Files that a cluster leaves in the folder of a run: answers, and which rows have them.

They may have come with the videos from an untrusted source: anything else is detected before Arrow, or Ray, loads it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...rows.asks import UNNAMED
from ...types import CaptionResult, RequestId
from ..run.payload import mark_of, result_of
from .forms import ANSWERS, ROW, answers_type

ARROW_SCHEMA, EXTENSION = b"ARROW:schema", b"ARROW:extension"
"""The key under which a Parquet file stores its Arrow schema, and the marker in it for a type of another package."""
NEEDED = ("video", "digest", "result")
"""Fields that every answer in a file has."""
ROWS_AT_ONCE = 65536
"""Row numbers written together."""

Answer = tuple[RequestId, bytes, CaptionResult, str | None, Any]
"""The journal's arguments: request, digest, result, the failure kind for retries, the video's mark."""


def answers_in(path: Path) -> Iterator[Answer]:
    """The answers in a file; nothing if it is incomplete.

    Raises:
        ValueError: it contains something else.
    """
    for row, answers in rows_in(path):
        for one in answers:
            result = result_of(RequestId(row, one["video"], one.get("ask") or UNNAMED), one["result"])
            failed = one.get("lack") if result.failure is None else result.failure.kind
            yield result.request_id, one["digest"], result, failed, mark_of(one["result"])


def write_rows(path: Path, numbers: Iterable[int]) -> None:
    """Write a file of the checkpoint: the numbers of rows that need no answer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting, schema = iter(numbers), pa.schema({ROW: pa.int64()})
    unfinished = path.with_suffix(".unfinished")
    with pq.ParquetWriter(unfinished, schema) as writer:
        while some := list(islice(waiting, ROWS_AT_ONCE)):
            writer.write_table(pa.table({ROW: some}, schema=schema))
    unfinished.rename(path)


def rows_in(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The rows and answers in a file; nothing if it is incomplete.

    Raises:
        ValueError: it contains something else.
    """
    import pyarrow.parquet as pq

    if not _is_whole(path):
        return
    _check_answers(path)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[ROW, ANSWERS]):
            for row, answers in zip(*(batch[name].to_pylist() for name in (ROW, ANSWERS)), strict=True):
                if row is None or any(one[name] is None for one in answers or () for name in NEEDED):
                    raise ValueError("a row without a number, or an answer that is null")
                yield row, answers or []


def _check_answers(path: Path) -> None:
    """Check that a file contains answers, in the current format or the one before asks had names.

    Raises:
        ValueError: it does not.
    """
    import pyarrow as pa

    try:
        _check_columns(path, {ROW: pa.int64(), ANSWERS: answers_type()})
    except ValueError:
        _check_columns(path, {ROW: pa.int64(), ANSWERS: answers_type(with_ask=False)})


def may_be_rows(path: Path) -> bool:
    """Whether a checkpoint file contains row numbers, or is incomplete because the driver was killed."""
    import pyarrow as pa

    if not _is_whole(path):
        return path.is_file()
    try:
        _check_columns(path, {ROW: pa.int64()})
    except ValueError:
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Whether this is a complete Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return path.is_file() and pq.read_metadata(path) is not None
    except (pa.ArrowException, OSError):
        return False


def _check_columns(path: Path, columns: dict[str, Any]) -> None:
    """Check that a Parquet file has exactly these columns, before Arrow, or Ray, loads them.

    Raises:
        ValueError: it has others.
    """
    import pyarrow.parquet as pq

    schema = (pq.read_metadata(path).metadata or {}).get(ARROW_SCHEMA, b"")
    if EXTENSION in base64.b64decode(schema):
        raise ValueError("it has types of another package")
    found = pq.read_schema(path)
    if {field.name: field.type for field in found} != columns or len(found) != len(columns):
        raise ValueError(f"its columns are {', '.join(found.names)}")
