"""The local runner: counts, order, failures beside the output, and what is noticed before a model is loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reelscribe import (
    DataError,
    FailedSamplesError,
    ModelError,
    ScriptedCaptioner,
    SettingsError,
    VideoCaptioningFromVLMMapper,
)
from reelscribe.data import open_source
from reelscribe.data.jsonl import JsonlSink
from reelscribe.operator import DEFAULT_PROMPT
from reelscribe.rows.data_juicer_rows import DataJuicerRows
from reelscribe.rows.fields import FieldNames
from reelscribe.rows.forms import choose_form
from reelscribe.rows.one_video_rows import CAPTIONS_FIELD, OneVideoRows
from reelscribe.runners.report.progress import LogProgress
from reelscribe.runners.report.summary import RunSummary, print_summary, summary_lines
from reelscribe.runners.run.failures import describe_video
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.writer import MAX_WAITING
from reelscribe.types import CaptionRequest
from rows import Rows, jsonl, load

TOKEN = "<__dj__video>"


def words(request: CaptionRequest, i: int) -> str:
    """`clip3.mp4` and candidate 1 give `clip3 1`; a broken one fails."""
    name = request.video if isinstance(request.video, str) else request.video["path"]
    if "broken" in name:
        raise ValueError(f"{name} is broken")
    return f"{Path(name).stem} {i}"


def operator(fn: Callable[[CaptionRequest, int], str] = words, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn), **parameters)


def listed(count: int) -> Rows:
    return [{"id": i, "text": f"{TOKEN} old {i}", "videos": [f"clip{i}.mp4"]} for i in range(count)]


def single(count: int) -> Rows:
    return [{"id": i, "video": f"clip{i}.mp4"} for i in range(count)]


class LoadsNothing(VideoCaptioningFromVLMMapper):
    """An operator whose model cannot be loaded: what is checked before it shows before it."""

    @property
    def captioner(self) -> Any:
        raise ModelError("the model cannot be loaded")


# rows with a list of videos


@pytest.mark.parametrize(
    ("keep", "keep_original", "expected"),
    [
        ("random_any", True, 10),
        ("random_any", False, 5),
        ("similar_one_simhash", True, 10),
        ("similar_one_simhash", False, 5),
        ("all", True, 20),
        ("all", False, 15),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_row_counts(tmp_path: Path, keep: str, keep_original: bool, expected: int, suffix: str) -> None:
    source, output = jsonl(tmp_path / "in.jsonl", listed(5)), tmp_path / f"out{suffix}"
    summary = caption_file(
        operator(caption_num=3, keep_candidate_mode=keep, keep_original_sample=keep_original), source, output
    )
    rows = load(output)
    assert len(rows) == expected == summary.rows_out
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows), "samples keep their input order"
    assert (summary.rows_in, summary.videos, summary.failed_rows) == (5, 5, 0)
    if keep_original:
        assert rows[0] == listed(1)[0], "the original comes first, untouched"
    if keep == "all":
        texts = [row["text"] for row in rows if row["id"] == 4][-3:]
        assert texts == [f"{TOKEN} clip4 {i} <|__dj__eoc|>" for i in range(3)]


def test_a_failed_row_keeps_its_original_and_is_in_the_failures_file(tmp_path: Path) -> None:
    rows = listed(4)
    rows[2]["videos"] = ["broken.mp4"]
    del rows[2]["id"]
    rows[3]["text"] = TOKEN * 2
    output = tmp_path / "out.jsonl"
    summary = caption_file(operator(), jsonl(tmp_path / "in.jsonl", rows), output)
    assert load(output)[4:] == [rows[2], rows[3]]
    assert load(tmp_path / "out.jsonl.failures.jsonl") == [
        {
            "row": 2,
            "video": "broken.mp4",
            "video_index": 0,
            "kind": "model_error",
            "message": "ValueError: broken.mp4 is broken",
            "attempts": 1,
            "seconds": 0.0,
        },
        {
            "row": 3,
            "id": 3,
            "video": None,
            "video_index": 1,
            "kind": "bad_sample",
            "message": "the text holds 2 video tokens but the sample has 1 videos",
            "attempts": 1,
            "seconds": 0.0,
        },
    ]
    assert summary.failures == {"model_error": 1, "bad_sample": 1}
    assert (summary.failed_rows, summary.captions, summary.exit_code) == (2, 2, 3)
    assert summary.failures_path == tmp_path / "out.jsonl.failures.jsonl"


def test_a_run_without_failures_removes_the_failures_file_of_the_last(tmp_path: Path) -> None:
    output, source = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    caption_file(operator(), jsonl(source, [{"videos": ["broken.mp4"]}]), output)
    assert (tmp_path / "out.jsonl.failures.jsonl").exists()
    summary = caption_file(operator(), jsonl(source, listed(1)), output, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.run", "in.jsonl", "out.jsonl"]
    assert (summary.failures_path, summary.exit_code) == (None, 0)


def test_caption_and_failure_fields_are_written_when_asked_for(tmp_path: Path) -> None:
    rows = [{"videos": ["a.mp4", "b.mp4"]}, {"videos": ["broken.mp4"]}]
    output = tmp_path / "out.parquet"
    caption_file(
        operator(caption_key="made", failure_key="why", keep_candidate_mode="all"),
        jsonl(tmp_path / "in.jsonl", rows),
        output,
    )
    made = load(output)
    assert [row["made"] for row in made] == [None, ["a 0", "b 0"], None]
    assert [row["why"] and row["why"]["kind"] for row in made] == [None, None, "model_error"]
    assert pq.read_schema(output).field("made").type == pa.list_(pa.string())


# rows with one video


def test_one_video_a_row_gives_the_row_with_its_captions(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    summary = caption_file(
        operator(caption_num=2, keep_candidate_mode="all"), jsonl(tmp_path / "in.jsonl", single(2)), output
    )
    assert load(output) == [
        {"id": 0, "video": "clip0.mp4", "captions": ["clip0 0", "clip0 1"]},
        {"id": 1, "video": "clip1.mp4", "captions": ["clip1 0", "clip1 1"]},
    ]
    assert summary.captions == 4


def test_one_video_a_row_keeps_one_caption_otherwise(tmp_path: Path) -> None:
    rows: Rows = [{"video": "a.mp4", "text": f"{TOKEN} nothing like it <|__dj__eoc|> the red fox 2 runs {TOKEN}"}]
    output = tmp_path / "out.jsonl"
    options = ["an old car 0", "a blue boat 1", "the red fox 2 runs"]
    caption_file(
        operator(lambda request, i: options[i], caption_num=3, keep_candidate_mode="similar_one_simhash"),
        jsonl(tmp_path / "in.jsonl", rows),
        output,
    )
    assert load(output) == [{**rows[0], "captions": ["the red fox 2 runs"]}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_row_whose_video_failed_has_no_captions_or_is_left_out(tmp_path: Path, suffix: str) -> None:
    rows: Rows = [{"video": "broken.mp4"}, {"video": None}, {"video": "a.mp4"}]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}"
    caption_file(operator(failure_key="why"), source, output)
    made = load(output)
    assert [row["captions"] for row in made] == [None, None, ["a 0"]]
    assert [row["why"] and row["why"]["kind"] for row in made] == ["model_error", None, None]
    caption_file(operator(keep_original_sample=False), source, output, update=True)
    assert load(output) == [{"video": "a.mp4", "captions": ["a 0"]}]
    assert [row["row"] for row in load(tmp_path / f"out{suffix}.failures.jsonl")] == [0]


def test_prompts_and_windows_of_rows_reach_the_model(tmp_path: Path) -> None:
    seen: list[CaptionRequest] = []

    def note(request: CaptionRequest, i: int) -> str:
        seen.append(request)
        return "words"

    source = tmp_path / "in.csv"
    source.write_text("video,ask,start_seconds,end_seconds\na.mp4,What is it?,1.5,2\nb.mp4,,,\nc.mp4,x,soon,\n")
    summary = caption_file(operator(note, prompt_key="ask"), source, tmp_path / "out.jsonl")
    assert [(r.prompt, r.window.start_seconds, r.window.end_seconds) for r in seen] == [
        ("What is it?", 1.5, 2.0),
        (DEFAULT_PROMPT, None, None),
    ]
    assert summary.failures == {"bad_sample": 1}


def test_a_folder_of_videos_is_captioned(tmp_path: Path) -> None:
    for name in ("b/x.mp4", "a.webm", "broken.mov"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(b"")
    output = tmp_path / "clips/captions.jsonl"
    summary = caption_file(operator(), tmp_path / "clips", output)
    assert [row["captions"] for row in load(output)] == [["a 0"], ["x 0"], None]
    assert summary.failed_rows == 1


def test_videos_as_bytes_go_from_parquet_to_parquet(tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows = [{"video": {"bytes": b"\x00\x01", "path": "a.mp4"}}, {"video": {"bytes": b"\xff", "path": "broken"}}]
    pq.write_table(pa.Table.from_pylist(rows), source)
    caption_file(operator(), source, output)
    assert load(output) == [{**rows[0], "captions": ["a 0"]}, {**rows[1], "captions": None}]
    with pytest.raises(DataError, match=r"field 'video': JSON cannot hold bytes"):
        caption_file(LoadsNothing(), source, tmp_path / "out.jsonl")
    assert [describe_video(v) for v in ({"path": "p", "bytes": b""}, {"bytes": b"1234"}, b"", None, 7)] == [
        "p", "<4 bytes>", "<0 bytes>", None, "7"
    ]  # fmt: skip


# which form


@pytest.mark.parametrize(
    ("rows", "column", "form"),
    [
        ([{"videos": ["a"]}], "videos", DataJuicerRows),
        ([{"videos": None, "video": "a"}, {"videos": []}], "video", OneVideoRows),
        ([{"videos": None}, {"text": "x"}], "videos", DataJuicerRows),
        ([{"videos": "a"}], "videos", OneVideoRows),
        ([{"id": 1}, {"video": b"a"}], "video", OneVideoRows),
        ([{"video": None}], "video", OneVideoRows),
        ([], "videos", DataJuicerRows),
    ],
)
def test_the_form_is_seen_from_the_rows(rows: Rows, column: str, form: type) -> None:
    assert choose_form(rows, FieldNames()) == form(FieldNames(), column)


def test_the_field_can_be_named() -> None:
    names = FieldNames(video_key="clip")
    assert choose_form([{"clip": {"path": "a"}}], names) == OneVideoRows(names, "clip")
    assert choose_form([{"clip": ["a"]}], names) == DataJuicerRows(names, "clip")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"path": "a.mp4", "text": ""}, r"'videos' or 'video'; the fields are 'path', 'text'.*--video-key"),
        ({"videos": 7}, "got a value of type int"),
        ({"video": "a", CAPTIONS_FIELD: ["mine"]}, "already have a field 'captions'.*--caption-key"),
    ],
)
def test_rows_without_a_form_are_an_error_before_the_model_is_loaded(
    tmp_path: Path, row: dict[str, Any], what: str
) -> None:
    with pytest.raises(DataError, match=what):
        caption_file(LoadsNothing(), jsonl(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl")


def test_captions_replace_a_field_that_is_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4", "captions": "mine"}])
    caption_file(operator(caption_key="captions"), source, tmp_path / "out.parquet")
    assert load(tmp_path / "out.parquet") == [{"video": "a.mp4", "captions": ["a 0"]}]


# before the model is loaded


def test_a_prompt_field_that_no_row_has_stops_the_run_at_once(tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "in.jsonl", listed(3))
    table = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(listed(3)), table)
    for source in (lines, table):
        op = LoadsNothing(prompt_key="ask")
        with pytest.raises(SettingsError, match=r"'ask', but no row has that field; the fields are id, text, videos"):
            caption_file(op, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_prompt_field_that_a_late_row_has_is_fine(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [*listed(30), {"videos": ["a.mp4"], "ask": "What?"}])
    caption_file(operator(lambda request, i: request.prompt, prompt_key="ask"), source, tmp_path / "out.jsonl")
    assert load(tmp_path / "out.jsonl")[-1]["text"] == f"{TOKEN} What? <|__dj__eoc|>"
    with pytest.raises(SettingsError, match="'ask'"):
        caption_file(operator(prompt_key="ask"), source, tmp_path / "out.jsonl", limit=30)


@pytest.mark.parametrize("output", ["in.jsonl", "./sub/../in.jsonl", "link.jsonl"])
def test_an_input_is_never_replaced(tmp_path: Path, output: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", listed(1))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    with pytest.raises(DataError, match="would overwrite the input"):
        caption_file(LoadsNothing(), source, tmp_path / output)
    jsonl(tmp_path / "x.jsonl.failures.jsonl", single(1))
    with pytest.raises(DataError, match="would overwrite the input"):
        caption_file(LoadsNothing(), tmp_path / "x.jsonl.failures.jsonl", tmp_path / "x.jsonl")


def test_cheap_checks_come_first(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", single(1))
    with pytest.raises(DataError, match="no file or folder"):
        caption_file(LoadsNothing(), tmp_path / "nothing.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="format of output"):
        caption_file(LoadsNothing(), source, tmp_path / "out.txt")
    with pytest.raises(DataError, match="cannot write"):
        caption_file(LoadsNothing(), source, source / "out.jsonl")
    with pytest.raises(ModelError, match="cannot be loaded"):
        caption_file(LoadsNothing(), source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


# streaming


def test_rows_stream(tmp_path: Path) -> None:
    """No more rows are between source and sink than the captioner has pulled, and wait to be written."""
    count, ahead, written = 2000, 0, 0

    class Watch:
        def __call__(self, request: CaptionRequest, i: int) -> str:
            nonlocal ahead
            ahead = max(ahead, request.id.row - written)
            return "words"

    class Counter(LogProgress):
        def update(self, so_far: RunSummary) -> None:
            nonlocal written
            written = so_far.rows_in

    source = jsonl(tmp_path / "in.jsonl", single(count))
    summary = caption_file(operator(Watch()), source, tmp_path / "out.jsonl", progress=Counter(print))
    assert summary.rows_in == count
    assert ahead <= MAX_WAITING + 2


def test_order_is_that_of_the_input_whatever_finishes_first(tmp_path: Path) -> None:
    class Backwards(ScriptedCaptioner):
        def caption(self, clips: Any) -> Iterator[Any]:
            yield from reversed(list(super().caption(clips)))

    source = jsonl(tmp_path / "in.jsonl", single(9))
    caption_file(VideoCaptioningFromVLMMapper(captioner=Backwards(words)), source, tmp_path / "out.jsonl")
    assert [row["id"] for row in load(tmp_path / "out.jsonl")] == list(range(9))


def test_a_limit_stops_early_and_the_rest_is_not_read(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", single(3))
    source.write_text(source.read_text() + "no JSON\n")
    assert caption_file(operator(), source, tmp_path / "out.jsonl", limit=3).rows_in == 3
    with pytest.raises(DataError, match=r"in\.jsonl:4"):
        caption_file(operator(), source, tmp_path / "out2.jsonl")
    assert not (tmp_path / "out2.jsonl").exists()


class Interrupt(LogProgress):
    def __init__(self, at: int, exc: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(print)
        self._at, self._exc = at, exc

    def update(self, so_far: RunSummary) -> None:
        if so_far.rows_in == self._at:
            raise self._exc


@pytest.mark.parametrize("exc", [KeyboardInterrupt, ModelError])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_run_that_is_stopped_leaves_the_old_output_and_what_is_done(
    tmp_path: Path, exc: type[BaseException], suffix: str
) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "broken.mp4"}, *single(5)])
    output = tmp_path / f"out{suffix}"
    output.write_text("old")
    with pytest.raises(exc) as caught:
        caption_file(operator(), source, output, progress=Interrupt(3, exc), overwrite=True, part_rows=2)
    folder = tmp_path / f".out{suffix}.run"
    note = "3 rows are finished and kept in {}; rerun the same command without --overwrite to resume"
    assert caught.value.__notes__ == [note.format(folder)]
    assert output.read_text() == "old"
    parts = sorted((folder / "parts").iterdir())
    kind = "parquet" if suffix == ".parquet" else "jsonl"
    assert [part.name for part in parts] == [f"000000.{kind}", f"000001.unfinished.{kind}"]
    rows = [row for part in parts for row in open_source(part)]
    assert [row["captions"] for row in rows] == [None, ["clip0 0"], ["clip1 0"]]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", output.name, folder.name}


def test_a_run_that_is_stopped_before_its_first_row_leaves_nothing(tmp_path: Path) -> None:
    class Stops(ScriptedCaptioner):
        def caption(self, clips: Any) -> Iterator[Any]:
            next(iter(clips))
            raise KeyboardInterrupt
            yield

    source = jsonl(tmp_path / "in.jsonl", single(5))
    with pytest.raises(KeyboardInterrupt) as caught:
        caption_file(VideoCaptioningFromVLMMapper(captioner=Stops(words)), source, tmp_path / "out.jsonl")
    assert caught.value.__notes__ == ["no row was finished, and nothing was written"]
    assert list(tmp_path.iterdir()) == [source]


def test_rows_are_written_while_the_model_goes_on(tmp_path: Path) -> None:
    written = threading.Event()

    class Tells(LogProgress):
        def update(self, so_far: RunSummary) -> None:
            written.set()

    def late(request: CaptionRequest, i: int) -> str:
        assert request.id.row == 0 or written.wait(30)
        return "words"

    source = jsonl(tmp_path / "in.jsonl", single(3))
    summary = caption_file(operator(late), source, tmp_path / "out.jsonl", progress=Tells(print))
    assert summary.rows_in == 3
    assert summary.stages is not None
    assert [stage.name for stage in summary.stages.stages] == ["rows", "write"]


def test_an_error_of_the_output_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: JsonlSink, row: dict[str, Any]) -> None:
        raise DataError("no space left on device")

    monkeypatch.setattr(JsonlSink, "write", full)
    source = jsonl(tmp_path / "in.jsonl", single(5000))
    seen = []
    with pytest.raises(DataError, match="no space left"):
        caption_file(operator(lambda request, i: seen.append(1) or "x"), source, tmp_path / "out.jsonl")
    assert len(seen) < 1000, "it ends soon"
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_that_must_not_skip_stops_at_the_first_failure(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "broken.mp4"}])
    with pytest.raises(FailedSamplesError, match=r"row 1, video 0: model_error: .*skip_op_error"):
        caption_file(operator(skip_op_error=False), source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_operator_is_left_as_it_was(tmp_path: Path) -> None:
    op = operator()
    caption_file(op, jsonl(tmp_path / "in.jsonl", single(1)), tmp_path / "out.jsonl")
    assert op.video_root is None


def test_an_empty_data_set_makes_an_empty_output(tmp_path: Path) -> None:
    summary = caption_file(operator(), jsonl(tmp_path / "in.jsonl", []), tmp_path / "out.parquet")
    assert (summary.rows_in, summary.exit_code, load(tmp_path / "out.parquet")) == (0, 0, [])


# what is told


def test_log_lines_come_now_and_then_and_say_what_is_left() -> None:
    lines: list[str] = []
    now = 0.0
    progress = LogProgress(lines.append, interval_seconds=10, clock=lambda: now)
    progress.say("loading x")
    progress.start(100)
    summary = RunSummary(output=Path("out.jsonl"))
    for _ in range(8):
        now += 3
        summary.rows_in += 1
        summary.videos += 2
        progress.update(summary)
    assert lines == ["loading x", "4 of 100 rows, 8 videos, 0 failed, 0.67 videos/s, 0:04:48 left",
                     "8 of 100 rows, 16 videos, 0 failed, 0.67 videos/s, 0:04:36 left"]  # fmt: skip
    progress.start(None)
    now += 10
    progress.update(summary)
    assert lines[-1] == "8 rows, 16 videos, 0 failed, 1.60 videos/s"


def test_the_bar_shows_videos_failures_and_speed(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from reelscribe.runners.report.progress import BarProgress, choose_progress

    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    progress = choose_progress(terminal, print)
    assert isinstance(progress, BarProgress)
    caption_file(
        operator(),
        jsonl(tmp_path / "in.jsonl", [*single(3), {"video": "broken.mp4"}]),
        tmp_path / "out.jsonl",
        progress=progress,
    )
    assert "4 videos  1 failed" in screen.getvalue()
    assert "0:00:00 left" in screen.getvalue()
    assert isinstance(choose_progress(Console(file=StringIO()), print), LogProgress)


def test_the_summary_counts_by_kind_and_names_the_demonstration_model() -> None:
    from io import StringIO

    from rich.console import Console

    summary = RunSummary(
        output=Path("a folder/out.jsonl"), model="reelscribe/shapes", rows_in=1234, videos=1200, seconds=100
    )
    summary.failures.update({"not_found": 2, "too_long": 7})
    summary.completion_tokens = 5000
    lines = dict(summary_lines(summary))
    assert lines["rows in"] == "1,234"
    assert lines["speed"] == "12.00 videos/s, 50.0 tokens/s"
    assert list(lines)[4:6] == ["  too_long", "  not_found"]
    screen = StringIO()
    print_summary(summary, Console(file=screen, width=60))
    assert "demonstration model" in screen.getvalue()
    assert not RunSummary(output=Path("x"), model="other").notes


@pytest.mark.parametrize(
    ("videos", "shown"), [("broken.mp4", "broken.mp4"), ({"path": "broken.mp4"}, "broken.mp4"), (["broken"], "broken")]
)
def test_a_late_row_with_a_bare_video_fails_alone(tmp_path: Path, videos: Any, shown: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a", "videos": ["x.mp4"]}, {"text": "b", "videos": videos}])
    summary = caption_file(operator(), source, tmp_path / "out.jsonl")
    assert (summary.captions, summary.failed_rows) == (1, 1)
    (failure,) = load(tmp_path / "out.jsonl.failures.jsonl")
    assert (failure["row"], failure["video"]) == (1, shown)
