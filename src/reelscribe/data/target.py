"""Where the output of a run goes, and in which format: by its suffix, or by the name of a format that is a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, SettingsError
from ..stores import AnyPath
from .base import DEFAULT_LAYOUT, Format, Layout, NewFields, Sink, by_suffix
from .delimited import join_delimited
from .hf_dataset import datasets_package, is_hf_dataset, join_hf_dataset
from .jsonl import JsonlSink, join_lines
from .lance_dataset import is_lance, join_lance, lance_package
from .links import check_file
from .parquet import ParquetSink, file_schema, join_parquet
from .pieces import CUTS
from .videofolder import join_videofolder, metadata_path
from .webdataset import TarSink, is_shards, join_shards, join_tar

WITH_VIDEOS = ("tar", "webdataset", "videofolder", "datasets")
"""Formats that have room for the videos of other files."""
SHARD_ROWS = 1000
"""Rows of the input in a shard."""

_LINES = Format("jsonl", JsonlSink, "jsonl", join_lines)
_TABLE = Format("csv", JsonlSink, "jsonl", join_delimited)
_TAR = Format("tar", TarSink, "tar", join_tar, part_rows=SHARD_ROWS)
_LANCE = Format("lance", ParquetSink, "parquet", join_lance, is_own_folder=is_lance, check_installed=lance_package)

BY_SUFFIX: dict[str, Format] = {
    ".jsonl": _LINES,
    ".jsonl.gz": _LINES,
    ".jsonl.zst": _LINES,
    ".json": _LINES,
    ".ndjson": _LINES,
    ".parquet": Format("parquet", ParquetSink, "parquet", join_parquet),
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".tar": _TAR,
    ".lance": _LANCE,
}
"""Suffix of an output to how it is made."""

BY_NAME: dict[str, Format] = {
    "webdataset": Format("webdataset", TarSink, "tar", join_shards, part_rows=SHARD_ROWS, is_own_folder=is_shards),
    "videofolder": Format("videofolder", JsonlSink, "jsonl", join_videofolder),
    "datasets": Format(
        "datasets",
        ParquetSink,
        "parquet",
        join_hf_dataset,
        is_own_folder=is_hf_dataset,
        check_installed=datasets_package,
    ),
}
"""Name of a format to how it is made; its output is named by a folder."""


@dataclass(frozen=True, slots=True)
class Target:
    """An output, its format, and what that must know of the rows."""

    path: Path
    """The final name."""
    format: Format
    """How it is made."""
    layout: Layout = DEFAULT_LAYOUT
    """What the format must know of the rows."""

    @classmethod
    def of(
        cls,
        output: Path,
        *,
        format: str | None = None,  # noqa: A002
        with_videos: bool = False,
        cut: str | None = None,
    ) -> Target:
        """The target with this name.

        Args:
            output: a file, or a folder.
            format: a name in `BY_NAME`; None: by the suffix.
            with_videos: whether the videos themselves go to the output.
            cut: how the parts that rows are about are cut out of their videos, one of `CUTS`; None: they are not.

        Raises:
            DataError: the suffix is unknown.
            SettingsError: the format is unknown, or cannot hold videos, or their parts.
            MissingExtraError: a package that writes it is not installed.
        """
        if format is not None and format not in BY_NAME:
            raise SettingsError(f"there is no format {format!r}; there are {', '.join(BY_NAME)}")
        made = by_suffix(BY_SUFFIX, output, role="output") if format is None else BY_NAME[format]
        if with_videos and made.name not in WITH_VIDEOS:
            raise SettingsError(
                f"{made.name} has no room for the videos of other files; --with-videos is for .tar, webdataset, "
                "videofolder and datasets"
            )
        if cut is not None and (cut not in CUTS or made.name != "videofolder" or not with_videos):
            raise SettingsError(
                f"--cut is {' or '.join(CUTS)}, and goes with --format videofolder and --with-videos; got {cut!r} for "
                f"{made.name}{'' if with_videos else ' without videos'}"
            )
        if made.check_installed is not None:
            made.check_installed()
        path = metadata_path(output) if made.name == "videofolder" else output
        return cls(path, made, Layout(with_videos=with_videos, cut=cut))

    def laid_out(
        self, *, video_field: str | None, caption_field: str | None, root: AnyPath | None, **more: Any
    ) -> Target:
        """The target for rows with these fields; `more` are other fields of the layout."""
        layout = replace(self.layout, video_field=video_field, caption_field=caption_field, root=root, **more)
        return replace(self, layout=layout)

    def with_layout(self, **changes: Any) -> Target:
        """The target with other values in its layout."""
        return replace(self, layout=replace(self.layout, **changes))

    @property
    def is_folder(self) -> bool:
        """Whether the final name is that of a folder."""
        return self.format.is_own_folder is not None

    def check_replaceable(self) -> None:
        """Stop before a folder is replaced that holds other things.

        Raises:
            DataError: it does, or a folder is where a file must go.
        """
        if self.format.name == "videofolder":  # the run chose the name in the folder
            check_file(self.path, "the table")
        if not self.path.is_dir():
            return
        own = self.format.is_own_folder
        if own is None:
            raise DataError(f"cannot write {str(self.path)!r}: it is a folder")
        if any(self.path.iterdir()) and not own(self.path):
            raise DataError(
                f"the folder {str(self.path)!r} holds other things than {self.format.name} data; "
                "name another, or a new one"
            )

    def open_part(self, path: Path, *, schema: Any = None, new_fields: NewFields | None = None) -> Sink:
        """A sink for a part."""
        return self.format.sink(path, schema=schema, new_fields=new_fields, layout=self.layout)

    def join(self, parts: Sequence[Path]) -> None:
        """Write the rows of parts, in their order, under the final name; what is there is replaced.

        Raises:
            DataError: it cannot be written.
        """
        self.check_replaceable()
        self.format.join(parts, self.path, self.layout)


def schema_of(part: Path) -> Any:
    """The Arrow schema of a part, where its format has one, else None."""
    return file_schema(part) if part.suffix == ".parquet" else None
