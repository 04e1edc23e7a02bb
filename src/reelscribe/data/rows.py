"""The two forms a row can have, and how each goes to the operator and comes back. Pure functions over plain values.

`videos`: Data-Juicer's, with a text and a list of videos; rows go in as they are, and generated rows come out.
`video`: one video a row; the same row comes out, once, with its captions in a field of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..errors import DataError
from ..record import Failure, Sample, failure_to_dict
from ..text import DEFAULT_TOKENS, SpecialTokens, ordinary_text
from .base import NewFields
from .folder import IMAGE_SUFFIXES

VIDEO_COLUMN = "video"
"""Field looked for where the rows have no list of videos."""
CAPTIONS_FIELD = "captions"
"""Where captions go in the `video` form, unless `caption_key` says otherwise."""


class Outcome(Protocol):
    """What a form needs to know of what the operator made of a row."""

    @property
    def samples(self) -> list[Sample]:
        """Output rows."""

    @property
    def captions(self) -> list[list[str]]:
        """Captions of each generated row, in video order."""

    @property
    def finish_reasons(self) -> list[list[str]]:
        """Why each caption ended."""

    @property
    def failures(self) -> list[tuple[int, Failure]]:
        """(video index, failure)."""


@dataclass(frozen=True)
class FieldNames:
    """How the fields of a data set are called; plain values that travel to other processes."""

    text_key: str = "text"
    """The text."""
    video_key: str = "videos"
    """The list of videos, or the one video."""
    prompt_key: str | None = None
    """A row's own prompt."""
    window_keys: tuple[str, str] = ("start_seconds", "end_seconds")
    """A row's own time window."""
    caption_key: str | None = None
    """Where captions are written, besides the text."""
    failure_key: str | None = None
    """Where failures are written."""
    finish_reason_key: str | None = None
    """Where it is written why captions ended."""
    keep_original: bool = True
    """Whether rows without captions stay in the output."""
    tokens: SpecialTokens = DEFAULT_TOKENS
    """What is not ordinary text."""


class RowForm(Protocol):
    """One form of rows."""

    def wrap(self, row: Sample) -> Sample:
        """The row as the operator takes it."""

    def unwrap(self, row: Sample, outcome: Outcome) -> list[Sample]:
        """The rows that go to the output for it."""

    def videos(self, row: Sample) -> Sequence[Any]:
        """The values of its videos."""

    def new_fields(self) -> NewFields:
        """The fields that the output has besides those of the row."""


@dataclass(frozen=True)
class VideosForm:
    """A text and a list of videos (Data-Juicer's form)."""

    names: FieldNames
    """How the fields are called."""
    column: str
    """The field with the list."""

    def wrap(self, row: Sample) -> Sample:
        """The row itself."""
        return row

    def unwrap(self, row: Sample, outcome: Outcome) -> list[Sample]:  # noqa: ARG002
        """What the operator made of it."""
        return outcome.samples

    def videos(self, row: Sample) -> Sequence[Any]:
        """The list."""
        value = row.get(self.column)
        if value is None or isinstance(value, (list, tuple)):
            return value or []
        return [value]

    def new_fields(self) -> NewFields:
        """The text, and the fields asked for."""
        return _named({self.names.text_key: "text", self.names.caption_key: "captions"}, self.names)


@dataclass(frozen=True)
class VideoForm:
    """One video a row; its captions go to a field of their own."""

    names: FieldNames
    """How the fields are called."""
    column: str
    """The field with the video."""

    kinds: ClassVar[tuple[type, ...]] = (str, bytes, dict)

    @property
    def caption_key(self) -> str:
        """Where captions go."""
        return self.names.caption_key or CAPTIONS_FIELD

    def wrap(self, row: Sample) -> Sample:
        """The video as a list of one, the row's text as its original caption, and the fields that steer the run."""
        start, end = self.names.window_keys
        sample = {key: number_of(row[key]) for key in (start, end) if key in row}
        if self.names.prompt_key in row:
            sample[self.names.prompt_key] = row[self.names.prompt_key]
        text = row.get(self.names.text_key)
        sample[self.names.text_key] = ordinary_text(text, self.names.tokens) if isinstance(text, str) else ""
        sample[self.names.video_key] = list(self.videos(row))
        return sample

    def unwrap(self, row: Sample, outcome: Outcome) -> list[Sample]:
        """The row with its captions, or null if there are none; left out then if originals are not kept."""
        captions = [kept[0] for kept in outcome.captions] or None
        if captions is None and not self.names.keep_original:
            return []
        made = {**row, self.caption_key: captions}
        if self.names.finish_reason_key is not None:
            made[self.names.finish_reason_key] = [reasons[0] for reasons in outcome.finish_reasons] or None
        if self.names.failure_key is not None:
            made[self.names.failure_key] = _first_failure(outcome)
        return [made]

    def videos(self, row: Sample) -> Sequence[Any]:
        """The one video; none where the field is null or empty."""
        value = row.get(self.column)
        return [] if value is None or value == "" else [value]

    def new_fields(self) -> NewFields:
        """The captions, and the failure if asked for."""
        return _named({self.caption_key: "captions"}, self.names)


FORMS: dict[str, type[VideosForm] | type[VideoForm]] = {"videos": VideosForm, "video": VideoForm}
"""Name of a form to its class."""


def choose_form(rows: Iterable[Sample], names: FieldNames) -> RowForm:
    """The form of a data set, from its first row that tells.

    Args:
        rows: the rows, or the first of them; as few are read as needed.
        names: how the fields are called.

    Raises:
        DataError: no row has a field with videos, or the captions would overwrite a field.
    """
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
        form = _form_of(row, names)
        if form is not None:
            return _checked(form, row, names)
    if not seen or names.video_key in seen:
        return VideosForm(names, names.video_key)
    if VIDEO_COLUMN in seen:
        return VideoForm(names, VIDEO_COLUMN)
    raise DataError(
        f"no row has a field {names.video_key!r} or {VIDEO_COLUMN!r}; there are {', '.join(map(repr, seen))}"
        " (the option --video-key, or video_key, names the field)" + _hint(seen)
    )


def _hint(fields: Iterable[str]) -> str:
    """How still pictures of a tar shard are taken, where there are some."""
    has_images = any(f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES for name in fields)
    return "; still pictures are captioned with --allow-images (allow_images)" if has_images else ""


def _form_of(row: Sample, names: FieldNames) -> RowForm | None:
    """The form a row shows; None where its fields are missing or null."""
    value = row.get(names.video_key)
    if isinstance(value, (list, tuple)):
        return VideosForm(names, names.video_key)
    for column in (names.video_key, VIDEO_COLUMN):
        if isinstance(row.get(column), VideoForm.kinds):
            return VideoForm(names, column)
    if value is not None:
        kind = type(value).__name__
        raise DataError(f"field {names.video_key!r} must hold a list of videos, or a video; got a value of type {kind}")
    return None


def _checked(form: RowForm, row: Sample, names: FieldNames) -> RowForm:
    if not isinstance(form, VideoForm):
        return form
    if form.column in (names.caption_key, names.failure_key, names.finish_reason_key):
        raise DataError(f"captions or failures would replace the field {form.column!r} with the videos; name another")
    if names.caption_key is None and CAPTIONS_FIELD in row:
        raise DataError(
            f"the rows have a field {CAPTIONS_FIELD!r} already; name another with --caption-key (or caption_key), "
            "or that one to replace it"
        )
    return form


def _named(fields: dict[str | None, str], names: FieldNames) -> NewFields:
    """The fields that have a name, and those of reasons and failures if they have one."""
    all_fields = {**fields, names.finish_reason_key: "captions", names.failure_key: "failure"}
    return {key: kind for key, kind in all_fields.items() if key is not None}


def _first_failure(outcome: Outcome) -> Any:
    for video_index, failure in outcome.failures:
        return dict(failure_to_dict(failure, video_index=video_index))
    return None


def number_of(value: Any) -> Any:
    """Seconds that a format without numbers gave as a string; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
