"""The forms that rows can have: what is asked about a row, and where its captions go. Pure functions over plain values.

Adding a form is a class with the methods of `RowForm`, and its place in `choose_form`.
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
"""Field looked for where the rows have no list of videos."""


class RowForm(Protocol):
    """One form of rows."""

    @property
    def names(self) -> FieldNames:
        """How the fields are called."""

    @property
    def column(self) -> str:
        """The field with the videos."""

    @property
    def caption_key(self) -> str | None:
        """The field that gets captions as a list; None: none does."""

    def slots(self, row: Sample, *, window: TimeWindow) -> Sequence[Slot]:
        """The videos of a row that are asked about, in order.

        Args:
            row: as it came; it is not changed.
            window: the part of a video to look at where the row does not say.

        Raises:
            RefusedRowError: nothing is asked about the row.
            SettingsError: a time window of the row is none.
        """

    def place(self, row: Sample, outcome: RowOutcome) -> list[Sample]:
        """The rows that go to the output for a row."""

    def videos(self, row: Sample) -> Sequence[Any]:
        """The values of its videos."""

    def new_fields(self) -> NewFields:
        """The fields that the output has besides those of the row."""


def choose_form(
    rows: Iterable[Sample], names: FieldNames, *, hint: Callable[[Iterable[str]], str] = lambda _fields: ""
) -> RowForm:
    """The form of a data set, from its first row that tells.

    Args:
        rows: the rows, or the first of them; as few are read as needed.
        names: how the fields are called.
        hint: from the fields of rows without a video, what the error should say besides.

    Raises:
        DataError: no row has a field with videos, or the captions would overwrite a field.
    """
    seen: dict[str, None] = {}
    wrong: DataError | None = None
    for number, row in enumerate(rows):
        seen.update(dict.fromkeys(row))
        try:
            form = _form_of(row, names, number)
        except DataError as exc:  # a row that does not fit fails alone where another one does
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
        f"no row has a field {names.video_key!r} or {VIDEO_COLUMN!r}; there are {', '.join(map(repr, seen))}"
        " (the option --video-key, or video_key, names the field)" + hint(seen)
    )


def _form_of(row: Sample, names: FieldNames, number: int) -> DataJuicerRows | OneVideoRows | None:
    """The form a row shows; None where its fields are missing or null."""
    value = row.get(names.video_key)
    if isinstance(value, (list, tuple)):
        return DataJuicerRows(names, names.video_key)
    for column in (names.video_key, VIDEO_COLUMN):
        if isinstance(row.get(column), OneVideoRows.kinds):
            return OneVideoRows(names, column)
    if value is not None:
        kind = type(value).__name__
        raise DataError(
            f"field {names.video_key!r} must hold a list of videos, or a video; got a value of type {kind} in row "
            f"{number}"
        )
    return None


def _checked(form: DataJuicerRows | OneVideoRows, seen: Collection[str], names: FieldNames) -> RowForm:
    """The form, which keeps what later rows have under the names of new fields."""
    written = names.written
    if isinstance(form, OneVideoRows):
        _check_one_video(form, seen, names)
        written = {form.caption_key: "caption_key", **written}
    guarded = tuple(name for name in written if name not in seen)
    return replace(form, names=replace(names, guarded=guarded))


def _check_one_video(form: OneVideoRows, seen: Collection[str], names: FieldNames) -> None:
    if form.column in names.written:
        raise DataError(f"captions or failures would replace the field {form.column!r} with the videos; name another")
    if names.caption_key is None and CAPTIONS_FIELD in seen:
        raise DataError(
            f"the rows have a field {CAPTIONS_FIELD!r} already; name another with --caption-key (or caption_key), "
            "or that one to replace it"
        )
