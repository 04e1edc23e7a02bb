"""Folders that `datasets.Dataset.save_to_disk` writes and `datasets.load_from_disk` reads.

Values are read as they are stored: a video is `{"path", "bytes"}`, and nothing is decoded. A folder in an object store
is streamed by our own code: `load_from_disk` would download all of it first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError, needing
from ..stores import AnyPath, StoredPath
from ..types import Sample
from .arrow import plain, plain_rows
from .base import DEFAULT_LAYOUT, MAX_ROW_BYTES, Format, Layout, check_regular, reading, understanding, writing
from .media import opened_video
from .parquet import ParquetSink, file_schema, tables
from .temporary import TemporaryFolder

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
"""Files that identify a data set, one with several splits, and the columns."""
MAX_VALUE_BYTES = (1 << 31) - (1 << 20)
"""Largest value of Arrow's binary columns; a larger video stays a path."""
MAX_INFO_BYTES = 64 * 2**20
"""Largest description file of a data set."""
READ_ROWS = 64
"""Rows that are turned into Python values at once: they may hold videos."""


def datasets_package() -> Any:
    """The module `datasets`.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needing("datasets", purpose="a data set of the library `datasets`"):
        import datasets
    return datasets


class HFDatasetSource:
    """The rows of a saved data set."""

    def __init__(self, path: Path, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self.path: AnyPath = path
        self._place = path
        self.folder: AnyPath = path
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        return plain_rows(self._tables(), where=str(self.path), max_row_bytes=self.max_row_bytes)

    def _tables(self) -> Iterator[Any]:
        with understanding(self.path, as_="a saved data set"):
            yield from self._dataset.with_format("arrow").iter(READ_ROWS)

    @cached_property
    def _dataset(self) -> Any:
        with understanding(self.path, as_="a saved data set"):
            return datasets_package().load_from_disk(str(self.path))

    def fields(self) -> list[str] | None:
        """The columns."""
        return list(self._dataset.column_names)

    def count(self) -> int | None:
        """From the folder's own metadata."""
        return len(self._dataset)

    def schema(self) -> Any:
        """The schema of its features."""
        return self._dataset.features.arrow_schema

    def files(self) -> Sequence[AnyPath]:
        """Its files; others may be next to them."""
        named = [path for path in self._place.iterdir() if path.name in (STATE, INFO) or _is_rows(path)]
        return sorted(path for path in named if path.is_file())


def _is_rows(path: Path) -> bool:
    """Whether a file has rows, not a cache that `datasets` computed from them."""
    return path.suffix == ".arrow" and not path.name.startswith("cache-")


class StoredHFDatasetSource:
    """The rows of a saved data set in an object store, file by file."""

    def __init__(self, path: StoredPath, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self.path: AnyPath = path
        self.folder: AnyPath = path
        self._place = path
        self.max_row_bytes = max_row_bytes

    def __iter__(self) -> Iterator[Sample]:
        for file in self._arrow_files():
            yield from plain_rows(_stored_batches(file), where=str(file), max_row_bytes=self.max_row_bytes)

    def _arrow_files(self) -> list[StoredPath]:
        state = _read_json(self._place / STATE)
        try:
            if state.get("_indices_data_files"):
                raise DataError(f"{str(self.path)!r} is a selection of rows; save it again after flatten_indices()")
            return [self._place / str(one["filename"]) for one in state["_data_files"]]
        except (KeyError, TypeError, AttributeError) as exc:
            raise DataError(f"cannot read {str(self._place / STATE)!r}: it names no files of rows") from exc

    @cached_property
    def _features(self) -> Any:
        try:
            return datasets_package().Features.from_dict(_read_json(self._place / INFO)["features"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise DataError(f"cannot read {str(self.path)!r} as a saved data set: {exc}") from exc

    def fields(self) -> list[str] | None:
        """The columns."""
        return list(self._features)

    def count(self) -> int | None:
        """Unknown without reading."""
        return None

    def schema(self) -> Any:
        """The schema of its features."""
        return self._features.arrow_schema

    def files(self) -> Sequence[AnyPath]:
        """Its description, and its rows."""
        return [self._place / STATE, self._place / INFO, *self._arrow_files()]


def _stored_batches(file: StoredPath) -> Iterator[Any]:
    import pyarrow as pa

    with (
        understanding(file, as_="a file of a saved data set"),
        file.open() as stored,
        pa.ipc.open_stream(stored) as batches,
    ):
        for batch in batches:
            for start in range(0, batch.num_rows, READ_ROWS):
                yield batch.slice(start, READ_ROWS)


def join_hf_dataset(parts: Sequence[Path], output: Path, layout: Layout = DEFAULT_LAYOUT) -> None:
    """A folder with the rows of Parquet files.

    `save_to_disk` itself would put the bytes of all videos that are paths into it, and fail where one is missing. Here
    paths become relative to the folder, or, with videos, the bytes of those that have captions are included.
    """
    folder = TemporaryFolder(output)
    folder.create()
    try:
        with writing(output):
            _save(parts, folder.path, _Videos(output.resolve(), layout))
        folder.commit()
    finally:
        folder.discard()


def _save(parts: Sequence[Path], folder: Path, videos: _Videos) -> None:
    from datasets import DatasetInfo, Features
    from datasets.arrow_writer import ArrowWriter

    schema = file_schema(parts[-1])
    features = videos.features(Features.from_arrow_schema(schema))
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        with ArrowWriter(features=features, path=str(folder / name)) as writer:
            for table in tables(part, schema, where=folder):
                for one in videos.tables(table, features.arrow_schema):
                    writer.write_table(one)
            writer.finalize()
    DatasetInfo(features=features).write_to_directory(str(folder))
    (folder / STATE).write_text(json.dumps(_state(folder, names), indent=2), "utf-8")


@dataclass(frozen=True, slots=True)
class _Videos:
    """How the videos of rows are stored in a saved data set."""

    folder: Path
    """The data set."""
    layout: Layout
    """Which fields hold the video and its captions."""

    def features(self, features: Any) -> Any:
        """The columns, with `Video` for that of the videos if they are included."""
        from datasets import Features, Video

        if not self.layout.with_videos or self.layout.video_field not in features:
            return features
        return Features({**features, self.layout.video_field: Video()})

    def tables(self, table: Any, schema: Any) -> Iterator[Any]:
        """The same rows with their videos in the data set's form; few at a time if they have bytes."""
        import pyarrow as pa

        field = self.layout.video_field
        if field is None or field not in table.column_names:
            yield table
            return
        table = plain(table)
        place = table.column_names.index(field)
        form = schema.field(field)
        if not self.layout.with_videos:
            if pa.types.is_string(form.type) or pa.types.is_large_string(form.type):
                paths = [self._relative(video) for video in table.column(place).to_pylist()]
                table = table.set_column(place, form, pa.array(paths, form.type))
            yield table
            return
        for number in range(table.num_rows):
            row = table.slice(number, 1)
            value = self._whole(row.column(place)[0].as_py(), is_captioned=self._is_captioned(row))
            yield row.set_column(place, form, pa.array([value], form.type))

    def _is_captioned(self, row: Any) -> bool:
        name = self.layout.caption_field
        return name in row.column_names and bool(row.column(name)[0].as_py())

    def _relative(self, video: str | None) -> str | None:
        """A path relative to the data set, as it is read back; an address unchanged."""
        path = self._path(video)
        return video if path is None else Path(os.path.relpath(path, self.folder)).as_posix()

    def _path(self, video: str | None) -> Path | None:
        """The file of a path; None: it is not on this machine."""
        if not video or "://" in video:
            return None
        root = self.layout.root
        if not video.startswith("/") and not isinstance(root, Path):
            return None
        path = Path(root if isinstance(root, Path) else "", video).absolute()
        return path.parent.resolve() / path.name

    def _whole(self, video: Any, *, is_captioned: bool) -> Any:
        """A value of `Video`: the bytes of a video that has captions, under its name."""
        if isinstance(video, bytes):
            return {"bytes": video, "path": None}
        name, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
        path = self._path(name)
        if data is None and is_captioned and path is not None:
            with opened_video(str(path), self.layout) as file:
                data = None if file is None else file.read(MAX_VALUE_BYTES + 1)
            data = None if data is None or len(data) > MAX_VALUE_BYTES else data
        if data is not None:
            return {"bytes": data, "path": name and Path(name).name}
        return None if name is None else {"bytes": None, "path": self._relative(name)}


def _state(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The state that `load_from_disk` requires; the fingerprint is of the content, since results are cached under
    it."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest.hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def saved_dataset(
    folder: AnyPath, *, max_row_bytes: int = MAX_ROW_BYTES
) -> HFDatasetSource | StoredHFDatasetSource | None:
    """The source for a folder; None: it is not a saved data set.

    Raises:
        DataError: it holds several splits.
    """
    if (folder / SPLITS).exists():
        splits = _read_json(folder / SPLITS).get("splits", ())
        names = ", ".join(str(folder / split) for split in sorted(map(str, splits if isinstance(splits, list) else ())))
        raise DataError(f"{str(folder)!r} holds several splits; name one of them: {names}")
    if not is_hf_dataset(folder):
        return None
    kind: Any = StoredHFDatasetSource if isinstance(folder, StoredPath) else HFDatasetSource
    source: HFDatasetSource | StoredHFDatasetSource = kind(folder, max_row_bytes=max_row_bytes)
    return source


def _read_json(file: AnyPath) -> dict[str, Any]:
    check_regular(file, role="file")
    try:
        with reading(file), file.open("rb") as opened:
            text = opened.read(MAX_INFO_BYTES + 1)
            found = json.loads(text) if len(text) <= MAX_INFO_BYTES else None
    except (ValueError, RecursionError) as exc:
        raise DataError(f"cannot read {str(file)!r}: {exc}") from exc
    if len(text) > MAX_INFO_BYTES:
        raise DataError(
            f"{str(file)!r} is larger than {MAX_INFO_BYTES >> 20} MiB, too large for the description of a data set"
        )
    if not isinstance(found, dict):
        raise DataError(f"cannot read {str(file)!r}: it holds no JSON object")
    return found


def is_hf_dataset(folder: AnyPath) -> bool:
    """Whether a folder is a saved data set."""
    return (folder / STATE).exists()


FORMAT = Format(
    name="datasets",
    folder_source=saved_dataset,
    is_named=True,
    part_sink=ParquetSink,
    part="parquet",
    join=join_hf_dataset,
    check_installed=datasets_package,
    is_own_folder=is_hf_dataset,
    holds_videos=True,
    needs_one_video=True,
    holds_bytes=True,
    has_types=True,
    has_relative_paths=True,
)
