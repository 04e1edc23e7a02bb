"""How the fields of rows are called, and which of them a run may write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import BadRow, Failure, Sample, failure_to_dict
from .columns import NewFields
from .slot import bad_sample
from .tokens import DEFAULT_TOKENS, SpecialTokens

FAILURE_FIELDS = {"kind", "message", "video_index"}
"""Fields of a failure in a row."""


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

    def new_fields(self, fields: Mapping[str | None, str]) -> NewFields:
        """The given fields that have a name, and those of reasons and failures if they have one."""
        all_fields = {
            **fields,
            self.finish_reason_key: "captions",
            self.reasoning_key: "captions",
            self.failure_key: "failure",
        }
        return {key: kind for key, kind in all_fields.items() if key is not None}

    def own_fields(self, row: Sample) -> list[str]:
        """Fields of a row that would be replaced although they hold something of the user's."""
        return [name for name in self.guarded if row.get(name) is not None]

    def check_own_fields(self, row: Sample, videos: Sequence[Any]) -> None:
        """Refuse a row with videos that has a field of its own where the run writes.

        Raises:
            RefusedRowError: naming the field.
        """
        own = self.own_fields(row)
        if not own or not videos:
            return
        option = self.written.get(own[0], "caption_key")
        raise bad_sample(
            f"the row has a field {own[0]!r} of its own, which the first row lacks, and which would be replaced; name "
            f"another with --{option.replace('_', '-')} ({option})"
        )

    def check_free(self, row: Sample) -> None:
        """Refuse a row that holds a value where the run writes.

        Raises:
            RefusedRowError: naming the field.
        """
        for key, option in self.written.items():
            if not self.may_write(key, row):
                raise bad_sample(
                    f"the row has a value in its field {key!r}, which this run would replace; give {option} another "
                    "name"
                )

    def may_write(self, key: str, row: Sample) -> bool:
        """Whether a field holds nothing of the row's own: nothing at all, or the failure of an earlier run."""
        value = row.get(key)
        if value is None or (isinstance(value, (str, list, dict)) and not value):
            return True
        if isinstance(value, float) and math.isnan(value):  # how pandas writes null
            return True
        return key == self.failure_key and isinstance(value, Mapping) and value.keys() == FAILURE_FIELDS

    def without_captions(self, caption_key: str | None, failures: Sequence[tuple[int, Failure]]) -> Sample:
        """The fields that a row without captions gets, in their order."""
        new: Sample = {} if caption_key is None else {caption_key: None}
        if self.finish_reason_key is not None:
            new[self.finish_reason_key] = None
        if self.reasoning_key is not None:
            new[self.reasoning_key] = None
        if self.failure_key is not None:
            new[self.failure_key] = first_failure(failures)
        return new

    def passed_on(self, row: Sample, new: Sample) -> Sample:
        """A row as it came, with new fields where it has none of its own."""
        own = self.own_fields(row)
        added = {name: value for name, value in new.items() if name not in own}
        if not isinstance(row, BadRow):
            return {**row, **added}
        return row.with_fields({name: value for name, value in added.items() if row.get(name) is None})


def first_failure(failures: Sequence[tuple[int, Failure]]) -> Any:
    """The plain form of the first of a row's failures; None: there is none."""
    return dict(failure_to_dict(failures[0][1], video_index=failures[0][0])) if failures else None
