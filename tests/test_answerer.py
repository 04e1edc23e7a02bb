"""A run and who answers its requests: the model here, or somebody whose answers are in the journal then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.errors import ModelError
from reelscribe.runners.report.progress import NoProgress
from reelscribe.runners.run.answerer import Known, LocalAnswerer, Work
from reelscribe.runners.run.identity import RunIdentity
from reelscribe.runners.run.marks import UNKNOWN
from reelscribe.runners.run.run import caption_file, run_file
from reelscribe.settings import RunSettings
from rows import jsonl

ROWS = [{"video": f"{name}.mp4", "text": name} for name in ("one", "two", "mute", "three")]


def operator() -> VideoCaptioningFromVLMMapper:
    script = ScriptedCaptioner(lambda request, i: "" if "mute" in request.video else f"{request.video} {request.seed}")
    return VideoCaptioningFromVLMMapper(captioner=script, caption_num=2)


class Elsewhere(LocalAnswerer):
    """Puts the answers to all rows but some into the journal, and notes its calls."""

    loads_model = False

    def __init__(self, work: Work, calls: list[str], left: int) -> None:
        super().__init__(work)
        self._calls = calls
        self._left = left

    def recover(self) -> None:
        self._calls.append("recover")

    def settle(self) -> None:
        self._calls.append("settle")

    def make_ready(self, identity: RunIdentity, known: Known) -> Any:
        self._calls.append("make_ready")
        work = self._work
        for number, row in enumerate(ROWS):
            for request in work.planner.plan(row, number).requests if number >= self._left else ():
                assert known(request, row) is None
                (result,) = work.operator.captioner.caption(iter([(request, None)]))
                result, _ = work.planner.acceptance.checked(request, result)
                failed = result.failure.kind if result.failure is not None else None
                work.journal.answers.add_all([(request.id, identity.digest(request), result, failed, UNKNOWN)])
        return work.operator

    def report(self) -> None:
        self._calls.append("report")

    def progress_made(self) -> None:
        self._calls.append("progress_made")

    def end(self) -> None:
        self._calls.append("end")


def run(output: Path, source: Path, calls: list[str], *, left: int = 0, op: Any = None) -> Any:
    return run_file(
        lambda work: Elsewhere(work, calls, left),
        op or operator(),
        source,
        output,
        progress=NoProgress(),
        settings=RunSettings(),
    )


@pytest.mark.parametrize("left", [0, 2, 4])
def test_the_output_is_the_same_whoever_answers(tmp_path: Path, left: int) -> None:
    source, calls = jsonl(tmp_path / "in.jsonl", ROWS), list[str]()
    caption_file(operator(), source, tmp_path / "here.jsonl")
    summary = run(tmp_path / "there.jsonl", source, calls, left=left)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert calls == ["recover", "settle", "make_ready", "report", "end"]
    assert (summary.rows_in, summary.failed_rows, summary.known_videos) == (4, 1, 4 - left)


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    source, calls = jsonl(tmp_path / "in.jsonl", ROWS), list[str]()
    run(tmp_path / "out.jsonl", source, [])
    assert run(tmp_path / "out.jsonl", source, calls).is_old
    assert calls == ["recover", "settle"]


def test_a_run_that_ends_before_its_first_row_says_what_its_answerer_has(tmp_path: Path) -> None:
    class Broken:
        policy = None

        def caption(self, clips: Any) -> Any:
            raise ModelError("no memory")

        def close(self) -> None:
            pass

    class Counting(Elsewhere):
        def make_ready(self, identity: RunIdentity, known: Known) -> Any:
            super().make_ready(identity, known)
            return VideoCaptioningFromVLMMapper(captioner=Broken())

        def progress_made(self) -> Any:
            return "3 videos are answered"

    with pytest.raises(ModelError) as raised:
        run_file(
            lambda work: Counting(work, [], left=1),
            operator(),
            jsonl(tmp_path / "in.jsonl", ROWS),
            tmp_path / "out.jsonl",
            progress=NoProgress(),
            settings=RunSettings(),
        )
    assert raised.value.__notes__ == ["3 videos are answered; rerun the same command to resume"]
