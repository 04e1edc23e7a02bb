"""Many files to clips in processes: bounds, repeats, crashes, and a clean end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clips
import fake_readers
from reelscribe.errors import ReelscribeError, SettingsError
from reelscribe.types import CaptionRequest, Clip, Failure, RequestId, TimeWindow
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes import clip_stream, jobs, transport
from reelscribe.video.processes.child import READING_NICENESS
from reelscribe.video.processes.clip_stream import ClipStream, read_clips
from reelscribe.video.processes.pool import WorkerPool
from reelscribe.video.reader import ReadLimits, read_clip

POLICY = FramePolicy()
FAKE = "fake_readers:read"
ONE = fake_readers.clip().nbytes


def request(row: int, video: Any, **settings: Any) -> CaptionRequest:
    return CaptionRequest(id=RequestId(row, 0), video=video, prompt="", **settings)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Two processes that do what a video's name says."""
    made = WorkerPool(2, reader=FAKE)
    yield made
    made.close()


class Requests:
    """Requests for names in a folder, and how many were taken."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.taken = 0
        self._requests = (request(row, str(folder / name)) for row, name in enumerate(names))
        self.threads: set[int] = set()

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> CaptionRequest:
        one = next(self._requests)
        self.taken += 1
        self.threads.add(threading.get_ident())
        return one


def stream_of(
    pool: WorkerPool, folder: Path, names: list[str], *, prefetch_bytes: int | None = None, **settings: Any
) -> tuple[ClipStream, Requests]:
    requests = Requests(folder, names)
    pool.prefetch_bytes = prefetch_bytes
    return ClipStream(pool, requests, POLICY, **settings), requests


def names_of(stream: Any) -> list[str]:
    return [Path(request.video).name for request, _ in stream]


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def settle(requests: Requests, *, until: int) -> None:
    """Wait until so many requests were taken, and a little for more."""
    assert_soon(lambda: requests.taken >= until)
    time.sleep(0.1)


def threads_of_streams() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name in ("read-clip", "read-requests")]


def assert_soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# what comes out


def test_every_request_comes_back_with_its_own_clip_or_failure(
    video: Callable[[str], Path], broken_video: Callable[[str], Path]
) -> None:
    paths = [video("hevc.mp4"), broken_video("text.mp4"), video("h264.mp4"), "gone.mp4", video("vp9.webm"), 3, b"x"]
    windows = [TimeWindow(0.1 * n, None) for n in range(4)]
    requests = [
        request(row, path, window=window)
        for row, (path, window) in enumerate((path, window) for window in windows for path in paths)
    ]
    results = dict(read_clips(iter(requests), POLICY, workers=3))
    assert set(results) == set(requests)
    for one, made in results.items():
        alone = read_clip(one.video, POLICY, window=one.window)
        if isinstance(alone, Failure):
            assert made == alone
            continue
        assert isinstance(made, Clip)
        assert np.array_equal(made.frames, alone.frames)
        assert np.array_equal(made.pts_seconds, alone.pts_seconds)
        assert made.source_fps == alone.source_fps
        assert made.frames.flags.writeable


def test_windows_limits_and_root_reach_the_reader(video: Callable[[str], Path], monkeypatch: Any) -> None:
    path = video("h264.mp4")
    named = [request(0, path.name), request(1, path.name, window=TimeWindow(1.0, 1.9))]
    found = {one.id.row: clip for one, clip in read_clips(named, POLICY, root=path.parent)}
    assert clips.numbers_of(found[0].frames)[0] == 0
    assert clips.numbers_of(found[1].frames)[0] == 10
    [(_, refused)] = read_clips([request(0, path)], POLICY, limits=ReadLimits(max_source_bytes=10))
    assert isinstance(refused, Failure)
    assert refused.kind == "too_large"
    monkeypatch.chdir(path.parent)  # after processes may have been started elsewhere
    [(_, here)] = read_clips([request(0, path.name)], POLICY)
    assert isinstance(here, Clip)


def test_any_form_of_a_video_reaches_a_process(video: Callable[[str], Path]) -> None:
    path = video("h264.mp4")
    data = path.read_bytes()
    forms = [path, str(path), data, bytearray(data), memoryview(data), {"path": str(path), "bytes": None}]
    forms += [{"path": "x", "bytes": data}]
    results = list(read_clips([request(row, form) for row, form in enumerate(forms)], POLICY))
    assert len(results) == len(forms)
    assert all(isinstance(clip, Clip) and len(clip.frames) == 4 for _, clip in results)


def test_a_slow_video_does_not_hold_up_the_others(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["wait.a", "b", "c", "d"])
    assert sorted(Path(next(stream)[0].video).name for _ in range(3)) == ["b", "c", "d"]
    (tmp_path / "wait.a.open").touch()
    assert names_of(stream) == ["wait.a"]


def test_reading_stands_back_behind_the_model(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["nice"])
    [(_, clip)] = stream
    assert clip.frames.flat[0] == min(os.nice(0) + READING_NICENESS, 19)


# bounds


def test_requests_are_taken_only_as_there_is_room(pool: WorkerPool, tmp_path: Path) -> None:
    stream, requests = stream_of(pool, tmp_path, [f"wait.{n}" for n in range(20)])
    assert requests.taken == 0
    threading.Timer(0.2, lambda: (tmp_path / "wait.0.open").touch()).start()
    next(stream)
    settle(requests, until=5)
    assert requests.taken == 1 + clip_stream.AHEAD_PER_WORKER * 2
    stream.close()
    for n in range(20):
        (tmp_path / f"wait.{n}.open").touch()
    settle(requests, until=5)
    assert requests.taken == 1 + clip_stream.AHEAD_PER_WORKER * 2


def test_waiting_pixels_are_bounded_and_not_videos(pool: WorkerPool, tmp_path: Path) -> None:
    stream, requests = stream_of(pool, tmp_path, [f"x.{n}" for n in range(40)], prefetch_bytes=10 * ONE)
    next(stream)
    settle(requests, until=11)
    assert 10 <= requests.taken <= 12
    for taken in range(2, 30):
        next(stream)
        assert requests.taken <= taken + 11
    stream.close()


def test_a_video_over_the_bound_is_still_read(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["a", "b", "c"], prefetch_bytes=1)
    assert sorted(names_of(stream)) == ["a", "b", "c"]


def test_requests_are_advanced_in_one_thread_that_is_not_the_consumers(pool: WorkerPool, tmp_path: Path) -> None:
    stream, requests = stream_of(pool, tmp_path, list("abcdefgh"))
    assert sorted(names_of(stream)) == list("abcdefgh")
    assert len(requests.threads) == 1
    assert threading.get_ident() not in requests.threads


def test_memory_is_given_back_with_the_clips(pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each large clip is a mapping; they go when the clips go."""
    monkeypatch.setattr(transport, "COPIED_BYTES", 0)

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("reelscribe-frames")

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux")
    stream, _ = stream_of(pool, tmp_path, [f"x.{n}" for n in range(60)], prefetch_bytes=8 * ONE)
    before = mapped()
    most = max(mapped() for _ in stream)
    stream.close()
    del stream
    assert most - before <= 16
    assert_soon(lambda: mapped() == before)


def test_small_clips_keep_no_descriptors_open(pool: WorkerPool, tmp_path: Path) -> None:
    """There are many of them, and a process may have a thousand descriptors at most places."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux")
    stream, _ = stream_of(pool, tmp_path, [f"x.{n}" for n in range(300)])
    before = len(list(Path("/proc/self/fd").iterdir()))
    clips_kept = list(stream)
    assert len(clips_kept) == 300
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 30


# repeats


def test_a_video_that_is_wanted_again_is_read_once(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["a", "b", "a", "slow.c", "slow.c", "a", "fail.d", "fail.d", "b"])
    results = list(stream)
    assert sorted(log_of(tmp_path))[:3] == ["a", "b", "fail.d"]
    assert log_of(tmp_path).count("slow.c") == 1
    assert {Path(one.video).name: 1 for one, _ in results}.keys() == {"a", "b", "slow.c", "fail.d"}
    assert len(results) == 9
    frames = {id(clip.frames) for one, clip in results if Path(one.video).name == "a"}
    assert len(frames) == 1, "the same clip, so that the model can see that it is the same"


def test_other_windows_are_read_on_their_own(pool: WorkerPool, tmp_path: Path) -> None:
    asked = [request(n, str(tmp_path / "a"), window=TimeWindow(n // 2, None)) for n in range(4)]
    assert len(list(ClipStream(pool, asked, POLICY))) == 4
    assert log_of(tmp_path) == ["a", "a"]


def test_a_video_that_is_far_away_is_read_again(tmp_path: Path) -> None:
    alone = WorkerPool(1, reader=FAKE)
    names = ["a", *[f"x.{n}" for n in range(30)], "a"]
    stream, _ = stream_of(alone, tmp_path, names, prefetch_bytes=16 * ONE)
    assert len(names_of(stream)) == 32
    assert log_of(tmp_path).count("a") == 2
    alone.close()


def test_another_stream_remembers_nothing(pool: WorkerPool, tmp_path: Path) -> None:
    """The file may have changed in between."""
    for _ in range(2):
        assert names_of(stream_of(pool, tmp_path, ["a"])[0]) == ["a"]
    assert log_of(tmp_path) == ["a", "a"]


# troubles


def test_a_video_that_kills_its_process_fails_alone(pool: WorkerPool, tmp_path: Path) -> None:
    names = ["a", "crash.b", "c", "d", "crash_once.e", "f", "g", "h", "i", "j"]
    stream, _ = stream_of(pool, tmp_path, names)
    found = {Path(one.video).name: outcome for one, outcome in stream}
    assert found.keys() == set(names)
    assert {name for name, outcome in found.items() if isinstance(outcome, Failure)} == {"crash.b"}
    assert found["crash.b"].kind == "crashed"
    assert log_of(tmp_path).count("crash.b") == jobs.MAX_ATTEMPTS


def test_a_bug_in_reading_reaches_the_consumer(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["bug.a"])
    with pytest.raises(ZeroDivisionError, match=r"bug\.a"):
        list(stream)


def test_errors_of_reading_leave_the_pool_whole(pool: WorkerPool, tmp_path: Path) -> None:
    for number in range(3):
        stream, _ = stream_of(pool, tmp_path, [f"bug.{number}"])
        with pytest.raises(ZeroDivisionError):
            list(stream)
        assert_soon(lambda: not threads_of_streams())
    assert sorted(names_of(stream_of(pool, tmp_path, ["b", "c", "d"])[0])) == ["b", "c", "d"]


def test_a_machine_that_starts_no_more_processes_ends_the_stream_and_not_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = WorkerPool(1, reader=FAKE)
    for number in range(3):
        stream, _ = stream_of(pool, tmp_path, [f"wait.{number}"])

        def kill(name: str = f"wait.{number}") -> None:
            assert_soon(lambda: (tmp_path / "log").exists() and name in log_of(tmp_path))
            monkeypatch.setattr(subprocess, "Popen", no_more_processes)
            os.kill(pool.workers[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(BlockingIOError):
            next(stream)
        killer.join()
        monkeypatch.undo()
        assert_soon(lambda: not threads_of_streams())
    assert sorted(names_of(stream_of(pool, tmp_path, ["b", "c", "d"])[0])) == ["b", "c", "d"]
    pool.close()


def no_more_processes(*_args: Any, **_options: Any) -> Any:
    raise BlockingIOError(11, "resource temporarily unavailable")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_clips_that_are_kept_hold_few_descriptors(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, [f"clip.{n}" for n in range(300)])
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [clip for _, clip in stream]
    assert len(kept) == 300
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 20


def test_few_clips_are_remembered_however_small(pool: WorkerPool, tmp_path: Path) -> None:
    recent = jobs.RecentClips(max_bytes=1 << 30)
    for number in range(200):
        recent.put(jobs.Job(number, "", {}, []), fake_readers.clip())
    assert list(recent.clips) == list(range(200 - jobs.MAX_RECENT, 200))


def test_requests_that_raise_end_the_stream_behind_what_they_gave(pool: WorkerPool, tmp_path: Path) -> None:
    closed = []

    def requests() -> Iterator[CaptionRequest]:
        try:
            yield request(0, str(tmp_path / "a"))
            yield request(1, str(tmp_path / "slow.b"))
            raise OSError("the data set is gone")
        finally:
            closed.append(True)

    stream = ClipStream(pool, requests(), POLICY)
    assert sorted(Path(next(stream)[0].video).name for _ in range(2)) == ["a", "slow.b"]
    with pytest.raises(OSError, match="the data set is gone"):
        next(stream)
    assert closed == [True]
    assert list(stream) == []


def test_processes_that_do_not_start_are_an_error_and_not_a_failure_of_each_video(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = WorkerPool(1, reader="no_such_module:read")
    stream, _ = stream_of(broken, tmp_path, ["a", "b"])
    with pytest.raises(ReelscribeError, match=r"failed to start \(exit code 1\)"):
        list(stream)
    broken.close()
    assert "no_such_module" in capfd.readouterr().err


def test_no_requests_give_no_clips() -> None:
    assert list(read_clips([], POLICY)) == []


@pytest.mark.parametrize("setting", [{"workers": 0}, {"workers": -1}, {"prefetch_bytes": 0}])
def test_settings_that_cannot_work_are_refused_at_once(setting: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(setting))):
        read_clips([], POLICY, **setting)


# the end


def test_closing_returns_at_once_and_leaves_no_threads(pool: WorkerPool, tmp_path: Path) -> None:
    stream, requests = stream_of(pool, tmp_path, ["a", *[f"wait.{n}" for n in range(9)]])
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 1
    assert list(stream) == []
    pool.close()  # the videos behind the gates are never done
    assert_soon(lambda: not threads_of_streams())
    assert requests.taken <= 6


def test_a_consumer_that_waits_is_woken_by_closing(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["wait.a"])
    threading.Timer(0.3, stream.close).start()
    assert list(stream) == []


def test_a_pool_that_is_closed_under_a_stream_is_an_error(pool: WorkerPool, tmp_path: Path) -> None:
    stream, _ = stream_of(pool, tmp_path, ["wait.a"])
    threading.Timer(0.5, pool.close).start()
    with pytest.raises(RuntimeError, match="were ended"):
        list(stream)


def test_processes_are_started_once(pool: WorkerPool, tmp_path: Path) -> None:
    pids = set()
    for _ in range(3):
        stream, _ = stream_of(pool, tmp_path, [f"pid.{n}" for n in range(8)])
        pids |= {outcome.message for _, outcome in stream}
        assert_soon(lambda: not threads_of_streams())
    assert len(pids) <= 2


def test_processes_are_added_while_the_consumer_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelscribe.video.processes.pool.usable_processors", lambda: 6)
    pool = WorkerPool(reader=FAKE)
    stream, _ = stream_of(pool, tmp_path, [f"slow.{n}" for n in range(24)])
    assert (pool.first, pool.most) == (2, 6)
    assert len(names_of(stream)) == 24
    assert 2 < stream.workers <= 6
    unhurried, _ = stream_of(pool, tmp_path, [f"x.{n}" for n in range(9)])
    for _ in unhurried:
        time.sleep(0.1)
    assert unhurried.workers == 2
    pool.close()


SCRIPT = """
import os, sys, time
from reelscribe.types import CaptionRequest, RequestId
from reelscribe.video.processes.pool import WorkerPool
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes.clip_stream import ClipStream
pool = WorkerPool(2, reader="fake_readers:read")
names = [f"pid.{n}" for n in range(8)]
asked = [CaptionRequest(RequestId(n, 0), os.path.join(sys.argv[1], name), "") for n, name in enumerate(names)]
print(*{failure.message for _, failure in ClipStream(pool, asked, FramePolicy())}, flush=True)
if sys.argv[2] == "die":
    list(ClipStream(pool, [CaptionRequest(RequestId(0, 0), os.path.join(sys.argv[1], "wait.a"), "")], FramePolicy()))
"""


def start_script(folder: Path, what: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), what], stdout=subprocess.PIPE, text=True, env=environment, **options
    )


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_processes_and_memory_are_gone_however_the_run_ends(tmp_path: Path, how: signal.Signals | None) -> None:
    """Also: a script without a main guard can read, since processes do not import it."""
    shared = set(Path("/dev/shm").iterdir())
    script = start_script(tmp_path, "end" if how is None else "die", stderr=subprocess.DEVNULL)
    assert script.stdout is not None
    pids = [int(pid) for pid in script.stdout.readline().split()]
    assert pids
    if how is not None:
        script.send_signal(how)
    script.wait(30)
    script.stdout.close()
    assert_soon(lambda: not any(is_alive(pid) for pid in pids))
    assert set(Path("/dev/shm").iterdir()) <= shared


def _read_in_a_child(pool: WorkerPool, folder: Path, queue: Any) -> None:
    queue.put(sorted(names_of(stream_of(pool, folder, ["a", "b"])[0])))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_fork_that_may_have_no_children_of_its_own_reads_with_new_processes(pool: WorkerPool, tmp_path: Path) -> None:
    assert names_of(stream_of(pool, tmp_path, ["a"])[0]) == ["a"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_a_child, args=(pool, tmp_path, queue), daemon=True)
    child.start()
    assert queue.get(timeout=30) == ["a", "b"]
    child.join(30)
    assert child.exitcode == 0
    assert sorted(names_of(stream_of(pool, tmp_path, ["c", "d"])[0])) == ["c", "d"], "ours still work"
