"""Decoders that hang, crash or take all memory: one row fails, or not even that, and no other row notices."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import clips
from reelscribe.cli import main
from reelscribe.errors import ReelscribeError, SettingsError
from reelscribe.operator import VideoCaptioningFromVLMMapper
from reelscribe.types import CaptionRequest, Clip, Failure, RequestId, failure_to_dict
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.process_memory import memory_bound, private_bytes
from reelscribe.video.processes import child as worker_module
from reelscribe.video.processes import pool as pool_module
from reelscribe.video.processes.clip_stream import ClipStream, read_clips
from reelscribe.video.processes.pool import WorkerPool

POLICY = FramePolicy()
LIMITS = ReadLimits(max_read_seconds=1.0, max_read_memory_mib=128)
KINDS = {
    "hang": "timeout",
    "crash": "crashed",
    "hog": "out_of_memory",
    "killed": "out_of_memory",
    "nonsense": "crashed",
    "doubt": "no_frames",
}
"""What a decoder does, and the kind of failure it is in the end."""
LIVES_ON = ("doubt", "hog")
"""After these the process lives, and may have begun the next video when it is replaced."""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")


def request(row: int, video: Any) -> CaptionRequest:
    return CaptionRequest(id=RequestId(row, 0), video=video, prompt="")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Two processes that do what a video's name says."""
    made = WorkerPool(2, reader="fake_readers:read")
    yield made
    made.close()


def read(pool: WorkerPool, folder: Path, names: list[str], limits: ReadLimits = LIMITS) -> dict[str, Clip | Failure]:
    """What becomes of videos of these names, by name."""
    requests = [request(row, str(folder / name)) for row, name in enumerate(names)]
    found = {Path(one.video).name: outcome for one, outcome in ClipStream(pool, requests, POLICY, limits=limits)}
    assert found.keys() == set(names)
    return found


def tries_of(folder: Path) -> list[tuple[str, int, bool]]:
    """Name, process and whether it was the plain way, of every try."""
    lines = [line.split() for line in (folder / "tries").read_text().splitlines()]
    return [(name, int(pid), plain == "True") for name, pid, plain in lines]


def between_good_ones(name: str) -> list[str]:
    return [*[f"a.{n}" for n in range(12)], name, *[f"b.{n}" for n in range(12)]]


@needs_linux
@pytest.mark.parametrize("what", KINDS)
def test_a_row_fails_alone_after_its_second_try(pool: WorkerPool, tmp_path: Path, what: str) -> None:
    found = read(pool, tmp_path, between_good_ones(f"{what}.x"))
    failure = found.pop(f"{what}.x")
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.attempts) == (KINDS[what], 2)
    assert failure.seconds > (2 * LIMITS.max_read_seconds if what == "hang" else 0)
    assert all(isinstance(clip, Clip) for clip in found.values())
    tries = tries_of(tmp_path)
    assert len(found) + 2 <= len(tries) <= len(found) + 2 + (what in LIVES_ON), "no other video was read twice"
    (_, first, plain), (_, second, plainer) = [one for one in tries if one[0] == f"{what}.x"]
    assert first != second
    assert (plain, plainer) == (False, True)
    assert next(name for name, pid, _ in tries if pid == second) == f"{what}.x", "the second process was a fresh one"


@needs_linux
@pytest.mark.parametrize("what", KINDS)
def test_what_happens_once_costs_no_row(pool: WorkerPool, tmp_path: Path, what: str) -> None:
    found = read(pool, tmp_path, between_good_ones(f"{what}_once.x"))
    assert all(isinstance(clip, Clip) for clip in found.values())
    assert len(found) + 1 <= len(tries_of(tmp_path)) <= len(found) + 1 + (what in LIVES_ON)


@needs_linux
def test_many_faults_at_once_leave_the_rest_alone(pool: WorkerPool, tmp_path: Path) -> None:
    faults = [f"{what}{how}.x" for what in KINDS for how in ("", "_once")]
    good = [f"good.{n}" for n in range(60)]
    names = [name for n, one in enumerate(faults) for name in (*good[5 * n : 5 * n + 5], one)]
    found = read(pool, tmp_path, names, ReadLimits(max_read_seconds=1.5, max_read_memory_mib=64))
    failed = {name: outcome.kind for name, outcome in found.items() if isinstance(outcome, Failure)}
    assert failed == {f"{what}.x": kind for what, kind in KINDS.items()}
    assert len(pool.workers) == 2


def test_a_video_sent_ahead_to_a_process_that_hangs_is_read_by_another(tmp_path: Path) -> None:
    alone = WorkerPool(1, reader="fake_readers:read")
    names = ["quick.a", "quick.b", "hang.x", "ahead.c"]  # quick ones, so that two are sent at a time
    found = read(alone, tmp_path, names, ReadLimits(max_read_seconds=0.4))
    alone.close()
    assert [name for name, outcome in found.items() if isinstance(outcome, Failure)] == ["hang.x"]
    assert [name for name, *_ in tries_of(tmp_path)].count("ahead.c") == 1


def test_the_clock_of_a_video_begins_when_a_process_begins_it(tmp_path: Path) -> None:
    """Neither the start of the process nor the videos before it count."""
    alone = WorkerPool(1, reader="fake_readers:read")
    found = read(alone, tmp_path, ["a", "b", *[f"slow.{n}" for n in range(3)]], ReadLimits(max_read_seconds=0.7))
    alone.close()
    assert all(isinstance(clip, Clip) for clip in found.values())


def test_the_clock_may_be_without_end(pool: WorkerPool, tmp_path: Path) -> None:
    assert isinstance(read(pool, tmp_path, ["a"], ReadLimits(max_read_seconds=float("inf")))["a"], Clip)


def test_a_definite_failure_is_not_tried_again(pool: WorkerPool, tmp_path: Path) -> None:
    failure = read(pool, tmp_path, ["fail.x"])["fail.x"]
    assert isinstance(failure, Failure)
    assert failure.attempts == 1
    assert len(tries_of(tmp_path)) == 1


def test_a_process_that_never_says_it_is_ready_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_ready.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pool_module, "START_SECONDS", 0.5)
    silent = WorkerPool(1, reader="never_ready:read")
    began = time.monotonic()
    with pytest.raises(ReelscribeError, match=r"no sign of life for 0\.5 seconds"):
        read(silent, tmp_path, ["a"])
    silent.close()
    assert time.monotonic() - began < 10


def test_closing_ends_processes_that_hang(pool: WorkerPool, tmp_path: Path) -> None:
    requests = [request(row, str(tmp_path / f"hang.{row}")) for row in range(2)]
    stream = ClipStream(pool, [request(9, str(tmp_path / "a")), *requests], POLICY)
    next(stream)
    time.sleep(0.2)
    stream.close()
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 1


def test_what_was_spent_is_not_part_of_the_output() -> None:
    spent = Failure("timeout", "too slow", attempts=2, seconds=600.3)
    assert failure_to_dict(spent, video_index=0) == {"kind": "timeout", "message": "too slow", "video_index": 0}
    assert spent == Failure("timeout", "too slow")


# memory


@needs_linux
def test_memory_is_bounded_while_a_video_is_read_and_not_after() -> None:
    before = private_bytes()
    assert before is not None
    with pytest.raises(MemoryError), memory_bound(before + (64 << 20)):
        bytearray(512 << 20)
    assert len(bytearray(512 << 20)) == 512 << 20


def test_without_a_figure_memory_is_not_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS."""
    monkeypatch.setattr("reelscribe.video.process_memory._STATUS", tmp_path / "none")
    assert private_bytes() is None
    settings = {"limits": ReadLimits(max_read_memory_mib=1)}
    read = lambda video, **settings: bytearray(64 << 20)
    assert len(worker_module._within_memory(read, None, "x", settings)) == 64 << 20


@needs_linux
def test_a_real_video_over_the_memory_limit_fails_alone(video: Callable[[str], Path], tmp_path: Path) -> None:
    large = clips.render_video(tmp_path / "large.mp4", height=1088, width=1920, count=3)
    requests = [request(0, video("h264.mp4")), request(1, large), request(2, video("vp9.webm"))]
    limits = ReadLimits(max_read_memory_mib=16)
    found = {one.id.row: outcome for one, outcome in read_clips(requests, POLICY, workers=1, limits=limits)}
    assert isinstance(found[0], Clip)
    assert isinstance(found[2], Clip)
    assert isinstance(found[1], Failure)
    assert (found[1].kind, found[1].attempts) == ("out_of_memory", 2)


# settings


def test_limits_reach_reading_from_the_operator(tmp_path: Path) -> None:
    operator = VideoCaptioningFromVLMMapper(
        "reelscribe/shapes",
        max_source_frames=7,
        max_read_seconds=2.5,
        max_read_memory_mib=3,
        media_root=str(tmp_path),
        allow_remote=True,
    )
    limits = ReadLimits(
        max_source_frames=7, max_read_seconds=2.5, max_read_memory_mib=3, media_root=tmp_path, allow_remote=True
    )
    assert operator.limits == limits


def test_a_media_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="media_root must be an absolute path of a folder"):
        VideoCaptioningFromVLMMapper("reelscribe/shapes", media_root=str(tmp_path / "gone"))


def caption(tmp_path: Path, video: Path, *options: str) -> list[str]:
    """The kinds of failure when the command captions one video."""
    output = tmp_path / "out.jsonl"
    arguments = ["caption", str(video), "-o", str(output), "--model", "reelscribe/shapes", "--device", "cpu", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3, result.output
    return [
        line.split('"kind": "')[1].split('"')[0] for line in Path(f"{output}.failures.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("--max-source-frames 19", "too_long"),
        ("--max-read-seconds 0.000001", "timeout"),
        pytest.param("--max-read-memory 1", "out_of_memory", marks=needs_linux),
        ("--media-root {folder}", "not_allowed"),
    ],
)
def test_limits_are_kept_by_the_command(tmp_path: Path, option: str, kind: str) -> None:
    large = clips.render_video(
        tmp_path / "large.mp4", height=1088, width=1920, count=20, options={"preset": "ultrafast"}
    )
    (tmp_path / "folder").mkdir()
    assert caption(tmp_path, large, *option.format(folder=tmp_path / "folder").split()) == [kind]
