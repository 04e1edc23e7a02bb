"""`reelscribe bench`: four speeds on the user's own videos, and the settings that follow."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from reelscribe import Candidate, CaptionResult, DataError, FramePolicy, ScriptedCaptioner, cli
from reelscribe import VideoCaptioningFromVLMMapper as Operator
from reelscribe.runners import bench as bench_module
from reelscribe.runners.bench import BenchReport, Ceiling, bench, print_report
from reelscribe.video.processes.clip_stream import usable_processors


class Slow:
    """A model of which one clip takes 40 ms and a clip more in the same batch a millisecond."""

    policy = FramePolicy(num_frames=2)

    def __init__(self) -> None:
        self.batch_size = 2
        self.calls: list[tuple[int, int]] = []

    def prepare(self, clips: Iterable[Any]) -> Iterator[None]:
        for _ in clips:
            time.sleep(0.001)
            yield

    def caption(self, clips: Iterable[Any]) -> Iterator[CaptionResult]:
        waiting = [request for request, clip in clips if clip is not None]
        self.calls.append((self.batch_size, len(waiting)))
        for number, request in enumerate(waiting):
            time.sleep(0.001 if number % self.batch_size else 0.04)
            yield CaptionResult(request.id, (Candidate("words"),))

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, video: Callable[[str], Path]) -> Path:
    """Twelve videos, of which one is broken."""
    made = tmp_path / "clips"
    made.mkdir()
    for number in range(12):
        (made / f"{number:02d}.mp4").symlink_to(video(("h264.mp4", "hevc.mp4", "mpeg4.mp4")[number % 3]))
    (made / "00.mp4").unlink()
    (made / "00.mp4").write_text("no video")
    return made


def test_each_stage_is_measured_alone_and_then_all_together(folder: Path) -> None:
    model = Slow()
    operator = Operator(captioner=model, num_proc=2)
    report = bench(operator, folder, clips=10)
    operator.close()
    speeds = {one.stage: one.videos_per_second for one in report.ceilings}
    assert list(speeds) == ["decode", "prepare", "model"]
    assert report.clips == 9
    assert speeds["model"] < 80
    assert 9 / speeds["model"] == pytest.approx(3 * 0.04 + 6 * 0.001, rel=0.5), "at the best batch size"
    assert report.ratio > 0
    assert [call for call in model.calls if call[1] == 9][:3] == [(1, 9), (2, 9), (4, 9)]
    assert model.batch_size == 2, "put back"
    assert report.recommended["--batch-size"] == 4
    assert 1 <= report.recommended["--workers"] <= usable_processors()
    assert any("1 videos in the sample are unreadable" in note for note in report.notes)
    assert any("are few" in note for note in report.notes)
    assert list(folder.parent.iterdir()) == [folder], "nothing is written"


def test_reading_that_is_too_slow_is_told(folder: Path) -> None:
    operator = Operator(captioner=ScriptedCaptioner(lambda request, i: "x", policy=FramePolicy()), num_proc=1)
    report = bench(operator, folder)
    operator.close()
    assert report.lowest.stage == "decode"
    assert report.recommended == {"--workers": usable_processors()}
    assert report.shared is None, "its model computes on no core"
    assert any("--time-tolerance" in note for note in report.notes)


class Hungry(Slow):
    """A model that takes many clips at once, on the cores that read."""

    cores = 2

    def videos_at_once(self, clips: Iterable[Any]) -> int:
        return min(self.batch_size, len(list(clips)))


@pytest.mark.parametrize(("prefetch_mib", "enough"), [(None, True), (1, False)])
def test_room_for_what_the_model_takes_at_once_is_recommended(
    folder: Path, prefetch_mib: int | None, enough: bool
) -> None:
    operator = Operator(captioner=Hungry(), num_proc=2, prefetch_mib=prefetch_mib, fps=8)
    report = bench(operator, folder, clips=10)
    operator.close()
    (told,) = (note for note in report.notes if "--prefetch-mib is" in note)
    assert "the model takes 4 of these videos at once" in told, "at the batch size that is recommended"
    needed = int(told.split("that is ")[1].split()[0])
    assert report.recommended.get("--prefetch-mib") == (None if enough else needed)
    assert needed > 1


@pytest.mark.parametrize(("workers", "recommended"), [(1, 150), (2, None)])
def test_room_goes_by_the_processes_that_are_recommended(workers: int, recommended: int | None) -> None:
    report = BenchReport(20, workers=2, recommended={"--workers": workers})
    bench_module._recommend_prefetch(report, 2, 50 << 20, in_use=None)
    assert report.recommended.get("--prefetch-mib") == recommended


def test_where_model_and_reading_share_the_cores_it_says_what_they_allow() -> None:
    report = BenchReport(20, [Ceiling("decode", 10.0, "x"), Ceiling("model", 2.0, "x")], pipeline=1.5, workers=1)
    cores = usable_processors()
    report.shared = bench_module._shared(report, cores)
    assert report.shared == pytest.approx(1 / (1 / (10 * cores) + 1 / 2))
    assert bench_module._shared(report, 1) == pytest.approx(min(2.0, cores / (1 / 10 + 1 / 2)))
    out = io.StringIO()
    print_report(report, Console(file=out, width=120))
    assert f"{report.shared:.2f}" in out.getvalue()
    assert f"the pipeline is at {100 * 1.5 / report.shared:.0f} %" in out.getvalue()


def test_the_report_shows_four_speeds_and_a_ratio() -> None:
    report = BenchReport(
        20,
        [Ceiling("decode", 12.5, "2 processes"), Ceiling("prepare", 80.0, "one thread"), Ceiling("model", 9.0, "x")],
        pipeline=8.1,
        bound="model-bound: model at 95 %",
        recommended={"--batch-size": 8, "--workers": 2},
        notes=["a note"],
    )
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    for part in ("12.50", "80.00", "9.00", "8.10", "90 % of the lowest ceiling (model)", "model-bound",
                 "recommended: --batch-size 8 --workers 2", "note: a note"):  # fmt: skip
        assert part in out.getvalue()


@pytest.mark.parametrize(
    ("rows", "what"), [([{"video": "gone.mp4"}], "not_found: .*gone.mp4"), ([{"text": "x"}], "no row has a field")]
)
def test_a_sample_that_cannot_be_read_is_an_error(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    operator = Operator(captioner=Slow())
    with pytest.raises(DataError, match=what):
        bench(operator, source)
    operator.close()


def test_a_captioner_that_looks_at_nothing_has_nothing_to_measure(folder: Path) -> None:
    with pytest.raises(DataError, match="uses no frames"):
        bench(Operator(captioner=ScriptedCaptioner(lambda request, i: "x")), folder)


@pytest.mark.slow
def test_the_command_measures_the_bundled_model(folder: Path) -> None:
    options = ["--model", "reelscribe/shapes", "--device", "cpu", "--max-tokens", "4", "--clips", "6"]
    result = CliRunner().invoke(cli.main, ["bench", str(folder), *options])
    assert result.exit_code == 0, result.output
    for part in ("decode", "prepare", "model", "whole pipeline", "% of the lowest ceiling", "recommended: "):
        assert part in result.stdout
