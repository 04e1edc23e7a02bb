"""Data-Juicer's form of rows: a text whose tokens refer to a list of videos; generated rows follow the original.

The only user of the text grammar (`text.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..types import BadRow, Candidate, Sample, TimeWindow
from .columns import NewFields
from .fields import FieldNames, first_failure
from .outcome import RowOutcome
from .slot import Slot, bad_sample
from .text import insert_captions, video_chunks
from .tokens import ordinary_text
from .windows import window_of


@dataclass(frozen=True)
class DataJuicerRows:
    """A text and a list of videos."""

    names: FieldNames
    """The field names."""
    column: str
    """The field with the list."""

    @property
    def caption_key(self) -> str | None:
        """The field for captions, in addition to the text."""
        return self.names.caption_key

    def slots(self, row: Sample, *, window: TimeWindow) -> tuple[Slot, ...]:
        """One per video that a token of the text refers to."""
        self.names.check_own_fields(row, self.videos(row))
        videos = videos_of(row.get(self.column))
        if not videos:
            return ()
        self.names.check_free(row)
        text = row.get(self.names.text_key)
        chunks = video_chunks(_as_text(text), num_videos=len(videos), tokens=self.names.tokens)
        originals = [
            original
            for chunk in chunks
            for original in [ordinary_text(chunk.text, self.names.tokens)] * chunk.num_videos
        ]
        if len(originals) > len(videos):
            raise bad_sample(
                f"the text holds {len(originals)} video tokens but the sample has {len(videos)} videos",
                video=len(videos),
            )
        prompt, keys = row.get(self.names.prompt_key) if self.names.prompt_key else None, self.names.window_keys
        return tuple(
            Slot(videos[i], text, original, prompt, window_of(row, keys, default=window, video_index=i))
            for i, original in enumerate(originals)
        )

    def place(self, row: Sample, outcome: RowOutcome) -> list[Sample]:
        """The original, if it is kept, and the generated rows; a row that was not captioned, as it came."""
        names = self.names
        if isinstance(row, BadRow) or names.own_fields(row):
            passed_on = names.passed_on(row, names.without_captions(self.caption_key, outcome.failures))
            return [passed_on] if names.keep_original else []
        made = [self._generated(row, candidates) for candidates in outcome.candidates]
        if names.keep_original:
            made.insert(0, self._with_fields(dict(row), candidates=None, failure=first_failure(outcome.failures)))
        return made

    def _generated(self, row: Sample, candidates: Sequence[Candidate]) -> Sample:
        sample = {name: _copied(value) for name, value in row.items()}
        text = _as_text(row.get(self.names.text_key))
        waiting = iter(candidates)
        sample[self.names.text_key] = "".join(
            insert_captions(chunk, [next(waiting).text for _ in range(chunk.num_videos)], self.names.tokens)
            for chunk in video_chunks(text, num_videos=len(candidates), tokens=self.names.tokens)
        )
        return self._with_fields(sample, candidates=candidates, failure=None)

    def _with_fields(self, sample: Sample, *, candidates: Sequence[Candidate] | None, failure: Any) -> Sample:
        def each(value: Callable[[Candidate], Any]) -> list[Any] | None:
            return None if candidates is None else [value(one) for one in candidates]

        values = {
            self.caption_key: each(lambda one: one.text),
            self.names.finish_reason_key: each(lambda one: one.finish_reason),
            self.names.reasoning_key: each(lambda one: one.reasoning or None),
            self.names.failure_key: failure,
        }
        for key, value in values.items():
            if key is not None and self.names.may_write(key, sample):
                sample[key] = value
        return sample

    def videos(self, row: Sample) -> Sequence[Any]:
        """The list of videos."""
        value = row.get(self.column)
        if value is None or isinstance(value, (list, tuple)):
            return value or []
        return [value]

    def new_fields(self) -> NewFields:
        """The text, and the requested fields."""
        return self.names.new_fields({self.names.text_key: "text", self.caption_key: "captions"})


def videos_of(value: Any) -> list[Any]:
    """The videos of a row: none, a single bare one, or a sequence; invalid values are left for the reader to reject."""
    if value is None:
        return []
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _copied(value: Any) -> Any:
    """A copy with new lists and dicts; the leaf values are shared."""
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value
