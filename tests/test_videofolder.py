"""Outputs in a folder that holds a user's files: nothing of theirs is replaced, pieces have names, and it loads."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.data import videofolder
from reelscribe.data.pieces import piece_name
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import run_folder
from reelscribe.types import CaptionRequest, TimeWindow
from rows import jsonl, load

others_leave_files_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Asked:
    """A captioner's function that counts what it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: CaptionRequest, i: int) -> str:
        self.count += 1
        if "broken" in request.video:
            raise ValueError("broken")
        window = request.window
        return f"{Path(request.video).stem} {window.start_seconds} {window.end_seconds} {i}"


def operator(fn: Any = None, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn or Asked()), **parameters)


def clips(folder: Path, *names: str) -> Path:
    """A folder of files with these names, each with its name as content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def refused(source: Path, output: Path, match: str, **settings: Any) -> None:
    """A run is refused before anything is asked or written."""
    asked = Asked()
    before = _content(output.parent)
    with pytest.raises(DataError, match=match):
        caption_file(operator(asked), source, output, format="videofolder", **settings)
    assert asked.count == 0
    assert _content(output.parent) == before


def _content(folder: Path) -> dict[str, Any]:
    """All that is in a folder, links as links."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if ".run" not in name and ".cache" not in name:
            found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


# what is there already


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"xxxxx"])
def test_a_video_of_the_same_name_is_not_replaced(tmp_path: Path, theirs: bytes) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4", "b.mp4"), tmp_path / "out"
    out.mkdir()
    (out / "b.mp4").write_bytes(theirs)
    refused(source, out, r"b\.mp4' already exists, and is a different video from .*--overwrite", with_videos=True)
    caption_file(operator(), source, out, format="videofolder", with_videos=True, overwrite=True)
    assert (out / "b.mp4").read_bytes() == b"b.mp4"


def test_a_video_of_the_same_size_and_time_is_told_from_another(tmp_path: Path) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4"), tmp_path / "out"
    out.mkdir()
    (out / "a.mp4").write_bytes(b"xxxxx")
    for path in (source / "a.mp4", out / "a.mp4"):
        os.utime(path, ns=(10**18, 10**18))
    refused(source, out, "is a different video", with_videos=True)


def test_a_clip_that_was_replaced_takes_the_place_of_its_copy_once_that_is_moved_away(tmp_path: Path) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4", "b.mp4"), tmp_path / "out"
    caption_file(operator(), source, out, format="videofolder", with_videos=True)
    (source / "b.mp4").write_bytes(b"another video")
    with pytest.raises(DataError, match="is a different video from .*: move it away$"):
        caption_file(operator(), source, out, format="videofolder", with_videos=True, recheck=True)
    assert (out / "b.mp4").read_bytes() == b"b.mp4"
    (out / "b.mp4").rename(tmp_path / "old.mp4")
    caption_file(operator(), source, out, format="videofolder", with_videos=True, recheck=True)
    assert (out / "b.mp4").read_bytes() == b"another video"


def test_a_copy_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "out"
    out.mkdir()
    (out / "a.mp4").write_bytes(b"a.mp4")
    (out / "b.mp4").symlink_to(source / "b.mp4")
    os.link(source / "c.mp4", out / "c.mp4")
    inodes = [(out / name).lstat().st_ino for name in ("a.mp4", "b.mp4", "c.mp4")]
    caption_file(operator(), source, out, format="videofolder", with_videos=True)
    assert [(out / name).lstat().st_ino for name in ("a.mp4", "b.mp4", "c.mp4")] == inodes
    assert (out / "b.txt").read_text("utf-8").startswith("b ")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "metadata.jsonl", "deep", "metadata.jsonl.failures.jsonl"])
@pytest.mark.parametrize("is_dangling", [False, True])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, is_dangling: bool, overwrite: bool) -> None:
    source, out, theirs = clips(tmp_path / "clips", "a.mp4", "deep/b.mp4"), tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    if name == "deep":
        if is_dangling:
            return
        theirs.mkdir()
    elif not is_dangling:
        theirs.write_bytes(b"theirs")
    (out / name).symlink_to(theirs)
    refused(source, out, "is a link to .*remove it", with_videos=True, overwrite=overwrite)
    assert theirs.exists() != is_dangling
    assert theirs.is_dir() or is_dangling or theirs.read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.mp4", "where a file must go: move it away"),
        ("a.txt", "where a file must go: move it away"),
        ("metadata.jsonl", "where a file must go: move it away"),
        ("metadata.jsonl.failures.jsonl", "where a file must go: move it away"),
    ],
)
def test_a_folder_where_a_file_must_go_is_found_at_the_start(tmp_path: Path, name: str, way_out: str) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4"), tmp_path / "out"
    (out / name).mkdir(parents=True)
    refused(source, out, way_out, with_videos=True)


def test_a_file_where_a_folder_must_go_is_found_at_the_start(tmp_path: Path) -> None:
    source, out = clips(tmp_path / "clips", "deep/a.mp4"), clips(tmp_path / "out", "deep")
    refused(source, out, "is not a folder, where a folder must go", with_videos=True)


def test_names_that_differ_in_case_clash_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = clips(tmp_path / "clips", "A.mp4", "a.mp4"), tmp_path / "out"
    assert not videofolder.ignores_case(tmp_path)
    monkeypatch.setattr(videofolder, "ignores_case", lambda _folder: True)
    refused(source, out, "would share the file", with_videos=True)
    monkeypatch.undo()
    caption_file(operator(), source, out, format="videofolder", with_videos=True)
    assert (out / "A.txt").exists()
    assert (out / "a.txt").exists()


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    source, real, link = clips(tmp_path / "clips", "a.mp4"), tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    caption_file(operator(), source, link, format="videofolder", with_videos=True)
    assert (real / "a.txt").exists()
    (tmp_path / "out.jsonl").symlink_to(real / "rows.jsonl")
    caption_file(operator(), source, tmp_path / "out.jsonl")
    assert (real / "rows.jsonl").is_file()
    assert (tmp_path / "out.jsonl").is_symlink()


@pytest.mark.parametrize("place", ["", "parts", "journal.sqlite", "owner.json", "parts/000000.jsonl", "answers"])
def test_a_run_folder_with_links_is_refused(tmp_path: Path, place: str) -> None:
    source, output, theirs = clips(tmp_path / "clips", "a.mp4"), tmp_path / "out.jsonl", tmp_path / "theirs"
    folder = run_folder(output)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs.mkdir()
    path.symlink_to(theirs / "file" if "." in place else theirs)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="is a link to .*remove it"):
            caption_file(operator(), source, output, overwrite=overwrite)
    assert not any(theirs.iterdir())
    assert not output.exists()


@pytest.mark.parametrize("name", [".cache", ".cache/huggingface", ".cache/huggingface/reelscribe"])
def test_a_link_on_the_way_to_the_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder, theirs = clips(tmp_path / "clips", "a.mp4"), tmp_path / "theirs"
    theirs.mkdir()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(theirs)
    with pytest.raises(DataError, match="is a link to"):
        caption_file(operator(), folder, folder, format="videofolder")
    assert not any(theirs.iterdir())


def test_a_journal_with_a_second_name_is_refused(tmp_path: Path) -> None:
    source, output, theirs = clips(tmp_path / "clips", "a.mp4"), tmp_path / "out.jsonl", tmp_path / "theirs"
    caption_file(operator(), source, output)
    os.link(run_folder(output) / "journal.sqlite", theirs)
    before = theirs.read_bytes()
    with pytest.raises(DataError, match="has a second name elsewhere"):
        caption_file(operator(), source, output)
    assert theirs.read_bytes() == before


def test_the_file_of_failures_is_not_written_through_a_link(tmp_path: Path) -> None:
    source, theirs = clips(tmp_path / "clips", "a.mp4"), tmp_path / "theirs"
    theirs.write_text("theirs")
    (tmp_path / "out.jsonl.failures.jsonl").symlink_to(theirs)
    with pytest.raises(DataError, match="the failures file .* is a link to"):
        caption_file(operator(), source, tmp_path / "out.jsonl")
    assert theirs.read_text() == "theirs"


def test_an_overwrite_that_was_ended_still_may_replace_videos(tmp_path: Path) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4", "b.mp4"), tmp_path / "out"
    out.mkdir()
    (out / "b.mp4").write_bytes(b"other")

    def stop(request: CaptionRequest, _i: int) -> str:
        if "b.mp4" in request.video:
            raise KeyboardInterrupt
        return "one"

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stop), source, out, format="videofolder", with_videos=True, overwrite=True)
    assert (out / "b.mp4").read_bytes() == b"other"
    caption_file(operator(lambda _request, _i: "two"), source, out, format="videofolder", with_videos=True)
    assert (out / "b.mp4").read_bytes() == b"b.mp4"
    assert (out / "a.txt").read_text() == "one"


# parts of videos


def windows(folder: Path, *rows: tuple[float | None, float | None], video: str = "a.mp4") -> Path:
    """A data file whose rows are about parts of one video."""
    return jsonl(
        folder / "rows.jsonl", [{"video": video, "start_seconds": start, "end_seconds": end} for start, end in rows]
    )


def test_captions_of_parts_have_names_of_their_own(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    given = [(0, 1), (1, 2.5), (0.25, None), (None, 3), (None, None), (10, 20), (2, 20)]
    caption_file(operator(), windows(folder, *given), folder, format="videofolder")
    names = ["a.-00003.txt", "a.00000-00001.txt", "a.00000_25-end.txt", "a.00001-00002_5.txt", "a.00002-00020.txt",
             "a.00010-00020.txt", "a.txt"]  # fmt: skip
    assert sorted(path.name for path in folder.glob("*.txt")) == names
    assert (folder / "a.00001-00002_5.txt").read_text() == "a 1.0 2.5 0"
    table = load(folder / "metadata.jsonl")
    assert [row["file_name"] for row in table] == ["a.mp4"] * 7
    assert [row["end_seconds"] for row in table] == [end for _, end in given]


def test_two_rows_of_one_part_are_refused(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    way_out = r"captions of two rows of 'a\.mp4' would share the file .*a time window of its own .*or write another"
    refused(windows(folder, (0, 1), (1, 2), (0, 1.0)), folder, way_out)
    refused(windows(folder, (None, None), (None, None)), folder, way_out)


def test_fields_of_the_row_do_not_stand_for_ours(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    row = {"file_name": "a.mp4", "caption": "old", "original_caption": "older"}
    source = jsonl(folder / "rows.jsonl", [row])
    caption_file(operator(video_key="file_name"), source, folder, format="videofolder")
    assert load(folder / "metadata.jsonl") == [
        {"file_name": "a.mp4", "caption": "a None None 0", "original_caption": "older",
         "original_original_caption": "old"},
    ]  # fmt: skip


def test_parts_are_not_put_where_they_would_be_read(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    with pytest.raises(DataError, match="would be read as inputs from"):
        caption_file(operator(end_seconds=1), folder, folder, format="videofolder", with_videos=True, cut="copy")


def test_what_a_killed_run_left_is_removed_and_no_more(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    left = [".metadata.jsonl.12-abcdef.part", ".metadata.jsonl.12-abcdef.jsonl",
            "..metadata.jsonl.12-abcdef.jsonl.12-abcdef.part"]  # fmt: skip
    theirs = [".metadata.jsonl.mine.part", ".metadata.jsonl.12-abcdef.part.txt", ".other.jsonl.12-abcdef.part"]
    clips(folder, *left, *theirs)
    caption_file(operator(), folder, folder, format="videofolder")
    there = {path.name for path in folder.iterdir()}
    assert there >= set(theirs)
    assert not there & set(left)


@pytest.mark.parametrize("form", ["webdataset", "datasets"])
def test_a_folder_that_was_not_whole_is_no_obstacle(tmp_path: Path, form: str) -> None:
    source, out = clips(tmp_path / "clips", "a.mp4"), tmp_path / "out"
    (tmp_path / ".out.123-abcdef.part" / "more").mkdir(parents=True)
    caption_file(operator(), source, out, format=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.run", "clips", "out"]


def test_a_window_for_all_videos_names_nothing(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    caption_file(operator(start_seconds=1, end_seconds=2), folder, folder, format="videofolder")
    assert (folder / "a.txt").read_text() == "a 1.0 2.0 0"


def test_a_part_is_not_taken_for_another_video(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "a.00000-00001.mp4")
    rows = [{"video": "a.mp4", "start_seconds": 0, "end_seconds": 1}, {"video": "a.00000-00001.mp4"}]
    refused(jsonl(folder / "rows.jsonl", rows), folder, "would share the file")


SECONDS = st.none() | st.floats(min_value=0, max_value=1e7, allow_nan=False) | st.integers(0, 10**6)


@given(st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS))
def test_different_windows_have_different_names(one: Any, other: Any) -> None:
    windows_ = [
        TimeWindow(*sorted(pair, key=lambda x: (x is None, x)) if None not in pair else pair) for pair in (one, other)
    ]
    names = [piece_name(window) for window in windows_]
    assert (names[0] == names[1]) == (windows_[0] == windows_[1])
    assert all(set(name) <= set("0123456789_-end") for name in names)


@given(st.lists(st.floats(min_value=0, max_value=99_999, allow_nan=False), min_size=2, max_size=2, unique=True))
def test_names_sort_by_time(starts: list[float]) -> None:
    low, high = sorted(starts)
    assert piece_name(TimeWindow(low, None)) < piece_name(TimeWindow(high, None))
    assert piece_name(TimeWindow(0, low)) + ".mp4" < piece_name(TimeWindow(0, high)) + ".mp4"


# loading


@others_leave_files_open
@pytest.mark.parametrize("with_videos", [False, True])
@pytest.mark.parametrize("names", [("a.mp4",), ("a.mp4", "deep/b.mkv", "deep/er/test.mp4", "broken.mp4")])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_the_folder_loads_as_videos_with_captions(
    tmp_path: Path, names: tuple[str, ...], with_videos: bool, table: str
) -> None:
    folder = clips(tmp_path / "clips", *names)
    out = tmp_path / "out" if with_videos else folder
    caption_file(operator(), folder, out / table, format="videofolder", with_videos=with_videos)
    for name in names:
        (out / name).with_suffix(".txt").touch()  # more texts than anything else
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    rows = found["train"].cast_column("video", datasets.Video(decode=False))
    good = [name for name in names if name != "broken.mp4"]
    assert found["train"].features["video"] == datasets.Video()
    assert {row["video"]["path"]: row["caption"] for row in rows} == {
        str(out / name): f"{Path(name).stem} None None 0" for name in good
    }
    gc.collect()


def test_a_card_of_the_user_stays(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "README.md")
    caption_file(operator(), folder, folder, format="videofolder")
    assert (folder / "README.md").read_text() == "README.md"
    other = clips(tmp_path / "other", "a.mp4")
    (other / "README.md").symlink_to(tmp_path / "nowhere")
    caption_file(operator(), other, other, format="videofolder")
    assert not (tmp_path / "nowhere").exists()


def test_a_card_of_an_earlier_run_follows_the_videos(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    caption_file(operator(), folder, folder, format="videofolder")
    clips(folder, "b.mkv")
    caption_file(operator(), folder, folder, format="videofolder", update=True)
    assert '"**/*.mkv"' in (folder / "README.md").read_text()
    changed = (folder / "README.md").read_text() + "Mine.\n"
    (folder / "README.md").write_text(changed)
    caption_file(operator(), folder, folder, format="videofolder", overwrite=True)
    assert (folder / "README.md").read_text() == changed


def test_uploads_leave_out_the_folder_of_the_run(tmp_path: Path) -> None:
    from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

    folder = clips(tmp_path / "clips", "a.mp4", "deep/b.mp4")
    caption_file(operator(), folder, folder, format="videofolder")
    assert (run_folder(folder / "metadata.jsonl") / "journal.sqlite").exists()
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    sent = list(filter_repo_objects(paths, ignore_patterns=DEFAULT_IGNORE_PATTERNS))
    assert sorted(sent) == ["README.md", "a.mp4", "a.txt", "deep/b.mp4", "deep/b.txt", "metadata.jsonl"]
    assert str(tmp_path) not in "".join((folder / name).read_text() for name in sent)


def test_a_run_in_the_place_of_earlier_versions_goes_on(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "b.mp4")
    old = folder / ".metadata.jsonl.run"
    asked = Asked()

    def stop(request: CaptionRequest, i: int) -> str:
        if "b.mp4" in request.video:
            raise KeyboardInterrupt
        return asked(request, i)

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stop), folder, folder, format="videofolder")
    run_folder(folder / "metadata.jsonl").rename(old)
    assert run_folder(folder / "metadata.jsonl") == old
    caption_file(operator(asked), folder, folder, format="videofolder", update=True)
    assert asked.count == 2
    assert load(folder / "metadata.jsonl")[0]["file_name"] == "a.mp4"


def test_nothing_is_left_of_a_run_that_did_nothing(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")

    def stop(_request: CaptionRequest, _i: int) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stop), folder, folder, format="videofolder")
    assert [path.name for path in folder.iterdir()] == ["a.mp4"]


# saved data sets


@others_leave_files_open
def test_a_saved_data_set_has_relative_paths_or_the_videos(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips", "a.mp4", "broken.mp4")
    caption_file(operator(), source, tmp_path / "deep/out", format="datasets")
    found = datasets.load_from_disk(tmp_path / "deep/out")
    assert found["video"] == ["../../clips/a.mp4", "../../clips/broken.mp4"]
    assert found.features["video"] == datasets.Value("string")
    again = caption_file(operator(caption_key="more"), tmp_path / "deep/out", tmp_path / "again.jsonl")
    assert again.rows_in == 2

    caption_file(operator(), source, tmp_path / "whole", format="datasets", with_videos=True)
    found = datasets.load_from_disk(tmp_path / "whole")
    assert found.features["video"] == datasets.Video()
    rows = found.cast_column("video", datasets.Video(decode=False))
    assert rows["video"][0] == {"path": "a.mp4", "bytes": b"a.mp4"}
    assert rows["video"][1] == {"path": "../clips/broken.mp4", "bytes": None}
    gc.collect()


def test_a_saved_data_set_with_videos_needs_one_a_row(tmp_path: Path) -> None:
    clips(tmp_path, "a.mp4")
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": "<__dj__video>", "videos": ["a.mp4"]}])
    with pytest.raises(DataError, match="one video each"):
        caption_file(operator(), rows, tmp_path / "out", format="datasets", with_videos=True)


def test_cutting_needs_a_folder_with_videos(tmp_path: Path, video: Callable[[str], Path]) -> None:
    source = windows(tmp_path, (0, 1), video=str(video("h264.mp4")))
    for settings in ({"format": "videofolder"}, {"format": "webdataset", "with_videos": True}):
        with pytest.raises(SettingsError, match="--cut must be copy or exact and requires"):
            caption_file(operator(), source, tmp_path / "out", cut="copy", **settings)
