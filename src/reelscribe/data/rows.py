"""The two forms a row can have, and how each goes to the operator and comes back. Pure functions over plain values.

`videos`: Data-Juicer's, with a text and a list of videos; rows go in as they are, and generated rows come out.
`video`: one video a row; the same row comes out, once, with its captions in a field of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from ..errors import DataError
from ..rows.text import DEFAULT_TOKENS, SpecialTokens, ordinary_text
from ..types import BadRow, Failure, Sample, failure_to_dict
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
    def reasonings(self) -> list[list[str | None]]:
        """The reasoning before each caption."""

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
    reasoning_key: str | None = None
    """Where the reasoning before captions is written."""
    keep_original: bool = True
    """Whether rows without captions stay in the output."""
    tokens: SpecialTokens = DEFAULT_TOKENS
    """What is not ordinary text."""
    guarded: tuple[str, ...] = field(default=(), compare=False)
    """Fields that the run writes and that the first rows do not have: where a later row has one, it is the user's."""

    @property
    def written(self) -> dict[str, str]:
        """Fields of captions, failures and reasons that have a name, and the parameter that names each."""
        names = {
            self.caption_key: "caption_key",
            self.failure_key: "failure_key",
            self.finish_reason_key: "finish_reason_key",
            self.reasoning_key: "reasoning_key",
        }
        return {name: parameter for name, parameter in names.items() if name is not None}

    def own_fields(self, row: Sample) -> list[str]:
        """Fields of a row that would be replaced although they hold something of the user's."""
        return [name for name in self.guarded if row.get(name) is not None]

    def refused(self, row: Sample, videos: Sequence[Any]) -> BadRow | None:
        """Why a row with these videos is not asked about; None: it is."""
        if isinstance(row, BadRow):
            return row.without_fields()
        own = self.own_fields(row)
        if not own or not videos:
            return None
        option = self.written.get(own[0], "caption_key")
        message = (
            f"the row has a field {own[0]!r} of its own, which the first row lacks, and which would be replaced; name "
            f"another with --{option.replace('_', '-')} ({option})"
        )
        return BadRow({}, failure=Failure("bad_sample", message))

    def passed_on(self, row: Sample, new: Sample) -> Sample:
        """A row as it came, with new fields where it has none of its own."""
        own = self.own_fields(row)
        added = {name: value for name, value in new.items() if name not in own}
        if not isinstance(row, BadRow):
            return {**row, **added}
        return row.with_fields({name: value for name, value in added.items() if row.get(name) is None})


class RowForm(Protocol):
    """One form of rows."""

    @property
    def names(self) -> FieldNames:
        """How the fields are called."""

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
        refused = self.names.refused(row, self.videos(row))
        return row if refused is None else refused

    def unwrap(self, row: Sample, outcome: Outcome) -> list[Sample]:
        """What the operator made of it; what it was not asked about, as it came."""
        if not isinstance(row, BadRow) and not self.names.own_fields(row):
            return outcome.samples
        if not self.names.keep_original:
            return []
        return [self.names.passed_on(row, _extra_fields(self.names, outcome, self.names.caption_key))]

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
        refused = self.names.refused(row, self.videos(row))
        if refused is not None:
            return refused
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
        new = {**_extra_fields(self.names, outcome, self.caption_key), self.caption_key: captions}
        if self.names.finish_reason_key is not None:
            new[self.names.finish_reason_key] = [reasons[0] for reasons in outcome.finish_reasons] or None
        if self.names.reasoning_key is not None:
            new[self.names.reasoning_key] = [reasoning[0] for reasoning in outcome.reasonings] or None
        return [self.names.passed_on(row, new)]

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
        return _checked(VideosForm(names, names.video_key), seen, names)
    if VIDEO_COLUMN in seen:
        return _checked(VideoForm(names, VIDEO_COLUMN), seen, names)
    raise DataError(
        f"no row has a field {names.video_key!r} or {VIDEO_COLUMN!r}; there are {', '.join(map(repr, seen))}"
        " (the option --video-key, or video_key, names the field)" + _hint(seen)
    )


def _hint(fields: Iterable[str]) -> str:
    """How still pictures of a tar shard are taken, where there are some."""
    has_images = any(f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES for name in fields)
    return "; still pictures are captioned with --allow-images (allow_images)" if has_images else ""


def _form_of(row: Sample, names: FieldNames, number: int) -> VideosForm | VideoForm | None:
    """The form a row shows; None where its fields are missing or null."""
    value = row.get(names.video_key)
    if isinstance(value, (list, tuple)):
        return VideosForm(names, names.video_key)
    for column in (names.video_key, VIDEO_COLUMN):
        if isinstance(row.get(column), VideoForm.kinds):
            return VideoForm(names, column)
    if value is not None:
        kind = type(value).__name__
        raise DataError(
            f"field {names.video_key!r} must hold a list of videos, or a video; got a value of type {kind} in row "
            f"{number}"
        )
    return None


def _checked(form: VideosForm | VideoForm, seen: Collection[str], names: FieldNames) -> RowForm:
    """The form, which keeps what later rows have under the names of new fields."""
    written = names.written
    if isinstance(form, VideoForm):
        _check_video_form(form, seen, names)
        written = {form.caption_key: "caption_key", **written}
    guarded = tuple(name for name in written if name not in seen)
    return replace(form, names=replace(names, guarded=guarded))


def _check_video_form(form: VideoForm, seen: Collection[str], names: FieldNames) -> None:
    if form.column in names.written:
        raise DataError(f"captions or failures would replace the field {form.column!r} with the videos; name another")
    if names.caption_key is None and CAPTIONS_FIELD in seen:
        raise DataError(
            f"the rows have a field {CAPTIONS_FIELD!r} already; name another with --caption-key (or caption_key), "
            "or that one to replace it"
        )


def _named(fields: dict[str | None, str], names: FieldNames) -> NewFields:
    """The fields that have a name, and those of reasons and failures if they have one."""
    all_fields = {
        **fields,
        names.finish_reason_key: "captions",
        names.reasoning_key: "captions",
        names.failure_key: "failure",
    }
    return {key: kind for key, kind in all_fields.items() if key is not None}


def _extra_fields(names: FieldNames, outcome: Outcome, caption_key: str | None) -> Sample:
    """The fields that a row without captions gets, in their order."""
    new: Sample = {} if caption_key is None else {caption_key: None}
    if names.finish_reason_key is not None:
        new[names.finish_reason_key] = None
    if names.reasoning_key is not None:
        new[names.reasoning_key] = None
    if names.failure_key is not None:
        new[names.failure_key] = _first_failure(outcome)
    return new


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
