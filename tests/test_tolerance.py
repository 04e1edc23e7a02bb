"""Cheaper frames near the wanted moments: bounds, order, and what is preferred."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.video.decode.timeline import Timeline
from reelscribe.video.decode.tolerance import cheapest_near


def timeline(count: int, *, keys: list[int], anchors: list[int], fps: float = 10.0) -> Timeline:
    seconds = np.arange(count) / fps
    return Timeline(seconds, np.arange(count), np.array(keys, np.int64), np.array(anchors, np.int64), fps, count / fps)


def near(line: Timeline, chosen: list[int], seconds: float) -> list[int]:
    return cheapest_near(line, np.array(chosen, np.int64), seconds=seconds).tolist()


LINE = timeline(40, keys=[0, 20], anchors=list(range(0, 40, 4)))


def test_no_tolerance_changes_nothing() -> None:
    assert near(LINE, [3, 17, 33], 0) == [3, 17, 33]


def test_key_frames_go_before_frames_that_others_refer_to() -> None:
    assert near(LINE, [3, 17, 33], 0.3) == [0, 20, 32]
    assert near(LINE, [3, 17, 33], 0.1) == [4, 16, 32]
    assert near(LINE, [2, 22], 0.1) == [2, 22], "none is near enough"


def test_the_earliest_of_those_is_the_one_that_needs_the_fewest_others() -> None:
    assert near(LINE, [13], 0.55) == [8]


def test_without_knowledge_of_the_frames_nothing_changes() -> None:
    assert near(timeline(9, keys=[], anchors=[]), [1, 5], 3.0) == [1, 5]


@given(
    st.integers(2, 60).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.sets(st.integers(0, count - 1)),
            st.sets(st.integers(0, count - 1)),
            st.sets(st.integers(0, count - 1), min_size=1),
            st.floats(0, 10),
        )
    )
)
def test_order_number_and_distance_hold(case: tuple[int, set[int], set[int], set[int], float]) -> None:
    count, keys, anchors, chosen, seconds = case
    line = timeline(count, keys=sorted(keys), anchors=sorted(keys | anchors))
    wanted = sorted(chosen)
    taken = near(line, wanted, seconds)
    assert len(taken) == len(wanted)
    assert taken == sorted(set(taken))
    assert all(abs(a - b) / 10 <= seconds + 1e-6 for a, b in zip(taken, wanted, strict=True))
