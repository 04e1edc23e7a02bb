"""Runs between two commands: inputs that change or hold the output, outputs and journals that were touched, locks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.data import open_source
from reelscribe.runners.report.progress import LogProgress
from reelscribe.runners.report.summary import RunSummary
from reelscribe.runners.run import answers as answers_module
from reelscribe.runners.run.journal import Journal
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import DATABASE, PARTS, run_folder
from reelscribe.types import CaptionRequest
from rows import Rows, jsonl, load


class Words:
    """A caption of the video's name; a video whose file holds `broken` fails. Knows whom it was asked about."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_at = stop_at

    def __call__(self, request: CaptionRequest, i: int) -> str:
        if request.id.row == self.stop_at:
            raise KeyboardInterrupt
        path = Path(request.video)
        self.asked.append(path.name)
        if path.exists() and path.read_bytes() == b"broken":
            raise ValueError("broken")
        return f"{path.stem} {request.prompt[:5]}"


def operator(fn: Any = None, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn or Words()), **parameters)


def lines_of(progress: list[str]) -> str:
    return "\n".join(progress)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "more/c.mp4", "d.mp4"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "in.jsonl", [{"id": i, "video": f"clip{i}.mp4"} for i in range(10)])


# a folder is its names


def test_a_retry_asks_about_a_video_that_was_fixed(clips: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    (clips / "b.mp4").write_bytes(b"broken")
    assert caption_file(operator(), clips, output).failed_rows == 1
    (clips / "b.mp4").write_bytes(b"whole again")
    summary = caption_file(operator(again), clips, output, retry=())
    assert (again.asked, summary.failed_rows) == (["b.mp4"], 0)
    assert caption_file(operator(), clips, output).is_old, "the same command goes by names too"


def test_a_single_video_that_was_fixed_is_tried_again(clips: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    (clips / "b.mp4").write_bytes(b"broken")
    caption_file(operator(), clips / "b.mp4", output)
    (clips / "b.mp4").write_bytes(b"whole again")
    assert caption_file(operator(again), clips / "b.mp4", output, retry=()).failed_rows == 0


def test_other_names_are_another_input_and_a_retry_names_options_that_there_are(clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), clips, output)
    (clips / "new.mp4").write_bytes(b"new")
    with pytest.raises(SettingsError, match="the input files have changed") as caught:
        caption_file(operator(), clips, output, retry=())
    assert "`reelscribe caption` command that wrote the output, with --update" in str(caught.value)
    assert "--overwrite" not in str(caught.value)
    added = Words()
    caption_file(operator(added), clips, output, update=True)
    assert added.asked == ["new.mp4"]


@pytest.mark.parametrize("retry", [None, ()])
@pytest.mark.parametrize("kind", ["folder", "rows"])
def test_recheck_asks_about_videos_that_were_replaced(clips: Path, tmp_path: Path, kind: str, retry: Any) -> None:
    output, again, said = tmp_path / "out.jsonl", Words(), list[str]()
    videos = sorted(clips.rglob("*.mp4"))
    rows = [{"video": os.path.relpath(path, tmp_path)} for path in videos]
    data = clips if kind == "folder" else jsonl(tmp_path / "in.jsonl", rows)
    caption_file(operator(), data, output)
    (clips / "b.mp4").write_bytes(b"another video")
    (clips / "d.mp4").unlink()
    if kind == "folder":
        (clips / "d.mp4").symlink_to("gone")
    plain = caption_file(operator(again), data, output, retry=retry)
    assert (plain.is_old, again.asked) == (True, []), "videos are not looked at unasked"
    caption_file(operator(again), data, output, retry=retry, recheck=True, progress=LogProgress(said.append))
    assert again.asked == ["b.mp4"]
    assert "1 videos were replaced" in lines_of(said)
    assert "1 videos no longer exist and keep their captions" in lines_of(said)
    nothing = Words()
    assert caption_file(operator(nothing), data, output, retry=retry, recheck=True).is_old
    assert nothing.asked == []


def test_recheck_finds_videos_also_behind_an_update(clips: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.jsonl", Words()
    caption_file(operator(), clips, output)
    caption_file(operator(caption_key="captions"), clips, output, update=True)
    (clips / "b.mp4").write_bytes(b"another video")
    caption_file(operator(again, caption_key="words"), clips, output, update=True, recheck=True)
    assert again.asked == ["b.mp4"]


def test_a_video_that_is_replaced_while_it_is_captioned_is_found(clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def replaces(request: CaptionRequest, i: int) -> str:
        Path(request.video).write_bytes(b"another video, later")
        return "of the one before"

    caption_file(operator(replaces), clips / "a.mp4", output)
    again = Words()
    caption_file(operator(again), clips / "a.mp4", output, recheck=True)
    assert again.asked == ["a.mp4"]


def test_a_run_of_an_earlier_version_goes_on(clips: Path, tmp_path: Path) -> None:
    """Its identity has sizes and times of the videos, its journal neither marks nor digests."""
    from reelscribe.runners.run.identity import _files_digest

    output, rest = tmp_path / "out.jsonl", Words()
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=2)), clips, output)
    with Journal(run_folder(output)) as journal:
        identity = journal.fact("identity")
        identity["rows"]["input_files"] = _files_digest(open_source(clips).files())
        journal.keep(identity=identity)
        for table in ("written", "making", "edits"):
            journal._database._db.execute(f"DROP TABLE {table}")
        journal._database._db.execute("UPDATE results SET payload = json_remove(payload, '$.m')")
    summary = caption_file(operator(rest), clips, output)
    assert (sorted(rest.asked), summary.rows_in) == (["c.mp4", "d.mp4"], 4)
    assert caption_file(operator(), clips, output, recheck=True).is_old


def test_an_output_of_an_earlier_version_is_kept_beside_the_new_one(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    with Journal(run_folder(output)) as journal:
        journal.keep(made=None)
        journal._database._db.execute("DELETE FROM written")
    before = output.read_bytes()
    summary = caption_file(operator(prompt="Other"), source, output, update=True)
    assert (tmp_path / "out.edited-1.jsonl").read_bytes() == before
    assert "it is unknown what was written by the run" in summary.remarks[0]
    assert "Other" in output.read_text()


# an output inside the folder that is read

INSIDE: dict[str, tuple[str, str | None]] = {
    "jsonl": ("out.jsonl", None),
    "parquet": ("out.parquet", None),
    "parquet below": ("more/out.parquet", None),
    "tar": ("out.tar", None),
    "tar below": ("new/out.tar", None),
    "csv": ("out.csv", None),
    "webdataset": ("shards", "webdataset"),
    "datasets": ("saved", "datasets"),
    "videofolder": ("", "videofolder"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_an_output_in_the_folder_of_videos_is_no_input(clips: Path, name: str) -> None:
    place, format_ = INSIDE[name]
    (clips / "b.mp4").write_bytes(b"broken")
    failures = None if format_ == "datasets" else clips / "why.parquet"
    given: dict[str, Any] = {"format": format_, "failures": failures}
    first = caption_file(operator(), clips, clips / place, **given)
    assert (first.rows_in, first.failed_rows) == (4, 1)
    assert caption_file(operator(), clips, clips / place, **given).is_old
    (clips / "b.mp4").write_bytes(b"whole")
    again = Words()
    assert caption_file(operator(again), clips, clips / place, retry=(), **given).rows_in == 4
    assert again.asked == ["b.mp4"]
    more = caption_file(operator(prompt="Other"), clips, clips / place, update=True, **given)
    assert (more.rows_in, more.failed_rows) == (4, 0)


def test_a_second_output_beside_the_first_reads_the_videos(clips: Path) -> None:
    caption_file(operator(), clips, clips / "one.parquet")
    caption_file(operator(), clips, clips / "shards", format="webdataset")
    assert caption_file(operator(), clips, clips / "two.jsonl").rows_in == 4
    shutil.copy(clips / "one.parquet", clips / "of the user.parquet")
    with pytest.raises(DataError, match="contains Parquet files and videos"):
        caption_file(operator(), clips, clips / "three.jsonl")


def test_an_edited_output_that_was_kept_is_no_input_either(clips: Path) -> None:
    import pyarrow.parquet as pq

    output = clips / "out.parquet"
    caption_file(operator(), clips, output)
    pq.write_table(pq.read_table(output).slice(1), output)
    caption_file(operator(prompt="Other"), clips, output, update=True)
    assert (clips / "out.edited-1.parquet").exists()
    assert caption_file(operator(prompt="Other"), clips, output).is_old


@pytest.mark.parametrize("pattern", ["*.parquet", "part-*.parquet"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_output_that_a_pattern_would_find_is_no_input(tmp_path: Path, pattern: str, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i in range(2):
        pq.write_table(pa.table({"video": [f"clip{i}.mp4"]}), tmp_path / f"part-{i}.parquet")
    output = tmp_path / f"part-x{suffix}"
    for is_old in (False, True):
        summary = caption_file(operator(), str(tmp_path / pattern), output)
        assert (summary.rows_in, summary.is_old) == (2, is_old)


def test_shards_in_the_folder_of_shards_are_no_input(tmp_path: Path, clips: Path) -> None:
    shards = tmp_path / "shards"
    caption_file(operator(), clips, shards, format="webdataset", with_videos=True)
    caption_file(operator(), clips, tmp_path / "unrelated.jsonl")
    shutil.rmtree(run_folder(shards))

    def words(request: CaptionRequest, i: int) -> str:
        return "again"

    for is_old in (False, True):
        summary = caption_file(
            operator(words, caption_key="more"), shards, shards / "more", format="webdataset", limit=None
        )
        assert (summary.rows_in, summary.is_old) == (4, is_old)


def test_a_file_in_the_folder_of_a_saved_data_set_is_not_a_part_of_it(tmp_path: Path, source: Path) -> None:
    saved = tmp_path / "saved"
    caption_file(operator(), source, saved, format="datasets")
    for is_old in (False, True):
        assert caption_file(operator(caption_key="more"), saved, saved / "out.jsonl").is_old == is_old


def test_copies_into_the_folder_that_is_read_are_refused_at_the_start(clips: Path) -> None:
    before = sorted(clips.rglob("*"))
    with pytest.raises(DataError, match="would be read as a new video"):
        caption_file(operator(), clips, clips / "copies", format="videofolder", with_videos=True)
    assert sorted(clips.rglob("*")) == before
    assert caption_file(operator(), clips, clips, format="videofolder", with_videos=True).rows_in == 4
    assert caption_file(operator(), clips, clips, format="videofolder", with_videos=True).is_old


# inputs that grow


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv"])
@pytest.mark.parametrize("ends", [True, False])
def test_rows_that_are_appended_are_left_to_the_next_update(tmp_path: Path, suffix: str, ends: bool) -> None:
    source, output = tmp_path / f"in{suffix}", tmp_path / "out.jsonl"
    whole = ends or suffix not in (".jsonl", ".csv")
    append(source, list(range(10)), last_end=whole, header=True)

    def grows(request: CaptionRequest, i: int) -> str:
        if request.id.row == 1:
            append(source, [10, 11], before="" if whole else "\n")
        return "words"

    summary = caption_file(operator(grows), source, output)
    assert (summary.rows_in, len(load(output))) == (10, 10)
    assert "has grown by" in summary.remarks[0]
    assert "--update" in summary.remarks[0]
    with pytest.raises(SettingsError, match=r"the input files have changed"):
        caption_file(operator(), source, output)
    rest = Words()
    assert caption_file(operator(rest), source, output, update=True).remarks == []
    assert (rest.asked, len(load(output))) == (["clip10.mp4", "clip11.mp4"], 12)


def append(path: Path, numbers: list[int], *, before: str = "", last_end: bool = True, header: bool = False) -> None:
    import gzip

    import pyarrow as pa

    rows = [json.dumps({"video": f"clip{i}.mp4"}) for i in numbers]
    if path.suffix == ".csv":
        rows = [*(["video"] if header else []), *(f"clip{i}.mp4" for i in numbers)]
    data = (before + "\n".join(rows) + ("\n" if last_end else "")).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    with path.open("ab") as file:
        file.write(data)


def test_a_stopped_run_whose_input_has_grown_says_by_how_much(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=5)), source, output)
    append(source, [10])
    with pytest.raises(SettingsError, match=r"the input files have changed \(by \d+ bytes: rows were added\)"):
        caption_file(operator(), source, output)


# time left


def test_rows_that_were_answered_before_are_neither_done_nor_left() -> None:
    from reelscribe.runners.report.progress import _time_left

    summary = RunSummary(rows_in=60, known_rows=20, replayed_rows=30, answers_left=0)
    assert _time_left(summary, 100, 20.0) == "0:01:20 left", "10 rows in 20 s, 40 to come"
    summary = RunSummary(rows_in=60, known_rows=20, replayed_rows=30, answers_left=35)
    assert _time_left(summary, 100, 20.0) == "0:00:10 left", "of which 35 are known"
    assert _time_left(RunSummary(rows_in=50, known_rows=20, replayed_rows=30), 100, 20.0) == ""


@pytest.mark.parametrize("retry", [None, ()])
def test_a_run_counts_what_it_replays(source: Path, tmp_path: Path, retry: Any) -> None:
    output, seen = tmp_path / "out.jsonl", list[tuple[int, int, int, int]]()

    class Sees(LogProgress):
        def update(self, so_far: RunSummary) -> None:
            seen.append((so_far.rows_in, so_far.replayed_rows, so_far.answers_left, so_far.new_videos))

    if retry is None:
        with pytest.raises(KeyboardInterrupt):
            caption_file(operator(Words(stop_at=6)), source, output, part_rows=4)
        expected = [(5, 1, 1, 0), (6, 2, 0, 0), (7, 2, 0, 1), (8, 2, 0, 2), (9, 2, 0, 3), (10, 2, 0, 4)]
    else:

        def fails(request: CaptionRequest, i: int) -> str:
            if request.id.row == 1:
                raise ValueError("broken")
            return "words"

        caption_file(operator(fails), source, output)
        expected = [(1, 1, 8, 0), (2, 1, 8, 1), *((i, i - 1, 10 - i, 1) for i in range(3, 11))]
    caption_file(operator(), source, output, part_rows=4, retry=retry, progress=Sees(print))
    assert seen == expected


# outputs and journals that somebody touched


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv", "out.tar", "out.jsonl.gz"])
def test_an_output_that_was_cut_off_is_noticed(source: Path, tmp_path: Path, name: str) -> None:
    output, whole = tmp_path / name, tmp_path / f"whole-{name}"
    caption_file(operator(), source, output)
    caption_file(operator(), source, whole)
    data = output.read_bytes()
    cut = data[: len(data) * 3 // 5]
    output.write_bytes(cut)
    summary = caption_file(operator(), source, output)
    assert summary.is_old
    assert "has changed since the run finished" in summary.remarks[0]
    assert output.read_bytes() == cut, "it may be what somebody wanted"
    again, said = Words(), list[str]()
    summary = caption_file(operator(again), source, output, update=True, progress=LogProgress(said.append))
    assert again.asked == []
    assert "has changed" in lines_of(said)
    assert list(open_source(output)) == list(open_source(whole))
    assert next(tmp_path.glob("out.edited-1*")).read_bytes() == cut
    assert caption_file(operator(), source, output).remarks == []


def test_an_output_that_was_removed_is_made_again_and_said(source: Path, tmp_path: Path) -> None:
    output, said = tmp_path / "out.jsonl", list[str]()
    caption_file(operator(), source, output)
    output.unlink()
    again = Words()
    caption_file(operator(again), source, output, progress=LogProgress(said.append))
    assert "no longer exists; rebuilding it from the journal" in lines_of(said)
    assert (again.asked, len(load(output))) == ([], 10)


def test_a_text_that_was_removed_is_noticed(clips: Path) -> None:
    caption_file(operator(), clips, clips, format="videofolder")
    (clips / "a.txt").unlink()
    summary = caption_file(operator(), clips, clips, format="videofolder")
    assert "1 row missing" in summary.remarks[0]
    caption_file(operator(), clips, clips, format="videofolder", update=True)
    assert (clips / "a.txt").read_text() == "a Descr"


@pytest.mark.parametrize("what", ["all of it", "the journal"])
@pytest.mark.parametrize("when", [2, 9])
def test_a_run_folder_that_is_removed_in_mid_run_is_one_line_and_nothing_is_lost(
    source: Path, tmp_path: Path, what: str, when: int
) -> None:
    output, first = tmp_path / "out.jsonl", Words()
    folder = run_folder(output)

    def removes(request: CaptionRequest, i: int) -> str:
        if request.id.row == when:
            if what == "the journal":
                (folder / DATABASE).unlink()
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return first(request, i)

    with pytest.raises(DataError, match=r"was removed (or replaced )?during the run"):
        caption_file(operator(removes), source, output, part_rows=4)
    assert not output.exists()
    rest = Words()
    caption_file(operator(rest), source, output, part_rows=4)
    assert sorted(first.asked + rest.asked) == sorted(f"clip{i}.mp4" for i in range(10))
    assert len(load(output)) == 10


def test_parts_that_are_removed_in_mid_run_are_one_line_and_made_again(source: Path, tmp_path: Path) -> None:
    from threading import Event

    output, first, written = tmp_path / "out.jsonl", Words(), Event()

    class Sees(LogProgress):
        def update(self, so_far: RunSummary) -> None:
            if so_far.rows_in == 5:
                written.set()

    def removes(request: CaptionRequest, i: int) -> str:
        if request.id.row == 9:
            assert written.wait(30)
            shutil.rmtree(run_folder(output) / PARTS, ignore_errors=True)
        return first(request, i)

    with pytest.raises(DataError, match=r"was removed during the run; rerun the same command to make"):
        caption_file(operator(removes), source, output, part_rows=4, progress=Sees(print))
    rest = Words()
    caption_file(operator(rest), source, output, part_rows=4)
    assert (rest.asked, len(load(output))) == ([], 10)


def test_a_run_folder_that_is_removed_is_noticed_between_two_parts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "LOOK_SECONDS", 0.0)
    output, first = tmp_path / "out.jsonl", Words()

    def removes(request: CaptionRequest, i: int) -> str:
        if request.id.row == 2:
            shutil.rmtree(run_folder(output), ignore_errors=True)
        return first(request, i)

    with pytest.raises(DataError, match="restored with all answers"):
        caption_file(operator(removes), source, output)
    assert len(first.asked) < 10


# one output, several names


def test_a_link_and_what_it_leads_to_are_one_output(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, real = tmp_path / "link.jsonl", tmp_path / "store" / "real.jsonl"
    link.symlink_to(real)
    assert run_folder(link) == run_folder(real)

    def other(request: CaptionRequest, i: int) -> str:
        if request.id.row == 1:
            for output in (link, real):
                with pytest.raises(DataError, match="another process"):
                    caption_file(operator(), source, output)
        return "words"

    caption_file(operator(other), source, link)
    assert link.is_symlink()
    assert len(load(real)) == 10
    assert caption_file(operator(), source, real).is_old


def test_a_run_that_was_begun_under_a_link_goes_on(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, real = tmp_path / "link.jsonl", tmp_path / "store" / "real.jsonl"
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(Words(stop_at=5)), source, real)
    link.symlink_to(real)
    run_folder(real).rename(tmp_path / ".link.jsonl.run")
    rest = Words()
    caption_file(operator(rest), source, link)
    assert len(rest.asked) == 5


def test_names_that_differ_in_case_are_one_output_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, lower = tmp_path / "Out.JSONL", tmp_path / "out.jsonl"
    assert run_folder(upper) != run_folder(lower)
    monkeypatch.setattr(Path, "samefile", lambda self, other: str(self).lower() == str(other).lower())
    assert run_folder(upper) == run_folder(lower)


# the commands


def invoke(*arguments: Any) -> Any:
    from reelscribe.cli import main

    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.mark.parametrize("command", ["caption", "retry", "process"])
def test_the_commands_have_the_options(command: str) -> None:
    text = invoke(command, "--help").output
    assert "--recheck" in text
    assert "--discard-edits" in text


def test_a_retry_by_command_finds_a_fixed_video_and_keeps_edits(
    tmp_path: Path, video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import reelscribe.operator as mapper
    from reelscribe.video.frames.moments import FramePolicy

    policy = FramePolicy(min_frames=2, max_frames=2)
    monkeypatch.setattr(
        mapper, "load_captioner", lambda spec: ScriptedCaptioner(lambda request, i: "words", policy=policy)
    )
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(video("h264.mp4"), clips / "a.mp4")
    (clips / "b.mp4").write_bytes(b"no video")
    command = ("caption", clips, "-o", clips, "--format", "videofolder", "--model", "reelscribe/shapes")
    assert invoke(*command).exit_code == 3
    shutil.copy(video("h264.mp4"), clips / "b.mp4")
    (clips / "a.txt").write_text("by hand")
    done = invoke("retry", clips / "metadata.jsonl")
    assert done.exit_code == 0, done.output
    assert "kept 1 caption that was edited by hand" in done.output
    rows: Rows = load(clips / "metadata.jsonl")
    assert [(row["file_name"], row["caption"]) for row in rows] == [("a.mp4", "by hand"), ("b.mp4", "words")]
    assert (clips / "a.txt").read_text() == "by hand"
    assert "nothing was done" in invoke(*command).output
    assert retry_file(clips / "metadata.jsonl").is_old
