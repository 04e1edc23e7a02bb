"""Runs that are ended in any way and go on: nothing is done twice, lost or doubled, and the output is the same."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from reelscribe.data import Target, open_source
from reelscribe.errors import TooManyFailuresError
from reelscribe.runners.run.answers import Answers
from reelscribe.runners.run.identity import RunIdentity, command_of
from reelscribe.runners.run.journal import Journal
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import run_folder
from reelscribe.settings import FailureLimit
from reelscribe.types import CaptionRequest, CaptionResult, Failure, RequestId
from rows import Rows, jsonl, load

HERE = Path(__file__).parent
TOKEN = "<__dj__video>"


class Words:
    """Words of a request, and which rows were asked for; `stop_at` ends the run there."""

    def __init__(self, stop_at: int | None = None, broken: tuple[str, ...] = ()) -> None:
        self.asked: list[int] = []
        self.stop_at = stop_at
        self.broken = broken

    def __call__(self, request: CaptionRequest, i: int) -> str:
        if request.id.row == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(request.id.row)
        if Path(request.video).stem in self.broken:
            raise ValueError("broken")
        return f"{Path(request.video).stem} {i} {request.seed % 1000} {request.prompt[:5]}"


def operator(fn: Any, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn), **parameters)


def rows_of(count: int) -> Rows:
    return [{"id": i, "text": f"{TOKEN} old {i}", "videos": [f"clip{i}.mp4"]} for i in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "in.jsonl", rows_of(20))


def stopped(source: Path, output: Path, *, at: int = 12, **parameters: Any) -> Words:
    """A run that is stopped before a row; parts of 5 rows."""
    words = Words(stop_at=at)
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(words, **parameters), source, output, part_rows=5)
    assert not output.exists()
    return words


# going on


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(source: Path, tmp_path: Path, suffix: str) -> None:
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    caption_file(operator(Words()), source, whole, part_rows=5)
    first, second = stopped(source, output), Words()
    summary = caption_file(operator(second), source, output, part_rows=5)
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(first.asked + second.asked) == list(range(20)), "no row is asked for twice"
    assert (summary.rows_in, summary.rows_out, summary.captions, summary.known_rows) == (20, 40, 20, 10)
    assert (summary.videos, summary.known_videos, summary.new_videos) == (20, 12, 8)


def test_a_finished_run_does_nothing_again(source: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    first = caption_file(operator(Words(broken=("clip3",))), source, output)
    before = output.stat()
    summary = caption_file(operator(again), source, output)
    assert (again.asked, summary.is_old) == ([], True)
    assert output.stat().st_mtime_ns == before.st_mtime_ns
    assert summary.as_dict() == first.as_dict()
    assert (summary.exit_code, summary.failures_path) == (3, tmp_path / "out.jsonl.failures.jsonl")
    assert "reelscribe retry" in summary.notes[0]


def test_an_output_that_was_deleted_is_made_again_without_the_model(source: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    caption_file(operator(Words()), source, output)
    whole = output.read_bytes()
    output.unlink()
    caption_file(operator(again), source, output)
    assert (again.asked, output.read_bytes()) == ([], whole)


def test_an_output_of_no_run_is_not_replaced_unless_asked(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    with pytest.raises(DataError, match="--overwrite"):
        caption_file(operator(Words()), source, output)
    assert output.read_text() == "precious"
    caption_file(operator(Words()), source, output, overwrite=True)
    assert len(load(output)) == 40


def test_overwrite_starts_afresh(source: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    stopped(source, output)
    caption_file(operator(again), source, output, overwrite=True)
    assert again.asked == list(range(20))


def test_a_row_with_several_videos_keeps_what_is_answered_of_it(tmp_path: Path) -> None:
    rows = [{"text": TOKEN * 3, "videos": ["a.mp4", "b.mp4", "c.mp4"]}]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    asked: list[str] = []

    def words(request: CaptionRequest, i: int) -> str:
        if request.video == "c.mp4" and asked == ["a.mp4", "b.mp4"]:
            asked.append("stop")
            raise KeyboardInterrupt
        asked.append(request.video)
        return request.video

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(words), source, output)
    caption_file(operator(words), source, output)
    assert asked == ["a.mp4", "b.mp4", "stop", "c.mp4"]


@pytest.mark.parametrize(("cut", "rows"), [(1, 19), (4096, None), (10**9, None)])
def test_a_torn_journal_loses_its_last_records_only(source: Path, tmp_path: Path, cut: int, rows: int | None) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_file(operator(Words()), source, whole)
    stopped_copy = tmp_path / "copy"
    with Journal(run_folder(output)) as journal:  # not closed in order: what the log holds is not moved to the table
        for row in range(19):
            journal.answers.add(RequestId(row, 0), bytes([row]), answer(row), failed=None)
        log = run_folder(output) / "journal.sqlite-wal"
        data = log.read_bytes()
        database = (run_folder(output) / "journal.sqlite").read_bytes()
    stopped_copy.mkdir()
    (stopped_copy / "journal.sqlite").write_bytes(database)
    (stopped_copy / "journal.sqlite-wal").write_bytes(data[: max(0, len(data) - cut)])
    with Journal(stopped_copy) as journal:
        known = [journal.answers.result(RequestId(row, 0), bytes([row])) for row in range(19)]
    found = [one for one in known if one is not None]
    assert found == [answer(row) for row in range(len(found))], "a beginning of what there was"
    assert len(found) < 19
    assert (len(found) == 0) == (cut == 10**9)


def answer(row: int) -> CaptionResult:
    return CaptionResult(RequestId(row, 0), failure=Failure("model_error", f"{row} \ud800 failed", 2, 0.25))


def test_a_journal_that_is_no_database_is_one_clear_line(source: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out.jsonl")
    folder.mkdir()
    (folder / "journal.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DataError, match=r"damaged.*--overwrite"):
        caption_file(operator(Words()), source, tmp_path / "out.jsonl")
    caption_file(operator(Words()), source, tmp_path / "out.jsonl", overwrite=True)
    assert len(load(tmp_path / "out.jsonl")) == 40


# another run


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"prompt": "What happens?"}, 'prompt was null and is now "What happens?"'),
    "seed": ({"seed": 7}, "seed was 0 and is now 7"),
    "keep": ({"keep_candidate_mode": "all"}, 'keep_candidate_mode was "random_any" and is now "all"'),
    "candidates": ({"caption_num": 2}, "caption_num was 1 and is now 2"),
    "sampling": ({"sampling_params": {"temperature": 0.5}}, "sampling_params.temperature was null and is now 0.5"),
    "frames": ({"fps": 1.0}, "fps was null and is now 1.0"),
    "light": ({"tone_map": True}, "tone_map was null and is now true"),
    "shape": ({"pixel_aspect": "display"}, 'pixel_aspect was null and is now "display"'),
    "fields": ({"deinterlace": True}, "deinterlace was null and is now true"),
    "original": ({"keep_original_sample": False}, "keep_original_sample was true and is now false"),
    "limits": ({"max_source_seconds": 5.0}, "max_source_seconds was"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_refused_and_named(source: Path, tmp_path: Path, change: str) -> None:
    output, (parameters, message) = tmp_path / "out.jsonl", CHANGES[change]
    stopped(source, output)
    with pytest.raises(SettingsError) as caught:
        caption_file(operator(Words(), **parameters), source, output)
    assert message in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert "--update" in str(caught.value)


def test_what_only_makes_it_faster_may_change(source: Path, tmp_path: Path) -> None:
    output, rest = tmp_path / "out.jsonl", Words()
    stopped(source, output)
    caption_file(operator(rest, batch_size=3, num_proc=1), source, output, part_rows=5)
    assert rest.asked == list(range(12, 20))


def test_another_input_is_refused_and_named(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    stopped(source, output)
    jsonl(source, rows_of(21))
    with pytest.raises(SettingsError, match="the input files have changed"):
        caption_file(operator(Words()), source, output)
    with pytest.raises(SettingsError, match=r"input was .*in\.jsonl.* and is now .*other\.jsonl"):
        caption_file(operator(Words()), jsonl(tmp_path / "other.jsonl", rows_of(20)), output)


def test_a_longer_limit_is_named_too(source: Path, tmp_path: Path) -> None:
    output, rest = tmp_path / "out.jsonl", Words()
    caption_file(operator(Words()), source, output, limit=5)
    with pytest.raises(SettingsError, match="limit was 5 and is now null"):
        caption_file(operator(Words()), source, output)
    caption_file(operator(rest), source, output, update=True)
    assert (rest.asked, len(load(output))) == (list(range(5, 20)), 40)


@pytest.mark.parametrize("finished", [True, False])
def test_update_does_again_only_what_is_affected(source: Path, tmp_path: Path, finished: bool) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    if finished:
        caption_file(operator(Words()), source, output, part_rows=5)
    else:
        stopped(source, output)
    rows = rows_of(20)
    rows[4]["videos"] = ["other.mp4"]
    rows.insert(2, {"id": "new", "text": TOKEN, "videos": ["new.mp4"]})
    jsonl(source, rows)
    changed = Words()
    op = operator(changed, caption_key="made")  # a field more asks nothing again
    summary = caption_file(op, source, output, update=True, part_rows=5)
    assert changed.asked == ([2, 5] if finished else [2, 5, *range(13, 21)])
    caption_file(operator(Words(), caption_key="made"), source, whole, part_rows=5)
    assert output.read_bytes() == whole.read_bytes()
    assert summary.known_videos == (19 if finished else 11)


def test_an_update_that_is_stopped_goes_on_too(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(Words()), source, output)
    before = output.read_bytes()
    jsonl(source, [*rows_of(20), {"id": 20, "text": TOKEN, "videos": ["a.mp4"]}, {"text": TOKEN, "videos": ["b.mp4"]}])
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=21)), source, output, update=True)
    assert output.read_bytes() == before, "the old output stays until the new one is whole"
    rest = Words()
    caption_file(operator(rest), source, output)
    assert (rest.asked, len(load(output))) == ([21], 44)


def test_another_version_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(source, tmp_path / "out.jsonl")
    monkeypatch.setattr("reelscribe.runners.run.identity.version", lambda package: "99.0")
    with pytest.raises(SettingsError, match=r'version of reelscribe was ".*" and is now "99.0"'):
        caption_file(operator(Words()), source, tmp_path / "out.jsonl")


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_secrets_are_not_written_down(tmp_path: Path, backend: str) -> None:
    secrets = {"token": "hf_SECRET", "hf_token": "hf_SECRET", "proxies": {"https": "u:SECRET@p"}}
    op = VideoCaptioningFromVLMMapper(model_params=secrets, backend=backend)
    source = open_source(jsonl(tmp_path / "in.jsonl", rows_of(1)))
    identity = RunIdentity.of(op, source, Target.of(tmp_path / "out.jsonl"), limit=None)
    command = command_of(op, source, limit=None, failures=None)
    assert "SECRET" not in json.dumps([identity.as_dict(), command])


def test_how_pictures_are_shown_counts_only_where_it_is_set(tmp_path: Path) -> None:
    """So that a run that was started before these settings existed can resume."""
    from reelscribe.models.captioner import ModelSpec
    from reelscribe.video.frames.policy import FrameSettings

    source, target = open_source(jsonl(tmp_path / "in.jsonl", rows_of(1))), Target.of(tmp_path / "out.jsonl")
    names = {"pixel_aspect", "tone_map", "deinterlace", "fit"}

    def writing(**settings: Any) -> dict[str, Any]:
        return RunIdentity.of(VideoCaptioningFromVLMMapper(**settings), source, target, limit=None).writing

    def of_spec(**settings: Any) -> Any:
        spec = ModelSpec("scripted", "x", frames=FrameSettings(**settings))
        return writing(captioner=spec)["captioner.frames"]

    assert not names & set(writing())
    assert writing(tone_map=True)["tone_map"] is True
    assert not names & set(of_spec(fps=1.0))
    assert of_spec(pixel_aspect="display")["pixel_aspect"] == "display"


def test_a_changed_model_folder_is_another_run(tmp_path: Path) -> None:
    from reelscribe.models import model_revision
    from reelscribe.models.captioner import ModelSpec

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    spec = ModelSpec("hf", str(tmp_path))
    before = model_revision(spec)
    assert before == model_revision(spec)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_revision(spec) != before
    assert model_revision(ModelSpec("hf", "no/such-model")) is None
    assert model_revision(ModelSpec("hf", "no/such-model", {"revision": "abc"})) == "abc"


def test_an_update_leaves_a_run_that_can_be_tried_again_and_updated_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(Words(broken=("clip3",))), source, output)
    first, again, third = Words(broken=("clip3",)), Words(), Words()
    caption_file(operator(first, caption_key="made"), source, output, update=True)
    assert first.asked == [3], "what failed is tried again"
    summary = caption_file(operator(again, caption_key="made"), source, output, retry=())
    assert (again.asked, summary.failed_rows) == ([3], 0)
    caption_file(operator(third, caption_key="words"), source, output, update=True)
    output.unlink()
    caption_file(operator(third, caption_key="words"), source, output)
    assert third.asked == []


def test_stricter_limits_ask_everything_again(source: Path, tmp_path: Path) -> None:
    output, looser, stricter = tmp_path / "out.jsonl", Words(), Words()
    caption_file(operator(Words(), max_source_seconds=100.0), source, output)
    caption_file(operator(looser, max_source_seconds=200.0), source, output, update=True)
    caption_file(operator(stricter, media_root=str(tmp_path)), source, output, update=True)
    assert (looser.asked, stricter.asked) == ([], list(range(20)))


def test_keeping_all_asks_again_where_a_candidate_was_empty(source: Path, tmp_path: Path) -> None:
    output, asked = tmp_path / "out.jsonl", []

    def words(request: CaptionRequest, i: int) -> str:
        asked.append(request.id.row)
        return "" if request.id.row == 5 and i == 1 and len(asked) <= 40 else "words"

    caption_file(operator(words, caption_num=2), source, output)
    asked.clear()
    asked.extend([0] * 41)
    summary = caption_file(operator(words, caption_num=2, keep_candidate_mode="all"), source, output, update=True)
    assert (asked[41:], summary.failed_rows) == ([5, 5], 0)


def test_a_revision_that_shows_only_while_loading_is_not_mixed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, revision = tmp_path / "out.jsonl", ["r1"]
    monkeypatch.setattr("reelscribe.runners.run.identity._revision", lambda operator: revision[0])
    stopped(source, output)

    class Loads(VideoCaptioningFromVLMMapper):
        def start(self) -> None:
            revision[0] = "r2"

    with pytest.raises(SettingsError, match='model_revision was "r1" and is now "r2"'):
        caption_file(Loads(captioner=ScriptedCaptioner(Words())), source, output, part_rows=5)
    revision[0], words = "r1", Words()
    caption_file(Loads(captioner=ScriptedCaptioner(words)), source, output, part_rows=5, update=True)
    assert words.asked == list(range(20))


def test_a_spec_that_was_given_is_part_of_what_a_run_is(source: Path, tmp_path: Path) -> None:
    from reelscribe.models.captioner import ModelSpec

    output = tmp_path / "out.jsonl"

    def spec(model: str, template: str) -> VideoCaptioningFromVLMMapper:
        return VideoCaptioningFromVLMMapper(captioner=ModelSpec("scripted", model, {"template": template}))

    caption_file(spec("x", "AAA {video}"), source, output)
    with pytest.raises(SettingsError, match="captioner.model was"):
        caption_file(spec("other", "AAA {video}"), source, output)
    with pytest.raises(SettingsError, match="captioner.options was"):
        caption_file(spec("x", "BBB {video}"), source, output)


def test_a_failed_row_that_was_mended_is_done_where_none_may_fail(source: Path, tmp_path: Path) -> None:
    output, mended = tmp_path / "out.jsonl", Words()
    with pytest.raises(FailedSamplesError):
        caption_file(operator(Words(broken=("clip7",)), skip_op_error=False), source, output)
    caption_file(operator(mended, skip_op_error=False), source, output)
    assert 7 in mended.asked
    assert len(load(output)) == 40


def test_a_run_whose_retry_cannot_load_its_model_is_still_there(source: Path, tmp_path: Path) -> None:
    output, names = tmp_path / "out.jsonl", tuple(f"clip{i}" for i in range(20))

    class LoadsNothing(VideoCaptioningFromVLMMapper):
        def start(self) -> None:
            raise ModelError("no room")

    caption_file(operator(Words(broken=names)), source, output)
    with pytest.raises(ModelError):
        caption_file(LoadsNothing(captioner=ScriptedCaptioner(Words())), source, output, retry=())
    assert caption_file(operator(Words()), source, output, retry=()).failed_rows == 0


# one at a time


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from reelscribe.runners.run.journal import Journal\n"
        "from reelscribe.runners.run.run_folder import run_folder\n"
        f"j = Journal(run_folder(Path({str(output)!r}))); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(DataError, match=rf"another process \(number {holder.pid} on .*\) is writing"):
                caption_file(operator(Words()), source, output, overwrite=overwrite)
    finally:
        holder.kill()
        holder.communicate()
    assert caption_file(operator(Words()), source, output).rows_in == 20


# failures


def test_failed_videos_are_tried_again_and_take_their_places(source: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    caption_file(operator(Words()), source, whole)
    summary = caption_file(operator(Words(broken=("clip3", "clip15"))), source, output)
    assert (summary.failed_rows, len(load(output))) == (2, 38)
    again = Words(broken=("clip15",))
    summary = caption_file(operator(again), source, output, retry=())
    assert (again.asked, summary.failed_rows) == ([3, 15], 1)
    assert [row["row"] for row in load(Path(f"{output}.failures.jsonl"))] == [15]
    caption_file(operator(Words()), source, output, retry=())
    assert output.read_bytes() == whole.read_bytes()
    assert not Path(f"{output}.failures.jsonl").exists()


def test_only_failures_of_a_kind_are_tried_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def words(request: CaptionRequest, i: int) -> str:
        if request.id.row == 1:
            raise ValueError("broken")
        return "" if request.id.row == 2 else "words"

    summary = caption_file(operator(words), source, output)
    assert summary.failures == {"model_error": 1, "empty_caption": 1}
    again = Words()
    summary = caption_file(operator(again), source, output, retry=["empty_caption"])
    assert (again.asked, summary.failures) == ([2], {"model_error": 1})
    nothing = Words()
    summary = caption_file(operator(nothing), source, output, retry=["timeout"])
    assert (nothing.asked, summary.is_old) == ([], True)


def test_an_input_that_has_changed_is_no_input_to_try_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(Words(broken=("clip3",))), source, output)
    before = output.read_bytes()
    jsonl(source, rows_of(19))
    with pytest.raises(SettingsError, match="the input files have changed"):
        caption_file(operator(Words()), source, output, retry=())
    jsonl(source, rows_of(20))
    assert output.read_bytes() == before


def test_the_file_of_failures_replaces_nothing_of_others(source: Path, tmp_path: Path) -> None:
    output, precious = tmp_path / "out.jsonl", tmp_path / "precious.jsonl"
    precious.write_text("mine")
    with pytest.raises(DataError, match="both"):
        caption_file(operator(Words()), source, output, failures=output)
    with pytest.raises(DataError, match="already exists; choose another name"):
        caption_file(operator(Words()), source, output, failures=precious)
    assert precious.read_text() == "mine"
    other = tmp_path / "other.jsonl"
    for _ in range(2):
        summary = caption_file(operator(Words(broken=("clip3",))), source, output, failures=other)
        assert [row["row"] for row in load(other)] == [3]
        assert summary.failures_path == other
        other.unlink()


def test_an_output_inside_the_folder_that_is_read_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": [TOKEN], "videos": [["a.mp4"]]}), tmp_path / "data" / "in.parquet")
    with pytest.raises(DataError, match="is in the input folder"):
        caption_file(operator(Words()), tmp_path / "data", tmp_path / "data" / "out.parquet")
    with pytest.raises(DataError, match="is in the input folder"):
        caption_file(
            operator(Words()), tmp_path / "data", tmp_path / "out.parquet", failures=tmp_path / "data" / "f.parquet"
        )
    caption_file(operator(Words()), tmp_path / "data", tmp_path / "data" / "out.jsonl")


def test_numbers_that_no_type_holds_are_told_with_a_way_out(tmp_path: Path) -> None:
    rows = [{**row, "x": 2**53 + 1 if i < 10 else 0.5} for i, row in enumerate(rows_of(20))]
    source, output, words = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", Words()
    with pytest.raises(DataError, match="no type of a column holds all of its values") as caught:
        caption_file(operator(Words()), source, output, part_rows=10)
    assert "rename it to .out.jsonl.run, and use a .jsonl output with --update" in caught.value.__notes__[0]
    run_folder(output).rename(tmp_path / ".out.jsonl.run")
    caption_file(operator(words), source, tmp_path / "out.jsonl", update=True)
    assert (words.asked, len(load(tmp_path / "out.jsonl"))) == ([], 40)


def test_a_retry_reads_a_linked_input_where_it_was_named(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "store" / "blob", rows_of(3))
    link = tmp_path / "data" / "in.jsonl"
    link.symlink_to(tmp_path / "store" / "blob")
    kept = command_of(VideoCaptioningFromVLMMapper("x"), open_source(link), limit=None, failures=None)
    assert kept is not None
    assert kept["input"] == str(link)


def test_failures_go_where_asked(source: Path, tmp_path: Path) -> None:
    failures = tmp_path / "why" / "failures.parquet"
    caption_file(operator(Words(broken=("clip3",))), source, tmp_path / "out.jsonl", failures=failures)
    assert load(failures) == [
        {
            "row": 3,
            "id": "3",
            "video": "clip3.mp4",
            "video_index": 0,
            "kind": "model_error",
            "message": "ValueError: broken",
            "attempts": 1,
            "seconds": 0.0,
        }
    ]
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "limit"),
    [("3", FailureLimit(rows=3)), ("0", FailureLimit(rows=0)), ("2.5%", FailureLimit(share=0.025))],
)
def test_limits_of_failures_are_read(text: str, limit: FailureLimit) -> None:
    assert FailureLimit.parse(text) == limit


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "3%%", "1.5", "%"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="failure limit"):
        FailureLimit.parse(text)


def test_a_run_that_goes_wrong_stops_and_can_go_on(tmp_path: Path) -> None:
    source, output = jsonl(tmp_path / "in.jsonl", rows_of(500)), tmp_path / "out.jsonl"
    broken = tuple(f"clip{i}" for i in range(0, 500, 2))
    for limit, rows in ((FailureLimit(rows=3), 7), (FailureLimit(share=0.3), 100)):
        with pytest.raises(TooManyFailuresError, match=r"rows failed \(model_error") as caught:
            caption_file(operator(Words(broken=broken)), source, output, max_failures=limit)
        assert f"of {rows} rows" in str(caught.value)
        assert "are finished and kept" in caught.value.__notes__[0]
    rest = Words(broken=broken)
    summary = caption_file(operator(rest), source, output, max_failures=FailureLimit(share=0.6))
    assert (summary.failed_rows, summary.exit_code, len(load(output))) == (250, 3, 750)
    assert len(rest.asked) < 420, "what was done is not done again"


def test_a_share_counts_at_the_end_of_few_rows(source: Path, tmp_path: Path) -> None:
    words = Words(broken=("clip1", "clip2"))
    summary = caption_file(operator(words), source, tmp_path / "out.jsonl", max_failures=FailureLimit(share=0.05))
    assert (summary.exit_code, len(load(tmp_path / "out.jsonl"))) == (4, 38)


# disks


def test_a_full_disk_stops_with_a_line_and_the_run_goes_on(tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"{TOKEN} {'x' * 2000}", "videos": [f"clip{i}.mp4"]} for i in range(400)]
    source, output, whole = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert started("never", 0, source, whole, "--video-key", "videos", limit_bytes=None).returncode in (0, 3)
    full = started("never", 0, source, output, "--video-key", "videos", limit_bytes=600_000)
    assert full.returncode == 1
    assert "error: cannot write" in full.stderr
    assert "rerun the same command to resume" in full.stderr
    assert len([line for line in full.stderr.splitlines() if line.startswith("error")]) == 1
    assert not output.exists()
    assert started("never", 0, source, output, "--video-key", "videos", limit_bytes=None).returncode in (0, 3)
    assert output.read_bytes() == whole.read_bytes()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


def command(stage: str, count: int, source: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, str(HERE / "killed_run.py"), stage, str(count), "caption", str(source), "-o", str(output),
            *options]  # fmt: skip


def started(
    stage: str, count: int, source: Path, output: Path, *options: str, limit_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limits() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        command(stage, count, source, output, *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
        preexec_fn=limits,
    )


# killed


KILLS = [
    ("decode", 1), ("decode", 2), ("caption", 1), ("caption", 37), ("caption", 160), ("caption", 280), ("answer", 3),
    ("answer", -80), ("answer", -200), ("write", 1), ("write", 41), ("write", -120), ("write", 290), ("rename", 1),
    ("rename", -2), ("rename", 5), ("rename", -8), ("part", 2), ("part", -3), ("part", 8), ("join", 1), ("join", -1),
    ("copy", 3), ("failures", -1), ("finish", 1), ("finish", -1),
]  # fmt: skip
"""Stage and how often it is reached before the end; negative: the end comes when the stage is done."""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, video: Callable[[str], Path], suffix: str
) -> None:
    """25 moments in decoding, captioning, writing and finishing for lines, every fifth of them for Parquet."""
    source = jsonl(tmp_path / "in.jsonl", list(mixed_rows(tmp_path, video)))
    whole = tmp_path / f"whole{suffix}"
    done = started("never", 0, source, whole)
    assert done.returncode == 3, done.stderr
    assert len(load(whole)) == 300
    failures = Path(f"{whole}.failures.jsonl")
    for stage, count in KILLS if suffix == ".jsonl" else KILLS[::5]:
        output = tmp_path / f"{stage}{count}{suffix}"
        killed = started(stage, count, source, output)
        assert killed.returncode == -signal.SIGKILL, (stage, count, killed.stderr)
        ended = started("never", 0, source, output)
        assert ended.returncode == 3, (stage, count, ended.stderr)
        assert output.read_bytes() == whole.read_bytes(), (stage, count)
        assert timeless(load(Path(f"{output}.failures.jsonl"))) == timeless(load(failures)), (stage, count)
    assert not list(tmp_path.glob("**/*.part")), "nothing half written stays"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_at_any_time_ends(tmp_path: Path, video: Callable[[str], Path]) -> None:
    source = jsonl(tmp_path / "in.jsonl", list(mixed_rows(tmp_path, video)))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    began = time.monotonic()
    started("never", 0, source, whole)
    took, chance = time.monotonic() - began, random.Random(5)
    kills = 0
    for _ in range(30):
        run = subprocess.Popen(command("never", 0, source, output), stderr=subprocess.PIPE, env=environment())
        try:
            run.communicate(timeout=took * chance.uniform(0.3, 0.8))
            break
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
            kills += 1
    else:
        started("never", 0, source, output)
    assert kills > 0
    assert output.read_bytes() == whole.read_bytes()


def mixed_rows(folder: Path, video: Callable[[str], Path]) -> Iterator[dict[str, Any]]:
    """300 rows: good videos, files that cannot be read, and videos the model fails for."""
    names = ["h264.mp4", "hevc.mp4", "vp9.webm"]
    for i in range(300):
        path = folder / f"{'mute' if i % 31 == 30 else 'clip'}{i}{Path(names[i % 3]).suffix}"
        if i % 17 == 16:
            path.write_bytes(b"no video at all")
        else:
            path.symlink_to(video(names[i % 3]))
        yield {"id": i, "video": str(path)}


def timeless(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_the_bundled_model_goes_on_with_the_same_captions(tmp_path: Path, video: Callable[[str], Path]) -> None:
    """Batches are cut otherwise after a stop, and still the sampled texts are the same."""
    rows = [{"id": i, "text": TOKEN, "videos": [str(video(n))]} for i, n in enumerate(["h264.mp4", "hevc.mp4"] * 8)]
    source = jsonl(tmp_path / "in.jsonl", rows)
    parameters = {"caption_num": 2, "sampling_params": {"temperature": 1.0, "max_tokens": 12}, "batch_size": 4}

    def model() -> VideoCaptioningFromVLMMapper:
        return VideoCaptioningFromVLMMapper("reelscribe/shapes", accelerator="cpu", **parameters)

    class Stops:
        def __init__(self, at: int) -> None:
            self.left = at

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_file(model(), source, whole)
    original = Answers.add

    def add(self: Answers, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        stops()

    stops = Stops(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answers, "add", add)
        with pytest.raises(KeyboardInterrupt):
            caption_file(model(), source, output)
    summary = caption_file(model(), source, output)
    assert summary.known_videos >= 7
    assert output.read_bytes() == whole.read_bytes()


def test_the_journal_is_a_database_anyone_can_read(source: Path, tmp_path: Path) -> None:
    caption_file(operator(Words()), source, tmp_path / "out.jsonl")
    with sqlite3.connect(run_folder(tmp_path / "out.jsonl") / "journal.sqlite") as database:
        assert database.execute("SELECT count(*) FROM results").fetchone() == (20,)
    database.close()
