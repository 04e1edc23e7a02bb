"""The part of a video that a row is about, from the row's fields."""

from __future__ import annotations

import reprlib
from typing import Any

from ..errors import SettingsError
from ..types import Sample, TimeWindow


def window_of(sample: Sample, window_keys: tuple[str, str], *, default: TimeWindow, video_index: int = 0) -> TimeWindow:
    """The part of a video that a row is about.

    Args:
        sample: the row; its own start and end take precedence.
        window_keys: the fields with its start and end.
        default: used where the row sets none.
        video_index: index of the video, for fields that are lists.

    Raises:
        SettingsError: a field is not in seconds, or the window ends before it starts.
    """
    start, end = (_seconds(sample, key, video_index) for key in window_keys)
    return TimeWindow(default.start_seconds if start is None else start, default.end_seconds if end is None else end)


def has_own_window(sample: Sample, window_keys: tuple[str, str]) -> bool:
    """Whether a row has its own time window."""
    return any(_seconds(sample, key, 0) is not None for key in window_keys)


def number_of(value: Any) -> Any:
    """Parse seconds that a format without numbers returned as a string; other values are unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _seconds(sample: Sample, key: str, video_index: int) -> float | None:
    value: Any = sample.get(key)
    if value is not None and hasattr(value, "tolist"):  # a NumPy scalar or array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        value = value[video_index] if video_index < len(value) else None
    if value is None or value != value:  # NaN is how pandas writes null
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise SettingsError(f"field {key!r} must be seconds (0 or more) or null; got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise SettingsError(f"field {key!r} must be seconds; got {_shown(value)}") from None


def _digits(value: int) -> int:
    """Approximate number of digits of an integer; formatting a long one takes quadratic time."""
    return int(value.bit_length() * 0.30103) + 1


def _shown(value: Any) -> str:
    """A value as one short line for a message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {_digits(value)} digits"
    return reprlib.repr(value)
