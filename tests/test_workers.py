"""Many files to clips: order, bounds, and a clean end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clips
from reelscribe.errors import SettingsError
from reelscribe.record import CaptionRequest, Clip, Failure, RequestId, TimeWindow
from reelscribe.video import workers
from reelscribe.video.reader import ReadLimits
from reelscribe.video.sampling import FramePolicy
from reelscribe.video.workers import read_clips

POLICY = FramePolicy()


def request(row: int, video: Any, **settings: Any) -> CaptionRequest:
    return CaptionRequest(id=RequestId(row, 0), video=video, prompt="", **settings)


def fake_clip(frames: int = 2) -> Clip:
    return Clip(np.zeros((frames, 32, 32, 3), np.uint8), np.arange(frames, dtype=float), frames, 1.0, 32, 32)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """Reading waits until the test opens the video's gate."""
    doors: dict[str, threading.Event] = {name: threading.Event() for name in "abcdefghijklmnop"}

    def read(video: str, policy: FramePolicy, **settings: Any) -> Clip | Failure:
        assert doors[video].wait(30)
        return fake_clip()

    monkeypatch.setattr(workers, "read_clip", read)
    return doors


def counted(names: str, taken: list[str]) -> Iterator[CaptionRequest]:
    for row, name in enumerate(names):
        taken.append(name)
        yield request(row, name)


def open_all(gates: dict[str, threading.Event]) -> None:
    for gate in gates.values():
        gate.set()


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="threads have no priority of their own here")
def test_reading_stands_back_behind_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def read(video: str, policy: FramePolicy, **settings: Any) -> Clip:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return fake_clip()

    monkeypatch.setattr(workers, "read_clip", read)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    list(read_clips([request(0, "a"), request(1, "b")], POLICY))
    assert seen == [max(before, workers.READING_NICENESS)] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_clips_and_failures_come_in_the_order_of_the_requests(
    video: Callable[[str], Path], broken_video: Callable[[str], Path]
) -> None:
    paths = [video("hevc.mp4"), broken_video("text.mp4"), video("h264.mp4"), "gone.mp4", video("vp9.webm")]
    requests = [request(row, path) for row, path in enumerate(paths * 4)]
    results = list(read_clips(iter(requests), POLICY, workers=3))
    assert [result[0] for result in results] == requests
    kinds = [result.kind if isinstance(result, Failure) else "clip" for _, result in results]
    assert kinds == ["clip", "unreadable", "clip", "not_found", "clip"] * 4


def test_windows_limits_and_root_reach_the_reader(video: Callable[[str], Path]) -> None:
    path = video("h264.mp4")
    named = [request(0, path.name), request(1, path.name, window=TimeWindow(1.0, 1.9))]
    whole, part = (clip for _, clip in read_clips(named, POLICY, root=path.parent))
    assert isinstance(whole, Clip)
    assert isinstance(part, Clip)
    assert clips.numbers_of(whole.frames)[0] == 0
    assert clips.numbers_of(part.frames)[0] == 10
    [(_, refused)] = read_clips([request(0, path)], POLICY, limits=ReadLimits(max_bytes=10))
    assert isinstance(refused, Failure)
    assert refused.kind == "too_large"


def test_a_slow_first_video_does_not_change_the_order(gates: dict[str, threading.Event]) -> None:
    stream = read_clips(counted("abcd", []), POLICY, workers=2)
    gates["b"].set()
    threading.Timer(0.05, lambda: open_all(gates)).start()
    assert [request.video for request, _ in stream] == list("abcd")


def test_requests_are_taken_only_as_there_is_room(gates: dict[str, threading.Event]) -> None:
    open_all(gates)
    taken: list[str] = []
    stream = read_clips(counted("abcdefghijklmnop", taken), POLICY, workers=2)
    assert taken == []
    next(stream)
    assert len(taken) == 4
    next(stream)
    assert len(taken) == 5
    stream.close()
    assert len(taken) == 5


def test_waiting_pixels_are_bounded(gates: dict[str, threading.Event]) -> None:
    open_all(gates)
    one = fake_clip().nbytes
    taken: list[str] = []
    stream = read_clips(counted("abcdefghijklmnop", taken), POLICY, workers=8, max_bytes_in_flight=3 * one)
    next(stream)
    for _ in range(10):
        seen = len(taken)
        next(stream)
        assert len(taken) <= seen + 3
    stream.close()


def test_a_video_over_the_bound_is_still_read(gates: dict[str, threading.Event]) -> None:
    open_all(gates)
    stream = read_clips(counted("abc", []), POLICY, workers=2, max_bytes_in_flight=1)
    assert [request.video for request, _ in stream] == list("abc")


def test_requests_are_advanced_in_the_consumers_thread(gates: dict[str, threading.Event]) -> None:
    open_all(gates)
    threads: set[int] = set()

    def requests() -> Iterator[CaptionRequest]:
        for row, name in enumerate("abcdef"):
            threads.add(threading.get_ident())
            yield request(row, name)

    assert len(list(read_clips(requests(), POLICY, workers=3))) == 6
    assert threads == {threading.get_ident()}


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-clip")]


def test_closing_early_leaves_no_threads_and_drops_what_waits(gates: dict[str, threading.Event]) -> None:
    taken: list[str] = []
    stream = read_clips(counted("abcdefgh", taken), POLICY, workers=2)
    gates["a"].set()
    next(stream)
    assert reading_threads()
    threading.Timer(0.1, lambda: [gates[name].set() for name in "bc"]).start()
    stream.close()  # "d" waits behind closed gates: it is dropped, not read
    assert reading_threads() == []
    assert taken == list("abcd")


def test_requests_that_raise_end_the_stream_behind_what_they_gave(gates: dict[str, threading.Event]) -> None:
    open_all(gates)

    def requests() -> Iterator[CaptionRequest]:
        yield request(0, "a")
        yield request(1, "b")
        raise OSError("the data set is gone")

    stream = read_clips(requests(), POLICY, workers=2)
    assert [next(stream)[0].video, next(stream)[0].video] == ["a", "b"]
    with pytest.raises(OSError, match="the data set is gone"):
        next(stream)
    assert reading_threads() == []


def test_a_bug_in_reading_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(video: str, policy: FramePolicy, **settings: Any) -> Clip:
        raise ZeroDivisionError

    monkeypatch.setattr(workers, "read_clip", read)
    with pytest.raises(ZeroDivisionError):
        list(read_clips([request(0, "a")], POLICY))
    assert reading_threads() == []


def test_no_requests_give_no_clips() -> None:
    assert list(read_clips([], POLICY)) == []


@pytest.mark.parametrize("setting", [{"workers": 0}, {"workers": -1}, {"max_bytes_in_flight": 0}])
def test_settings_that_cannot_work_are_refused_at_once(setting: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(setting))):
        read_clips([], POLICY, **setting)
