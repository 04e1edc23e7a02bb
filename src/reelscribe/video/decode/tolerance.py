"""Frames near the requested moments that are cheaper to decode. Pure functions over a timeline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .timeline import Timeline

Positions = NDArray[np.int64]


def cheapest_near(timeline: Timeline, chosen: Positions, *, seconds: float) -> Positions:
    """For each chosen frame the one within `seconds` of it that is cheapest to decode.

    A key frame needs no other frame; the nearest one is taken. Else a frame that others refer to (a player would decode
    it anyway): the earliest, which needs the fewest before it. Each frame stays between the midpoints of the gaps to
    its neighbours, so that order and number are kept.

    Args:
        timeline: all frames of the file.
        chosen: positions `[n]`, ascending, unique.
        seconds: the tolerance; 0 changes nothing.

    Returns:
        Positions `[n]`, ascending, unique.
    """
    if seconds <= 0 or len(chosen) < 1:
        return chosen
    low, high = _bounds(timeline.seconds, chosen, seconds)
    keys = _pick(timeline.keys, chosen, low, high, prefer=_nearest)
    anchors = _pick(timeline.anchors, chosen, low, high, prefer=_earliest)
    near: Positions = np.where(keys >= 0, keys, np.where(anchors >= 0, anchors, chosen))
    return near


def _bounds(times: NDArray[np.float64], chosen: Positions, seconds: float) -> tuple[Positions, Positions]:
    """First and last position that may replace each chosen one, both included."""
    slack = seconds + 1e-9
    low = np.searchsorted(times, times[chosen] - slack, side="left")
    high = np.searchsorted(times, times[chosen] + slack, side="right") - 1
    middles = (chosen[:-1] + chosen[1:]) // 2
    low[1:] = np.maximum(low[1:], middles + 1)
    high[:-1] = np.minimum(high[:-1], middles)
    return low, high


Prefer = Callable[[Positions, int], int]


def _pick(candidates: Positions, chosen: Positions, low: Positions, high: Positions, *, prefer: Prefer) -> Positions:
    """For each chosen position a candidate within its bounds, -1 if there is none."""
    first = np.searchsorted(candidates, low, side="left")
    end = np.searchsorted(candidates, high, side="right")
    picks = [
        prefer(candidates[a:b], int(position)) if a < b else -1
        for position, a, b in zip(chosen, first, end, strict=True)
    ]
    return np.array(picks, np.int64)


def _nearest(candidates: Positions, position: int) -> int:
    return int(candidates[np.abs(candidates - position).argmin()])


def _earliest(candidates: Positions, _position: int) -> int:
    return int(candidates[0])
