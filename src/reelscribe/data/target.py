"""The output of a run and its format: by suffix, or by the name of a folder format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, SettingsError
from ..stores import AnyPath
from .base import DEFAULT_LAYOUT, Format, Layout, NewFields, Sink
from .formats import BY_NAME, BY_SUFFIX, FORMATS, by_suffix
from .jsonl import JsonlSink, JsonlSource
from .links import check_file
from .parquet import file_schema
from .pieces import CUTS


@dataclass(frozen=True, slots=True)
class Target:
    """An output, its format, and what the format must know about the rows."""

    path: Path
    """The final name."""
    format: Format
    """Its format."""
    layout: Layout = DEFAULT_LAYOUT
    """What the format must know about the rows."""

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
            with_videos: whether the videos themselves are copied to the output.
            cut: how the parts that rows are about are cut out, one of `CUTS`; None: they are not.

        Raises:
            DataError: the suffix is unknown.
            SettingsError: the format is unknown, or cannot hold videos or parts of them.
            MissingExtraError: a package that writes the format is not installed.
        """
        if format is not None and format not in BY_NAME:
            raise SettingsError(f"unknown format {format!r}; choose from {', '.join(BY_NAME)}")
        made = by_suffix(BY_SUFFIX, output, role="output") if format is None else BY_NAME[format]
        if with_videos and not made.holds_videos:
            *others, last = [row.label for _, row in FORMATS.usable() if row.holds_videos]
            raise SettingsError(
                f"{made.name} cannot hold videos from other files; --with-videos works with {', '.join(others)} and "
                f"{last}"
            )
        if cut is not None and (cut not in CUTS or made.table is None or not with_videos):
            among = " or ".join(row.name for _, row in FORMATS.usable() if row.table is not None)
            raise SettingsError(
                f"--cut must be {' or '.join(CUTS)} and requires --format {among} and --with-videos; got {cut!r} for "
                f"{made.name}{'' if with_videos else ' without videos'}"
            )
        if made.check_installed is not None:
            made.check_installed()
        path = output if made.table is None else made.table(output)
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
        """Whether the output is a folder."""
        return self.format.is_own_folder is not None

    def check_replaceable(self) -> None:
        """Refuse to replace a folder with other content.

        Raises:
            DataError: it has other content, or a folder exists where a file must go.
        """
        if self.format.table is not None:  # the run chose the name in the folder
            check_file(self.path, "the table")
        if not self.path.is_dir():
            return
        own = self.format.is_own_folder
        if own is None:
            raise DataError(f"cannot write {str(self.path)!r}: it is a folder")
        if any(self.path.iterdir()) and not own(self.path):
            raise DataError(
                f"the folder {str(self.path)!r} contains other files than {self.format.name} data; choose another name"
            )

    def open_part(self, path: Path, *, schema: Any = None, new_fields: NewFields | None = None) -> Sink:
        """A sink for a part."""
        return (self.format.part_sink or JsonlSink)(path, schema=schema, new_fields=new_fields, layout=self.layout)

    def join(self, parts: Sequence[Path]) -> None:
        """Write the rows of parts, in order, under the final name; existing output is replaced.

        Raises:
            DataError: it cannot be written.
        """
        self.check_replaceable()
        if self.format.join is None:
            self._rewrite(parts)
        else:
            self.format.join(parts, self.path, self.layout)

    def _rewrite(self, parts: Sequence[Path]) -> None:
        """Write the rows of parts of JSON lines as the format's own sink writes rows."""
        assert self.format.sink is not None
        with self.format.sink(self.path, schema=None, new_fields=None) as sink:
            for part in parts:
                for row in JsonlSource(part, max_row_bytes=None):
                    sink.write(row)
            sink.commit()


def schema_of(part: Path) -> Any:
    """The Arrow schema of a part, if its format has one, else None."""
    return file_schema(part) if part.suffix == ".parquet" else None
