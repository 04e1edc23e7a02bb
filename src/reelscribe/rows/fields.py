"""Names of the fields of rows, and which of them a run may write."""

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
    """Field names of a data set; plain values that can be sent to other processes."""

    text_key: str = "text"
    """The text."""
    video_key: str = "videos"
    """The list of videos, or the single video."""
    prompt_key: str | None = None
    """A row's own prompt."""
    window_keys: tuple[str, str] = ("start_seconds", "end_seconds")
    """A row's own time window."""
    caption_key: str | None = None
    """Field for captions, in addition to the text."""
    failure_key: str | None = None
    """Field for failures."""
    finish_reason_key: str | None = None
    """Field for why captions ended."""
    reasoning_key: str | None = None
    """Field for the reasoning before captions."""
    keep_original: bool = True
    """Whether rows without captions stay in the output."""
    tokens: SpecialTokens = DEFAULT_TOKENS
    """The special tokens of the text."""
    guarded: tuple[str, ...] = field(default=(), compare=False)
    """Fields that the run writes and the first rows lack: if a later row has one, it is the user's own."""

    @property
    def written(self) -> dict[str, str]:
        """Fields for captions, failures and reasons that have a name, and the parameter that sets each."""
        names = {
            self.caption_key: "caption_key",
            self.failure_key: "failure_key",
            self.finish_reason_key: "finish_reason_key",
            self.reasoning_key: "reasoning_key",
        }
        return {name: parameter for name, parameter in names.items() if name is not None}

    def new_fields(self, fields: Mapping[str | None, str]) -> NewFields:
        """The given fields that have a name, and those for reasons and failures if they have one."""
        all_fields = {
            **fields,
            self.finish_reason_key: "captions",
            self.reasoning_key: "captions",
            self.failure_key: "failure",
        }
        return {key: kind for key, kind in all_fields.items() if key is not None}

    def own_fields(self, row: Sample) -> list[str]:
        """Fields of a row that would be overwritten although they hold the user's own values."""
        return [name for name in self.guarded if row.get(name) is not None]

    def check_own_fields(self, row: Sample, videos: Sequence[Any]) -> None:
        """Reject a row with videos that has its own field under a name the run writes.

        Raises:
            RefusedRowError: names the field.
        """
        own = self.own_fields(row)
        if not own or not videos:
            return
        option = self.written.get(own[0], "caption_key")
        raise bad_sample(
            f"the row already has a field {own[0]!r}, which the first row lacks and which would be overwritten; choose "
            f"another name with --{option.replace('_', '-')} ({option})"
        )

    def check_free(self, row: Sample) -> None:
        """Reject a row that has a value in a field the run writes.

        Raises:
            RefusedRowError: names the field.
        """
        for key, option in self.written.items():
            if not self.may_write(key, row):
                raise bad_sample(
                    f"the row has a value in its field {key!r}, which this run would overwrite; set {option} to "
                    "another name"
                )

    def may_write(self, key: str, row: Sample) -> bool:
        """Whether a field holds no value of the row's own: nothing, or the failure of an earlier run."""
        value = row.get(key)
        if value is None or (isinstance(value, (str, list, dict)) and not value):
            return True
        if isinstance(value, float) and math.isnan(value):  # how pandas writes null
            return True
        return key == self.failure_key and isinstance(value, Mapping) and value.keys() == FAILURE_FIELDS

    def without_captions(self, caption_key: str | None, failures: Sequence[tuple[int, Failure]]) -> Sample:
        """The new fields of a row without captions, in order."""
        new: Sample = {} if caption_key is None else {caption_key: None}
        if self.finish_reason_key is not None:
            new[self.finish_reason_key] = None
        if self.reasoning_key is not None:
            new[self.reasoning_key] = None
        if self.failure_key is not None:
            new[self.failure_key] = first_failure(failures)
        return new

    def passed_on(self, row: Sample, new: Sample) -> Sample:
        """A row as it came, plus the new fields that it does not have itself."""
        own = self.own_fields(row)
        added = {name: value for name, value in new.items() if name not in own}
        if not isinstance(row, BadRow):
            return {**row, **added}
        return row.with_fields({name: value for name, value in added.items() if row.get(name) is None})


def first_failure(failures: Sequence[tuple[int, Failure]]) -> Any:
    """A row's first failure as plain values; None: there is none."""
    return dict(failure_to_dict(failures[0][1], video_index=failures[0][0])) if failures else None
