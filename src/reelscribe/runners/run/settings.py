"""How a run treats its input and output."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ...data.base import MAX_ROW_BYTES
from ...errors import SettingsError
from .failures import FailureLimit
from .parts import PART_ROWS


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run treats its input and output."""

    limit: int | None = None
    """Stop after this many rows."""
    overwrite: bool = False
    """Start afresh, whatever is there."""
    update: bool = False
    """Where settings or the input have changed: do again what that affects, and keep the other captions."""
    retry: Collection[str] | None = None
    """Try failed videos again that failed in these ways (none named: in any way); None: do not."""
    recheck: bool = False
    """Ask again about videos that were replaced under their names since they were captioned."""
    discard_edits: bool = False
    """Drop captions that were edited by hand in the output, instead of keeping them."""
    changed: Collection[str] = ()
    """Parameters that may differ from those of the run that is tried again."""
    max_failures: FailureLimit = field(default_factory=FailureLimit)
    """How many rows may fail."""
    failures: Path | None = None
    """The file of failures; None: `<output>.failures.jsonl`."""
    part_rows: int = PART_ROWS
    """Rows of the input in a part of the output."""
    format: str | None = None
    """Name of a format whose output is a folder (`data.BY_NAME`); None: by the suffix of the output."""
    with_videos: bool = False
    """Whether the videos go to the output too, where its format has room for them."""
    cut: str | None = None
    """How the parts of videos that rows are about are cut out for a `videofolder` with videos, `copy` or `exact`; None:
    whole videos are copied."""
    max_row_bytes: int = MAX_ROW_BYTES
    """The largest row that is read into memory, in bytes without compression."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_row_bytes, int) or self.max_row_bytes < 1:
            raise SettingsError(f"max_row_bytes must be at least 1 byte; got {self.max_row_bytes!r}")
