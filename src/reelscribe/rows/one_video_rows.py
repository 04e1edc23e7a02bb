"""The form of rows with one video each: the output is the same row once, with its captions in a separate field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..types import Sample, TimeWindow
from .columns import NewFields
from .fields import FieldNames
from .outcome import RowOutcome
from .slot import Slot
from .tokens import ordinary_text
from .windows import number_of, window_of

CAPTIONS_FIELD = "captions"
"""Field for captions, unless `caption_key` is set."""


@dataclass(frozen=True)
class OneVideoRows:
    """One video per row."""

    names: FieldNames
    """The field names."""
    column: str
    """The field with the video."""

    kinds: ClassVar[tuple[type, ...]] = (str, bytes, dict)

    @property
    def caption_key(self) -> str:
        """The field for captions."""
        return self.names.caption_key or CAPTIONS_FIELD

    def slots(self, row: Sample, *, window: TimeWindow) -> tuple[Slot, ...]:
        """One for the video; the row's text is its original caption."""
        videos = self.videos(row)
        self.names.check_own_fields(row, videos)
        if not videos:
            return ()
        keys, prompt_key, text_key = self.names.window_keys, self.names.prompt_key, self.names.text_key
        steering: dict[Any, Any] = {key: number_of(row[key]) for key in keys if key in row}
        if prompt_key in row:
            steering[prompt_key] = row[prompt_key]
        self.names.check_free(steering)
        text = row.get(text_key)
        original = ordinary_text(text, self.names.tokens) if isinstance(text, str) else ""
        asked = {**steering, text_key: original, self.names.video_key: videos}
        return (Slot(videos[0], original, original, asked.get(prompt_key), window_of(steering, keys, default=window)),)

    def place(self, row: Sample, outcome: RowOutcome) -> list[Sample]:
        """The row with its captions, or null if there are none; such a row is dropped if originals are not kept."""
        names, first = self.names, [candidates[0] for candidates in outcome.candidates]
        if not first and not names.keep_original:
            return []
        new = names.without_captions(self.caption_key, outcome.failures)
        if first:
            new[self.caption_key] = [one.text for one in first]
        if first and names.finish_reason_key is not None:
            new[names.finish_reason_key] = [one.finish_reason for one in first]
        if first and names.reasoning_key is not None:
            new[names.reasoning_key] = [one.reasoning or None for one in first]
        return [names.passed_on(row, new)]

    def videos(self, row: Sample) -> Sequence[Any]:
        """The video; nothing if the field is null or empty."""
        value = row.get(self.column)
        return [] if value is None or value == "" else [value]

    def new_fields(self) -> NewFields:
        """The captions, and the failure if requested."""
        return self.names.new_fields({self.caption_key: "captions"})
