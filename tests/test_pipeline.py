"""The pipe: stages at the same time, order at the end, bounds on what is in flight, and a prompt end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reelscribe import ModelError, VideoCaptioningFromVLMMapper, pipeline
from reelscribe.rows.outcome import RowOutcome
from reelscribe.types import Candidate, CaptionResult
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes.pool import WorkerPool


class Watching:
    """A captioner that looks at frames; `order` turns what it pulled into the order of its answers."""

    policy = FramePolicy()

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.pulled: list[int] = []
        self.threads: set[int] = set()

    def caption(self, clips: Any) -> Iterator[CaptionResult]:
        waiting = []
        self.threads.add(threading.get_ident())
        for request, clip in clips:
            assert clip is not None
            self.pulled.append(request.id.row)
            waiting.append(request)
            if len(waiting) == self.batch:
                yield from self._answers(waiting)
        yield from self._answers(waiting)

    def _answers(self, waiting: list[Any]) -> Iterator[CaptionResult]:
        for request in reversed(waiting):
            yield CaptionResult(request.id, (Candidate(Path(request.video).name),))
        waiting.clear()

    def close(self) -> None:
        pass


def operator(captioner: Any, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    made = VideoCaptioningFromVLMMapper(captioner=captioner, caption_key="made", **parameters)
    made.pool = WorkerPool(2, reader="fake_readers:read")
    return made


def rows_of(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    return [{"text": "", "videos": [str(folder / name)]} for name in names]


def made(outcomes: list[RowOutcome]) -> list[list[str]]:
    return [outcome.samples[-1].get("made") for outcome in outcomes]


def run(op: VideoCaptioningFromVLMMapper, rows: Any) -> list[RowOutcome]:
    outcomes: list[RowOutcome] = []
    op.run_stream(rows, outcomes.append)
    op.close()
    return outcomes


def test_rows_come_out_in_order_whatever_finishes_first(tmp_path: Path) -> None:
    names = ["slow.a", *[f"x.{n}" for n in range(20)], "fail.b", "c"]
    captioner = Watching(batch=4)
    outcomes = run(operator(captioner), rows_of(tmp_path, names))
    assert [outcome.row for outcome in outcomes] == list(range(len(names)))
    assert made(outcomes) == [None if name == "fail.b" else [name] for name in names]
    assert captioner.pulled != sorted(captioner.pulled), "clips were handed over as they were ready"


def test_the_model_runs_in_the_callers_thread(tmp_path: Path) -> None:
    captioner = Watching()
    run(operator(captioner), rows_of(tmp_path, ["a", "b"]))
    assert captioner.threads == {threading.get_ident()}


def test_rows_are_taken_while_the_model_works(tmp_path: Path) -> None:
    taken = threading.Event()

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows_of(tmp_path, list("abcdefgh"))):
            if number == 5:
                taken.set()
            yield row

    class Waits(Watching):
        def _answers(self, waiting: list[Any]) -> Iterator[CaptionResult]:
            assert taken.wait(30), "the sixth row is taken while the first is with the model"
            yield from super()._answers(waiting)

    assert len(run(operator(Waits()), rows())) == 8


def test_a_slow_row_holds_back_new_ones_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_ROWS_AHEAD", 10)
    monkeypatch.setattr(pipeline, "STALL_SECONDS", 0.05)
    taken = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in rows_of(tmp_path, [f"x.{n}" for n in range(40)]):
            taken.append(len(captioner.pulled))
            yield row

    captioner = Watching(batch=30)  # answers nothing before it has 30: more than may be in flight
    began = time.monotonic()
    outcomes = run(operator(captioner), rows())
    assert len(outcomes) == 40
    assert time.monotonic() - began > 15 * 0.05, "each row over the bound waited"


def test_unfinished_rows_are_bounded_by_the_bytes_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_BYTES_AHEAD", 5_000)
    ahead = []
    finished = 0

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows_of(tmp_path, [f"x.{n}" for n in range(40)])):
            ahead.append(number - finished)
            yield {**row, "text": "x" * 1000}

    def emit(outcome: RowOutcome) -> None:
        nonlocal finished
        finished += 1
        time.sleep(0.002)

    op = operator(Watching())
    op.run_stream(rows(), emit)
    op.close()
    assert max(ahead) <= 6


def test_failures_alone_do_not_pile_up(tmp_path: Path) -> None:
    outcomes = run(operator(Watching()), rows_of(tmp_path, ["fail.x"] * 300))
    assert len(outcomes) == 300
    assert all(outcome.failures for outcome in outcomes)


@pytest.mark.parametrize("where", ["model", "emit", "rows"])
def test_an_error_ends_everything_at_once(tmp_path: Path, where: str) -> None:
    """Also while a video is being read that never ends."""

    class Breaks(Watching):
        def _answers(self, waiting: list[Any]) -> Iterator[CaptionResult]:
            if where == "model":
                raise KeyboardInterrupt
            yield from super()._answers(waiting)

    def rows() -> Iterator[dict[str, Any]]:
        yield from rows_of(tmp_path, ["a", "b"])
        if where == "rows":
            raise ZeroDivisionError
        yield from rows_of(tmp_path, ["wait.c", "d", "e"])

    def emit(outcome: RowOutcome) -> None:
        if where == "emit":
            raise ZeroDivisionError

    op = operator(Breaks())
    began = time.monotonic()
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        op.run_stream(rows(), emit)
    op.close()
    assert time.monotonic() - began < 10
    end = time.monotonic() + 10
    while any(one.name in ("read-clip", "read-requests") for one in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_time_of_each_stage_is_told(tmp_path: Path) -> None:
    class Timed(Watching):
        busy_seconds = {"prepare": 1.0, "model": 2.0}  # noqa: RUF012

        def _answers(self, waiting: list[Any]) -> Iterator[CaptionResult]:
            self.busy_seconds = {"prepare": 1.5, "model": 4.0}
            return super()._answers(waiting)

    op = operator(Timed())
    times = op.run_stream(rows_of(tmp_path, ["slow.a", "slow.b"]), lambda outcome: None)
    op.close()
    busy = {stage.name: stage.busy_seconds for stage in times.stages}
    assert list(busy) == ["rows", "decode", "prepare", "model"]
    assert 0.8 <= busy["decode"] < 5
    assert (busy["prepare"], busy["model"]) == (0.5, 2.0), "earlier runs of the captioner do not count"


@pytest.mark.parametrize("policy", [None, FramePolicy()])
def test_a_captioner_that_ends_early_is_an_error_and_loses_no_row_in_silence(tmp_path: Path, policy: Any) -> None:
    class EndsEarly(Watching):
        def caption(self, clips: Any) -> Iterator[CaptionResult]:
            for _ in range(2):
                request, _ = next(clips)
                yield CaptionResult(request.id, (Candidate("words"),))

    captioner = EndsEarly()
    captioner.policy = policy
    op = operator(captioner)
    outcomes: list[RowOutcome] = []
    with pytest.raises(ModelError, match="stopped before"):
        op.run_stream(rows_of(tmp_path, [f"clip.{n}" for n in range(300)]), outcomes.append)
    op.close()
    assert len(outcomes) <= 2
