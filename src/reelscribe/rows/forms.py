"""The forms of rows: which videos of a row are captioned, and where its captions go. Pure functions over plain values.

To add a form, write a class with the methods of `RowForm` and add it to `choose_form`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..errors import DataError
from ..types import Sample, TimeWindow
from .columns import NewFields
from .data_juicer_rows import DataJuicerRows
from .fields import FieldNames
from .one_video_rows import CAPTIONS_FIELD, OneVideoRows
from .outcome import RowOutcome
from .slot import Slot

VIDEO_COLUMN = "video"
"""Field to look for if the rows have no list of videos."""


class RowForm(Protocol):
    """One form of rows."""

    @property
    def names(self) -> FieldNames:
        """The field names."""

    @property
    def column(self) -> str:
        """The field with the videos."""

    @property
    def caption_key(self) -> str | None:
        """The field for captions as a list; None: there is none."""

    def slots(self, row: Sample, *, window: TimeWindow) -> Sequence[Slot]:
        """The videos of a row to caption, in order.

        Args:
            row: as it came; not modified.
            window: the time window of videos for which the row sets none.

        Raises:
            RefusedRowError: the row cannot be captioned.
            SettingsError: a time window of the row is invalid.
        """

    def place(self, row: Sample, outcome: RowOutcome) -> list[Sample]:
        """The output rows for a row."""

    def videos(self, row: Sample) -> Sequence[Any]:
        """The values of a row's videos."""

    def new_fields(self) -> NewFields:
        """The fields that the output adds to those of the row."""


def choose_form(
    rows: Iterable[Sample], names: FieldNames, *, hint: Callable[[Iterable[str]], str] = lambda _fields: ""
) -> RowForm:
    """The form of a data set, from the first row that shows it.

    Args:
        rows: the rows, or the first of them; only as many as needed are read.
        names: the field names.
        hint: makes an addition to the error message from the fields of rows without a video.

    Raises:
        DataError: no row has a field with videos, or the captions would overwrite a field.
    """
    seen: dict[str, None] = {}
    wrong: DataError | None = None
    for number, row in enumerate(rows):
        seen.update(dict.fromkeys(row))
        try:
            form = _form_of(row, names, number)
        except DataError as exc:  # if another row fits, this one fails by itself
            wrong = wrong or exc
            continue
        if form is not None:
            return _checked(form, seen, names)
    if wrong is not None:
        raise wrong
    if not seen or names.video_key in seen:
        return _checked(DataJuicerRows(names, names.video_key), seen, names)
    if VIDEO_COLUMN in seen:
        return _checked(OneVideoRows(names, VIDEO_COLUMN), seen, names)
    raise DataError(
        f"no row has a field {names.video_key!r} or {VIDEO_COLUMN!r}; the fields are {', '.join(map(repr, seen))}"
        " (use --video-key, or video_key, to name the field)" + hint(seen)
    )


def _form_of(row: Sample, names: FieldNames, number: int) -> DataJuicerRows | OneVideoRows | None:
    """The form of a row; None if its fields are missing or null."""
    value = row.get(names.video_key)
    if isinstance(value, (list, tuple)):
        return DataJuicerRows(names, names.video_key)
    for column in (names.video_key, VIDEO_COLUMN):
        if isinstance(row.get(column), OneVideoRows.kinds):
            return OneVideoRows(names, column)
    if value is not None:
        kind = type(value).__name__
        raise DataError(
            f"field {names.video_key!r} must be a list of videos, or one video; got a value of type {kind} in row "
            f"{number}"
        )
    return None


def _checked(form: DataJuicerRows | OneVideoRows, seen: Collection[str], names: FieldNames) -> RowForm:
    """The form, set to protect values that later rows have under the names of new fields."""
    written = names.written
    if isinstance(form, OneVideoRows):
        _check_one_video(form, seen, names)
        written = {form.caption_key: "caption_key", **written}
    guarded = tuple(name for name in written if name not in seen)
    return replace(form, names=replace(names, guarded=guarded))


def _check_one_video(form: OneVideoRows, seen: Collection[str], names: FieldNames) -> None:
    if form.column in names.written:
        raise DataError(
            f"captions or failures would overwrite the field {form.column!r} with the videos; choose another name"
        )
    if names.caption_key is None and CAPTIONS_FIELD in seen:
        raise DataError(
            f"the rows already have a field {CAPTIONS_FIELD!r}; choose another name with --caption-key (caption_key), "
            "or pass the same name to overwrite it"
        )
