"""A house full of bad videos among a thousand good rows: each bad one fails as it should, and no good one notices."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import zoo
from reelscribe.types import CaptionRequest, Clip, Failure, RequestId, TimeWindow
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.processes.clip_stream import ClipStream
from reelscribe.video.processes.pool import WorkerPool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="videos are read on Linux and macOS")

POLICY = FramePolicy()
LIMITS = ReadLimits(max_source_pixels=zoo.MAX_PIXELS, max_read_seconds=20)
GOOD_CLIPS = ("h264.mp4", "hevc.mkv", "vp9.webm", "av1.mp4", "mpeg2.ts", "mjpeg.avi", "colours.gif", "raw.h264")
GOOD_ROWS = 1000

Rows = dict[int, Clip | Failure]


def digest(clip: Clip | Failure) -> str:
    assert isinstance(clip, Clip), clip
    return hashlib.sha256(clip.frames.tobytes() + clip.pts_seconds.tobytes()).hexdigest()


def read(pool: WorkerPool, requests: list[CaptionRequest]) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    return ClipStream(pool, requests, POLICY, limits=LIMITS)


@pytest.fixture(scope="module")
def good(video: Callable[[str], Path]) -> list[CaptionRequest]:
    """A thousand rows, all different: eight clips with windows of their own, so that each is really read."""
    requests = []
    for row in range(GOOD_ROWS):
        path = video(GOOD_CLIPS[row % len(GOOD_CLIPS)])
        window = TimeWindow(0.0, 0.5 + row * 1e-3)
        requests.append(CaptionRequest(RequestId(row, 0), str(path), "", window=window))
    return requests


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionRequest]:
    """The bad videos; their prompts are their names."""
    housed = zoo.housed(tmp_path_factory.mktemp("zoo"))
    return [CaptionRequest(RequestId(10_000 + row, 0), one, name) for row, (name, one) in enumerate(housed.items())]


@pytest.fixture(scope="module")
def outcome(good: list[CaptionRequest], animals: list[CaptionRequest]) -> tuple[dict[int, str], dict[str, Any], float]:
    """What became of the good rows, of the bad ones by name, and the longest time between two answers."""
    every = GOOD_ROWS // len(animals)
    mixed = [one for n, bad in enumerate(animals) for one in (*good[n * every : (n + 1) * every], bad)]
    mixed += good[len(animals) * every :]
    pixels: dict[int, str] = {}
    bad: dict[str, Any] = {}
    pool = WorkerPool(2)
    slowest, before = 0.0, time.monotonic()
    for request, made in read(pool, mixed):
        if request.prompt:
            bad[request.prompt] = made
        else:
            pixels[request.id.row] = digest(made)
        slowest, before = max(slowest, time.monotonic() - before), time.monotonic()
    pool.close()
    return pixels, bad, slowest


def test_the_zoo_is_large() -> None:
    assert len(zoo.ZOO) >= 100


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_bad_video_ends_as_it_should(outcome: tuple[Any, dict[str, Any], float], name: str) -> None:
    made = outcome[1][name]
    assert (made.kind if isinstance(made, Failure) else zoo.GOOD) == zoo.ZOO[name].kind, made
    if isinstance(made, Failure):
        assert made.message.isprintable()
        assert len(made.message) < 300


@pytest.mark.parametrize("name", [name for name, animal in zoo.ZOO.items() if animal.kind is zoo.GOOD])
def test_an_odd_video_that_can_be_read_has_its_own_times(outcome: tuple[Any, dict[str, Any], float], name: str) -> None:
    clip, shown = outcome[1][name], zoo.ZOO[name].shown
    assert len(clip.pts_seconds) == shown.frames
    assert clip.pts_seconds[0] == 0
    assert clip.pts_seconds[-1] == pytest.approx(shown.last_seconds, abs=1e-3)
    assert clip.duration_seconds == pytest.approx(shown.duration_seconds, abs=1e-3)
    assert (np.diff(clip.pts_seconds[: shown.frames - 1]) > 0).all()


def test_good_rows_are_untouched_by_the_bad_ones(
    outcome: tuple[dict[int, str], Any, float], good: list[CaptionRequest]
) -> None:
    pool = WorkerPool(2)
    alone = {request.id.row: digest(clip) for request, clip in read(pool, good)}
    pool.close()
    assert len(alone) == GOOD_ROWS
    assert outcome[0] == alone


def test_no_bad_video_holds_up_the_others(outcome: tuple[Any, Any, float]) -> None:
    assert outcome[2] < LIMITS.max_read_seconds


def test_only_failures_of_decoding_are_tried_twice(outcome: tuple[Any, dict[str, Any], float]) -> None:
    twice = {name for name, made in outcome[1].items() if isinstance(made, Failure) and made.attempts == 2}
    assert {outcome[1][name].kind for name in twice} <= {"unreadable", "no_frames"}
    assert "data blank" in twice
    assert twice.isdisjoint({"empty", "noise", "index missing", "pipe", "65,535 x 65,535 (gif)", "folder"})


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")
def test_what_is_refused_costs_neither_time_nor_memory(animals: list[CaptionRequest]) -> None:
    refused = [one for one in animals if zoo.ZOO[one.prompt].kind in ("too_large", "too_long")]
    refused = [one for one in refused if not one.prompt.startswith("pictures over")]
    limits = replace(LIMITS, max_read_memory_mib=48, max_read_seconds=5)
    pool = WorkerPool(1)
    made = {one.prompt: outcome for one, outcome in ClipStream(pool, refused, POLICY, limits=limits)}
    pool.close()
    assert len(made) >= 5
    assert {name: outcome.kind for name, outcome in made.items() if isinstance(outcome, Failure)} == {
        name: zoo.ZOO[name].kind for name in made
    }
    assert max(outcome.seconds for outcome in made.values() if isinstance(outcome, Failure)) < 1


# that the tricks would work


def opens(victim: Path, *arguments: Any, **settings: Any) -> bool:
    """Whether FFmpeg opens a victim, when nothing keeps it from doing so."""

    def attempt() -> None:
        with contextlib.suppress(av.FFmpegError):
            av.open(*arguments, **settings).close()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.close(os.open(victim, os.O_WRONLY | os.O_NONBLOCK))  # only where somebody reads
        except OSError:
            if not thread.is_alive():
                return False
            time.sleep(0.01)
        else:
            return True
    return False


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("playlist (x.m3u8)", {"allowed_extensions": "ALL"}),
        ("concat script", {"safe": "0"}),
        ("data in another file (alias)", {"enable_drefs": "1"}),
    ],
)
def test_a_trick_would_work_if_it_were_let(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = zoo.ZOO[name].make(tmp_path)
    assert opens(tmp_path / "victim.ts", str(path), options=options)
