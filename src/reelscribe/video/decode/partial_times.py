"""Frame times that a file gives partially, or twice. Pure functions over ticks; nothing is opened here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]
Moments = NDArray[np.float64]

LAST_STEPS = 5
"""Frames at the end of a file whose distance is used as the unknown length of the last one."""


def apart(ticks: Ticks) -> Moments:
    """Move equal times apart by a fraction of a frame; all others are kept.

    Frames with one time share the interval to the next frame, or a usual frame's length if that is shorter: a picture
    of zero length may be followed by one that stays for a minute.
    """
    moments: Moments = ticks.astype(np.float64)
    steps = np.diff(ticks)
    if len(ticks) < 2 or steps.all():
        return moments
    usual = float(np.median(steps[steps > 0])) if steps.any() else 1.0
    first = np.flatnonzero(np.concatenate([[True], steps > 0]))
    count = np.diff(np.concatenate([first, [len(ticks)]]))
    way = np.minimum(np.diff(np.concatenate([ticks[first], [ticks[-1] + usual]])), usual)
    turn = np.arange(len(ticks)) - np.repeat(first, count)
    return moments + turn * np.repeat(way / count, count)


def filled(times: Sequence[int | None], *, step: float) -> Ticks | None:
    """Times of frames in display order; those that are missing, or contradict most others, come from their neighbours.

    Args:
        times: in ticks.
        step: usual distance of two frames in ticks, used outside the known times.

    Returns:
        int64 `[N]`, ascending, perhaps with equal ones; None if no time is known.
    """
    known = np.array(longest_ascent(times), np.int64)
    if not len(known):
        return None
    ticks = np.array([times[index] for index in known], np.int64)
    places = np.arange(len(times))
    between = np.interp(places, known, ticks)
    outside = np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0)
    found: Ticks = np.round(between + outside * step).astype(np.int64)
    return found


def longest_ascent(times: Sequence[int | None]) -> list[int]:
    """Positions of the most known times that never go back (patience sorting)."""
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, time in enumerate(times):
        if time is None:
            before.append(-1)
            continue
        length = bisect_right(ends, time)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1] = [time]
        last[length : length + 1] = [index]
    ascent = []
    at = last[-1] if last else -1
    while at >= 0:
        ascent.append(at)
        at = before[at]
    return ascent[::-1]


def last_step(moments: Moments) -> float:
    """How far apart the last frames are, of at least two."""
    return float(np.median(np.diff(moments[-1 - LAST_STEPS :])))
