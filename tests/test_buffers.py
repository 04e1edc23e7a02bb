"""Memory that clips leave serves the next ones, and is never in two clips at once."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from clips import render_video
from reelscribe.types import Clip
from reelscribe.video.decode.buffers import FrameBuffers
from reelscribe.video.frames.policy import FramePolicy
from reelscribe.video.reader import read_clip

SHAPE = (4, 8, 8, 3)
NBYTES = 4 * 8 * 8 * 3


def place(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_nothing_refers_to_it() -> None:
    buffers = FrameBuffers()
    first = buffers.empty(SHAPE)
    at, part = place(first), first[1:]
    del first
    gc.collect()
    assert buffers.idle_bytes == 0, "a part of the array still uses it"
    other = buffers.empty(SHAPE)
    assert place(other) != at
    del part
    gc.collect()
    assert buffers.idle_bytes == NBYTES
    again = buffers.empty(SHAPE)
    assert place(again) == at
    assert (again.shape, again.dtype, again.flags.writeable, again.flags.c_contiguous) == (SHAPE, np.uint8, True, True)
    assert buffers.idle_bytes == 0


@pytest.mark.parametrize(("wanted", "is_used"), [(NBYTES, True), (700, True), (NBYTES // 2, False), (800, False)])
def test_a_block_serves_what_nearly_fills_it(wanted: int, is_used: bool) -> None:
    buffers = FrameBuffers()
    array = buffers.empty(SHAPE)
    at = place(array)
    del array
    gc.collect()
    assert (place(buffers.empty((wanted,))) == at) is is_used


def test_no_more_is_kept_than_allowed() -> None:
    buffers = FrameBuffers(max_idle_bytes=2 * NBYTES)
    arrays = [buffers.empty(SHAPE) for _ in range(5)]
    del arrays
    gc.collect()
    assert 0 < buffers.idle_bytes <= 2 * NBYTES
    large = buffers.empty((3 * NBYTES,))
    del large
    gc.collect()
    assert buffers.idle_bytes <= 2 * NBYTES


def test_threads_never_share_a_block() -> None:
    buffers, wrong = FrameBuffers(), list[int]()

    def use(value: int) -> None:
        for _ in range(300):
            array = buffers.empty(SHAPE)
            array[...] = value
            if (array != value).any():
                wrong.append(value)
            del array

    threads = [threading.Thread(target=use, args=(value,)) for value in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_clip_keeps_its_frames_while_others_are_read(tmp_path: Path) -> None:
    paths = [render_video(tmp_path / f"{count}.mp4", count=count) for count in (8, 12, 10, 8)]
    policy = FramePolicy(fps=2.0)
    kept = read_clip(paths[0], policy)
    assert isinstance(kept, Clip)
    before = kept.frames.copy()
    for path in paths[1:] * 3:
        assert isinstance(read_clip(path, policy), Clip)
    assert (kept.frames == before).all()
