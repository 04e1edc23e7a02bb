"""Captions that were corrected by hand in an output are kept, whatever makes the output again."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import render_video
from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.data import open_source
from reelscribe.runners.report.summary import RunSummary, summary_lines
from reelscribe.runners.run.edits import DIGEST_BYTES, digest, plain
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.types import CaptionRequest
from rows import Rows, jsonl, load

TOKEN = "<__dj__video>"


class Words:
    """A caption of the video's name and the prompt; videos named in `broken` fail."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken = broken
        self.asked: list[str] = []

    def __call__(self, request: CaptionRequest, i: int) -> str:
        stem = Path(request.video).stem
        self.asked.append(stem)
        if stem in self.broken:
            raise ValueError("broken")
        return f"{stem} {i} {request.prompt[:5]}"


def operator(fn: Any = None, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn or Words()), **parameters)


def single(count: int) -> Rows:
    return [{"id": i, "video": f"clip{i}.mp4", "note": None if i % 2 else f"n{i}"} for i in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "in.jsonl", single(6))


Change = Callable[[Rows], Rows]


def edit_jsonl(path: Path, change: Change) -> None:
    jsonl(path, change(load(path)))


def edit_parquet(path: Path, change: Change) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def edit_csv(path: Path, change: Change) -> None:
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
    parsed = [{**row, "captions": json.loads(row["captions"]) if row["captions"] else None} for row in rows]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in change(parsed):
            table.writerow({**row, "captions": json.dumps(row["captions"]) if row["captions"] else ""})


def edit_tar(path: Path, change: Change) -> None:
    """The `.json` members alone: whoever edits a tar file need not see to the texts."""
    for shard in sorted(path.glob("*.tar")) if path.is_dir() else [path]:
        with tarfile.open(shard) as old:
            members = [(one, old.extractfile(one).read()) for one in old]  # type: ignore[union-attr]
        rows = change([json.loads(data) for one, data in members if one.name.endswith(".json")])
        by_id = {row["id"]: row for row in rows}
        with tarfile.open(shard, "w") as new:
            for one, data in members:
                if one.name.endswith(".json"):
                    data = json.dumps(by_id[json.loads(data)["id"]]).encode()
                one.size = len(data)
                new.addfile(one, io.BytesIO(data))


def edit_dataset(path: Path, change: Change) -> None:
    from datasets import Dataset, load_from_disk

    rows = change(load_from_disk(str(path)).to_list())
    made = Dataset.from_list(rows)
    shutil.rmtree(path)
    made.save_to_disk(str(path))


def edit_lance(path: Path, change: Change) -> None:
    import lance

    table = lance.dataset(str(path)).to_table()
    lance.write_dataset(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path, mode="overwrite")


FORMATS: dict[str, tuple[str, str | None, Callable[[Path, Change], None]]] = {
    "jsonl": ("out.jsonl", None, edit_jsonl),
    "parquet": ("out.parquet", None, edit_parquet),
    "csv": ("out.csv", None, edit_csv),
    "tar": ("out.tar", None, edit_tar),
    "webdataset": ("shards", "webdataset", edit_tar),
    "lance": ("out.lance", None, edit_lance),
    "datasets": ("saved", "datasets", edit_dataset),
}


def captions_in(path: Path) -> dict[int, Any]:
    found = {}
    for row in open_source(path):
        captions = row["captions"]
        captions = json.loads(captions) if isinstance(captions, str) else captions
        found[int(row["id"])] = captions[0] if captions else None
    return found


def corrected(rows: Rows, **words: str) -> Rows:
    return [{**row, "captions": [words[f"c{row['id']}"]]} if f"c{row['id']}" in words else row for row in rows]


@pytest.mark.parametrize("name", FORMATS)
def test_an_update_keeps_captions_that_were_corrected(source: Path, tmp_path: Path, name: str) -> None:
    file, format_, edit = FORMATS[name]
    output = tmp_path / file
    caption_file(operator(), source, output, format=format_)
    edit(output, lambda rows: corrected(rows, c1="mine, é", c4="mine too"))
    summary = caption_file(operator(prompt="Other"), source, output, format=format_, update=True)
    assert captions_in(output) == {i: f"clip{i} 0 Other" for i in range(6)} | {1: "mine, é", 4: "mine too"}
    assert summary.kept_edits == 2
    assert ("edits", "kept 2 captions that were edited by hand (--discard-edits drops them)") in summary_lines(summary)
    assert sorted(path.name for path in tmp_path.glob("*edited*")) == []
    summary = caption_file(operator(prompt="Third"), source, output, format=format_, update=True)
    assert captions_in(output)[4] == "mine too", "also by the update after the next"
    assert (captions_in(output)[5], summary.kept_edits) == ("clip5 0 Third", 2)
    summary = caption_file(operator(prompt="4th"), source, output, format=format_, update=True, discard_edits=True)
    assert (captions_in(output), summary.kept_edits) == ({i: f"clip{i} 0 4th" for i in range(6)}, 0)
    summary = caption_file(operator(prompt="5th"), source, output, format=format_, update=True)
    assert (captions_in(output)[4], summary.kept_edits) == ("clip4 0 5th", 0), "what was dropped does not come back"


@pytest.mark.parametrize("name", FORMATS)
def test_a_retry_keeps_captions_that_were_corrected(source: Path, tmp_path: Path, name: str) -> None:
    file, format_, edit = FORMATS[name]
    output = tmp_path / file
    caption_file(operator(Words(("clip2", "clip3"))), source, output, format=format_)
    edit(output, lambda rows: corrected(rows, c1="mine", c3="by hand, since it failed"))
    summary = caption_file(operator(), source, output, format=format_, retry=())
    default = "Descr"
    expected = {i: f"clip{i} 0 {default}" for i in range(6)} | {1: "mine", 3: "by hand, since it failed"}
    assert (captions_in(output), summary.kept_edits) == (expected, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_that_was_saved_again_as_it_was_is_not_edited(source: Path, tmp_path: Path, name: str) -> None:
    file, format_, edit = FORMATS[name]
    output = tmp_path / file
    caption_file(operator(), source, output, format=format_)
    edit(output, lambda rows: rows)
    summary = caption_file(operator(), source, output, format=format_)
    assert (summary.is_old, summary.remarks, summary.kept_edits) == (True, [], 0)
    summary = caption_file(operator(prompt="Other"), source, output, format=format_, update=True)
    assert (captions_in(output)[0], summary.kept_edits, summary.remarks) == ("clip0 0 Other", 0, [])


def test_line_ends_and_blanks_are_no_edits(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    output.write_bytes(output.read_bytes().replace(b"\n", b"\r\n").replace(b'": ', b'":  ') + b"\r\n")
    summary = caption_file(operator(prompt="Other"), source, output, update=True)
    assert (summary.kept_edits, summary.remarks) == (0, [])


def test_rows_that_were_moved_keep_their_captions_apart(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    edit_jsonl(output, lambda rows: list(reversed(corrected(rows, c1="mine"))))
    jsonl(source, [{"id": "new", "video": "new.mp4"}, *single(6)])
    caption_file(operator(prompt="Other"), source, output, update=True)
    assert {row["id"]: row["captions"] for row in load(output)}[1] == ["mine"]
    assert [row["id"] for row in load(output)] == ["new", 0, 1, 2, 3, 4, 5]


def test_more_than_edited_captions_is_kept_under_another_name(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)

    def change(rows: Rows) -> Rows:
        rows = corrected(rows, c1="mine")
        return [*rows[:3], {**rows[3], "stars": 5}, rows[5], {"video": "own.mp4", "captions": ["own"]}]

    edit_jsonl(output, change)
    edited = output.read_bytes()
    summary = caption_file(operator(prompt="Other"), source, output, update=True)
    (kept,) = tmp_path.glob("out.edited-1.jsonl")
    assert kept.read_bytes() == edited
    assert captions_in(output) == {i: f"clip{i} 0 Other" for i in range(6)} | {1: "mine"}
    (remark,) = summary.remarks
    for words in ("1 caption edited", "1 row with other fields changed", "1 row added", "1 row missing", str(kept)):
        assert words in remark


def test_one_of_several_rows_with_one_video_is_told_from_the_others(tmp_path: Path) -> None:
    windows = [{"id": 0, "video": "a.mp4", "start_seconds": i, "end_seconds": i + 1} for i in range(3)]
    same = [{"id": "same", "video": "b.mp4", "n": i} for i in range(3)]
    source, output = jsonl(tmp_path / "in.jsonl", [*windows, *same]), tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    rows = load(output)
    rows[1]["captions"], rows[5]["captions"] = ["second window"], ["third row"]
    jsonl(output, rows)
    caption_file(operator(prompt="Other"), source, output, update=True)
    assert [row["captions"][0] for row in load(output)] == [
        "a 0 Other", "second window", "a 0 Other", "b 0 Other", "b 0 Other", "third row"]  # fmt: skip


def test_edits_that_cannot_be_told_apart_are_kept_in_a_file(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "b.mp4"} for _ in range(3)])
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    jsonl(output, [{"video": "b.mp4", "captions": ["mine"]}])
    summary = caption_file(operator(prompt="Other"), source, output, update=True)
    assert load(tmp_path / "out.edited-1.jsonl") == [{"video": "b.mp4", "captions": ["mine"]}]
    assert "cannot be assigned" in summary.remarks[0]


@pytest.mark.parametrize("keep", ["random_any", "all"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_texts_of_generated_rows_are_kept(tmp_path: Path, keep: str, suffix: str) -> None:
    rows = [{"id": i, "text": f"{TOKEN} old {i}", "videos": [f"clip{i}.mp4"]} for i in range(4)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}"
    parameters = {"caption_num": 2, "keep_candidate_mode": keep}
    caption_file(operator(Words(("clip3",)), **parameters), source, output)

    def change(text: str) -> str:
        return text.replace("clip1 1", "MINE 1").replace("old 2", "OLD 2")

    if suffix == ".parquet":
        edit_parquet(output, lambda rows: [{**row, "text": change(row["text"])} for row in rows])
    else:
        output.write_text(change(output.read_text()))
    count = sum("MINE" in str(row) or "OLD" in str(row) for row in open_source(output))
    summary = caption_file(operator(**parameters), source, output, retry=())
    texts = [row["text"] for row in open_source(output)]
    assert summary.kept_edits == count >= 1
    assert f"{TOKEN} OLD 2" in texts
    assert any("MINE 1" in text for text in texts) == (count == 2)
    assert any("clip3" in text for text in texts)
    assert not list(tmp_path.glob("*edited*"))


def test_an_update_that_is_killed_after_the_output_has_its_name_takes_its_own_for_its_own(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reelscribe.runners.run import run as run_module

    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    edit_jsonl(output, lambda rows: corrected(rows, c1="mine"))

    def dies(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_failures", dies)
        with pytest.raises(KeyboardInterrupt):
            caption_file(operator(prompt="Other"), source, output, update=True)
    assert captions_in(output)[0] == "clip0 0 Other"
    summary = caption_file(operator(prompt="Other"), source, output)
    assert (summary.kept_edits, summary.remarks) == (1, [])
    assert captions_in(output) == {i: f"clip{i} 0 Other" for i in range(6)} | {1: "mine"}
    assert not list(tmp_path.glob("*edited*"))


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_update_that_is_stopped_keeps_what_was_edited_before_and_since(
    source: Path, tmp_path: Path, when: str
) -> None:
    output = tmp_path / "out.jsonl"
    jsonl(source, [{"id": i, "video": "same.mp4"} for i in range(4)] + [{"video": "b.mp4", "n": i} for i in range(6)])
    caption_file(operator(), source, output)

    def edit() -> None:
        rows = load(output)
        rows[1]["captions"], rows[5]["captions"], rows[8]["captions"] = ["one"], ["two"], ["three"]
        jsonl(output, rows)

    def stops(request: CaptionRequest, i: int) -> str:
        if request.id.row == 7:
            raise KeyboardInterrupt
        return "new"

    if when == "before":
        edit()
    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stops, prompt="Other"), source, output, update=True, part_rows=2)
    if when == "between":
        edit()
    summary = caption_file(operator(lambda request, i: "new", prompt="Other"), source, output, part_rows=2)
    expected = ["new", "one", "new", "new", "new", "two", "new", "new", "three", "new"]
    assert [row["captions"][0] for row in load(output)] == expected
    assert (summary.kept_edits, summary.remarks) == (3, [])


def test_an_output_that_changes_while_it_is_made_again_is_kept(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)

    def words(request: CaptionRequest, i: int) -> str:
        if request.id.row == 3:
            output.write_text('{"mine": true}\n')
        return "words"

    summary = caption_file(operator(words, prompt="Other"), source, output, update=True)
    assert (tmp_path / "out.edited-1.jsonl").read_text() == '{"mine": true}\n'
    assert "is kept as" in summary.remarks[0]
    assert len(load(output)) == 6


def test_a_retry_from_the_output_alone_takes_the_same_options(tmp_path: Path) -> None:
    import inspect

    assert {"recheck", "discard_edits"} <= set(inspect.signature(retry_file).parameters)


ODD_TEXTS = ["[1, 2]", '{"b": 1, "a": null}', "[", "[]", "{}", "", " a ", "a\r\nb ", "ü\n", "\ud800", "1", "null"]
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD_TEXTS) | st.binary(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.integers(0, 3) | st.sampled_from("0123"), parts),
)


@given(NESTED)
def test_a_digest_is_that_of_a_value_as_every_format_gives_it_back(value: Any) -> None:
    """Digests of earlier versions are compared with those of this one."""
    text = json.dumps(plain(value), sort_keys=True)
    assert digest(value) == hashlib.blake2b(text.encode("ascii"), digest_size=DIGEST_BYTES).digest()


def test_values_that_have_no_digest_end_no_run(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    rows = [{"video": "a.mp4", "deep": deep}, {"video": "b.mp4", "n": None}]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    source.write_text(source.read_text().replace('"n": null', '"n": 1' + "0" * 4000))
    caption_file(operator(), source, output)
    summary = caption_file(operator(prompt="Other"), source, output, update=True)
    assert (summary.captions, summary.failures) == (1, {"bad_sample": 1})  # a number that no reader takes


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_of_which_nothing_can_be_read_is_kept(source: Path, tmp_path: Path, name: str) -> None:
    file, format_, _ = FORMATS[name]
    output = tmp_path / file
    caption_file(operator(), source, output, format=format_)
    for path in [output] if output.is_file() else [one for one in output.rglob("*") if one.is_file()]:
        path.write_bytes(b"\x00\xff" * 100)
    summary = caption_file(operator(), source, output, format=format_)
    assert "has changed since the run finished" in summary.remarks[0]
    caption_file(operator(), source, output, format=format_, update=True)
    assert captions_in(output)[5] == "clip5 0 Descr"
    assert len(list(tmp_path.glob("*.edited-1*"))) == 1


# videofolder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "more/c.mp4", "d.mp4"):
        (folder / name).write_bytes(name.encode())
    return folder


def table(folder: Path, name: str = "metadata.jsonl") -> dict[str, str]:
    if name.endswith(".csv"):
        lines = csv.DictReader(io.StringIO((folder / name).read_text("utf-8"), newline=""))
        return {row["file_name"]: row["caption"] for row in lines}
    return {row["file_name"]: row["caption"] for row in load(folder / name)}


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).with_suffix(".mp4").as_posix(): path.read_text()
        for path in sorted(folder.rglob("*.txt"))
    }


def in_folder(clips: Path, name: str = "", fn: Any = None, **given: Any) -> RunSummary:
    parameters = {key: given.pop(key) for key in ("prompt", "caption_num", "keep_candidate_mode") if key in given}
    return caption_file(operator(fn, **parameters), clips, clips / name, format="videofolder", **given)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("edited", ["text", "table", "both", "table removed"])
def test_the_text_and_the_table_agree_on_what_a_person_wrote(clips: Path, name: str, edited: str) -> None:
    in_folder(clips, name)
    if edited in ("text", "both", "table removed"):
        (clips / "more/c.txt").write_text("mine\r\n")
    if edited in ("table", "both"):
        (clips / name).write_text((clips / name).read_text().replace("c 0 Descr", "mine"))
    if edited == "table removed":
        lines = (clips / name).read_text().splitlines(keepends=True)
        (clips / name).write_text("".join(line for line in lines if "more/c" not in line))
    summary = in_folder(clips, name, prompt="Other", update=True)
    expected = {"a.mp4": "a 0 Other", "b.mp4": "b 0 Other", "d.mp4": "d 0 Other", "more/c.mp4": "mine"}
    assert table(clips, name) == expected
    assert {key: text.strip() for key, text in texts(clips).items()} == expected
    assert summary.kept_edits == 1
    summary = in_folder(clips, name, prompt="Third", update=True)
    assert (table(clips, name)["more/c.mp4"], texts(clips)["more/c.mp4"].strip()) == ("mine", "mine")
    assert (table(clips, name)["a.mp4"], summary.kept_edits) == ("a 0 Third", 1)
    in_folder(clips, name, prompt="Third", discard_edits=True)
    assert (table(clips, name)["more/c.mp4"], texts(clips)["more/c.mp4"]) == ("c 0 Third", "c 0 Third")


def test_where_both_were_edited_otherwise_the_text_stays_and_the_table_is_kept(clips: Path) -> None:
    in_folder(clips)
    (clips / "a.txt").write_text("of the text")
    metadata = clips / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a 0 Descr", "of the table"))
    edited = metadata.read_text()
    summary = in_folder(clips, prompt="Other", update=True)
    assert (table(clips)["a.mp4"], texts(clips)["a.mp4"]) == ("of the text", "of the text")
    assert (clips / "metadata.edited-1.jsonl").read_text() == edited
    assert "metadata.edited-1.jsonl" in summary.remarks[0]


def test_a_retry_keeps_texts(clips: Path) -> None:
    in_folder(clips, fn=Words(("b",)))
    (clips / "a.txt").write_text("mine")
    summary = in_folder(clips, retry=())
    assert table(clips) == texts(clips)
    assert (table(clips)["a.mp4"], table(clips)["b.mp4"], summary.kept_edits) == ("mine", "b 0 Descr", 1)


def test_a_text_that_was_there_for_a_new_video_is_kept(clips: Path) -> None:
    in_folder(clips)
    (clips / "new.mp4").write_bytes(b"new")
    (clips / "new.txt").write_text("written by hand")
    summary = in_folder(clips, update=True)
    assert (table(clips)["new.mp4"], texts(clips)["new.mp4"]) == ("written by hand", "written by hand")
    assert summary.kept_edits == 1


def test_a_text_for_a_video_that_failed_is_kept(clips: Path) -> None:
    in_folder(clips, fn=Words(("b",)))
    (clips / "b.txt").write_text("by hand")
    in_folder(clips, fn=Words(("b",)), prompt="Other", update=True)
    assert (table(clips)["b.mp4"], texts(clips)["b.mp4"]) == ("by hand", "by hand")


def test_several_captions_of_a_clip_are_kept_line_by_line(clips: Path) -> None:
    many = {"caption_num": 2, "keep_candidate_mode": "all"}
    rows = [{"text": "", "video": str(path)} for path in sorted(clips.rglob("*.mp4"))]
    del rows
    in_folder(clips, **many)
    first = texts(clips)["a.mp4"]
    (clips / "a.txt").write_text(first + "\nand one more\n")
    summary = in_folder(clips, prompt="Other", update=True, **many)
    assert texts(clips)["a.mp4"].splitlines() == [*first.splitlines(), "and one more"]
    assert table(clips)["a.mp4"] == first.splitlines()[0]
    assert summary.kept_edits == 1


def test_an_emptied_text_stays_empty(clips: Path) -> None:
    in_folder(clips)
    (clips / "a.txt").write_text("")
    for prompt in ("Other", "Third"):
        in_folder(clips, prompt=prompt, update=True)
        assert (table(clips)["a.mp4"], texts(clips)["a.mp4"]) == ("", "")


def test_a_text_that_was_only_saved_again_is_left_as_it_is(clips: Path) -> None:
    in_folder(clips)
    (clips / "a.txt").write_bytes(b"a 0 Descr\r\n")
    summary = in_folder(clips, fn=Words(), retry=())
    assert (summary.is_old, summary.kept_edits, summary.remarks) == (True, 0, [])
    summary = in_folder(clips, prompt="Other", update=True)
    assert (texts(clips)["a.mp4"], summary.kept_edits) == ("a 0 Other", 0)


def test_overwrite_replaces_texts(clips: Path) -> None:
    in_folder(clips)
    (clips / "a.txt").write_text("mine")
    summary = in_folder(clips, overwrite=True)
    assert (texts(clips)["a.mp4"], summary.kept_edits, summary.remarks) == ("a 0 Descr", 0, [])


def test_the_same_command_says_what_was_edited_and_leaves_it(clips: Path, source: Path, tmp_path: Path) -> None:
    in_folder(clips)
    (clips / "a.txt").write_text("mine")
    summary = in_folder(clips)
    assert summary.is_old
    assert "1 caption edited" in summary.remarks[0]
    assert "--update" in summary.remarks[0]
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    edit_jsonl(output, lambda rows: corrected(rows, c1="mine")[:-1])
    edited = output.read_bytes()
    summary = caption_file(operator(), source, output)
    assert "1 caption edited, 1 row missing" in summary.remarks[0]
    assert output.read_bytes() == edited


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("field", ["caption", "file_name", "captions as caption", "video as file_name"])
def test_rows_with_fields_called_as_those_of_the_table_are_told_apart(clips: Path, name: str, field: str) -> None:
    video = "file_name" if field.startswith("video") else "video"
    own = {field: "of the row"} if field in ("caption", "file_name") else {}
    rows = jsonl(clips / "rows.jsonl", [{video: f"{stem}.mp4", **own} for stem in ("a", "b", "d")])
    keys = {"video_key": video, "caption_key": "caption" if field.startswith("captions") else "captions"}

    def run(prompt: str, **given: Any) -> RunSummary:
        made = operator(prompt=prompt, **keys)
        return caption_file(made, rows, clips / name, format="videofolder", **given)

    run("First")
    summary = run("Other", update=True)
    assert table(clips, name) == texts(clips) == {f"{one}.mp4": f"{one} 0 Other" for one in ("a", "b", "d")}
    assert (summary.kept_edits, summary.remarks) == (0, [])
    (clips / "a.txt").write_text("mine")
    (clips / name).write_text((clips / name).read_text().replace("b 0 Other", "of the table"))
    summary = run("Third", update=True)
    expected = {"a.mp4": "mine", "b.mp4": "of the table", "d.mp4": "d 0 Third"}
    assert table(clips, name) == texts(clips) == expected
    assert (summary.kept_edits, summary.remarks) == (2, [])


@pytest.mark.parametrize(
    ("column", "kept"),
    [("caption", "mine\na 1 Descr"), ("captions", "mine\na 1 Descr"), ("both", "mine\na 1 Descr")],
)
def test_a_first_caption_that_stands_twice_in_the_table_may_be_edited_in_either_place(
    clips: Path, column: str, kept: str
) -> None:
    many = {"caption_num": 2, "keep_candidate_mode": "all"}
    in_folder(clips, **many)
    rows = load(clips / "metadata.jsonl")
    for row in rows:
        if row["file_name"] == "a.mp4" and column in ("caption", "both"):
            row["caption"] = "mine"
        if row["file_name"] == "a.mp4" and column in ("captions", "both"):
            row["captions"][0] = "mine"
    jsonl(clips / "metadata.jsonl", rows)
    summary = in_folder(clips, prompt="Other", update=True, **many)
    assert (texts(clips)["a.mp4"], texts(clips)["b.mp4"]) == (kept, "b 0 Other\nb 1 Other")
    assert (summary.kept_edits, summary.remarks) == (1, [])


def test_where_both_places_of_a_first_caption_were_edited_otherwise_the_table_is_kept(clips: Path) -> None:
    many = {"caption_num": 2, "keep_candidate_mode": "all"}
    in_folder(clips, **many)
    text = (clips / "metadata.jsonl").read_text()
    edited = text.replace('"caption": "a 0 Descr"', '"caption": "one"').replace('["a 0 Descr"', '["another"')
    (clips / "metadata.jsonl").write_text(edited)
    in_folder(clips, prompt="Other", update=True, **many)
    assert texts(clips)["a.mp4"] == "one\na 1 Descr"
    assert (clips / "metadata.edited-1.jsonl").read_text() == edited


@pytest.mark.parametrize("how", [None, "copy", "exact"])
def test_a_text_of_a_person_for_a_video_that_cannot_be_placed_stays(tmp_path: Path, how: str | None) -> None:
    (tmp_path / "src").mkdir()
    render_video(tmp_path / "src/a.mp4")
    (tmp_path / "src/broken.mp4").write_bytes(b"")
    window = {"start_seconds": 0, "end_seconds": 0.5}
    names = ("a", "broken", "gone")
    rows = jsonl(tmp_path / "src/rows.jsonl", [{"video": f"{name}.mp4", **window} for name in names])

    def run(fn: Any, **given: Any) -> RunSummary:
        made = operator(fn, **({"prompt": given.pop("prompt")} if "prompt" in given else {}))
        return caption_file(made, rows, tmp_path / "out", format="videofolder", with_videos=True, cut=how, **given)

    fails = Words(("broken", "gone"))
    run(fails)
    text = tmp_path / "out/broken.00000-00000_5.txt", tmp_path / "out/gone.00000-00000_5.txt"
    for path in text:
        path.write_text("by hand")
    for prompt in ("Other", "Third"):
        summary = run(fails, prompt=prompt, update=True)
        assert [path.read_text() for path in text] == ["by hand", "by hand"]
        assert (summary.failed_rows, summary.kept_edits) == (2, 2)
        assert {row["caption"] for row in load(tmp_path / "out/metadata.jsonl")} <= {f"a 0 {prompt}", "by hand"}
    render_video(tmp_path / "src/gone.mp4")
    summary = run(Words(("broken",)), prompt="Third", retry=())
    captions = {row["file_name"].partition(".")[0]: row["caption"] for row in load(tmp_path / "out/metadata.jsonl")}
    assert (captions["gone"], summary.failed_rows) == ("by hand", 1)


ODD_IDS: list[Any] = [
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    datetime.timedelta(seconds=3),
    float("nan"),
    True,
    "",
    " x ",
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("value", ODD_IDS, ids=repr)
def test_ids_of_any_kind_find_their_rows(tmp_path: Path, value: Any, suffix: str) -> None:
    rows = tmp_path / "in.parquet"
    pq.write_table(pa.table({"video": ["a.mp4", "b.mp4"], "id": [value, value]}), rows)
    output = tmp_path / f"out.{suffix}"
    caption_file(operator(), rows, output)
    if suffix == "parquet":
        edit_parquet(output, lambda found: [{**found[0], "captions": ["mine"]}, found[1]])
    else:
        output.write_text(output.read_text().replace("a 0 Descr", "mine"))
    summary = caption_file(operator(prompt="Other"), rows, output, update=True)
    first, second = (str(row["captions"]) for row in open_source(output))
    assert "mine" in first
    assert "b 0 Other" in second
    assert (summary.kept_edits, summary.remarks) == (1, [])


def test_a_link_to_a_folder_goes_on_leading_to_the_output(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk/out")
    caption_file(operator(), source, link, format="datasets")
    edit_dataset(tmp_path / "disk/out", lambda rows: corrected(rows, c1="mine")[:-1])
    for prompt in ("Other", "Third"):
        caption_file(operator(prompt=prompt), source, link, format="datasets", update=True)
        assert link.is_symlink()
        assert captions_in(tmp_path / "disk/out") == {
            i: "mine" if i == 1 else f"clip{i} 0 {prompt}"[:13] for i in range(6)
        }
    kept = tmp_path / "disk/out.edited-1"
    assert len(captions_in(kept)) == 5


def edit_videos_inside(path: Path, captions: dict[int, str]) -> None:
    """Change captions in a saved data set that holds videos, by `id`, and leave the rest of the file."""
    from datasets import load_from_disk
    from datasets.arrow_writer import ArrowWriter

    saved = load_from_disk(str(path))
    rows = [row | ({"captions": [captions[row["id"]]]} if row["id"] in captions else {}) for row in open_source(path)]
    file = next(path.glob("*.arrow"))
    with ArrowWriter(features=saved.features, path=str(file) + ".new") as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=saved.features.arrow_schema))
        writer.finalize()
    Path(f"{file}.new").replace(file)


def test_edits_of_a_saved_dataset_stay_with_their_videos_whether_these_are_inside_or_not(tmp_path: Path) -> None:
    names = ["x/a.mp4", "y/a.mp4", "z/a.mp4", "b.mp4"]
    for name in [*names, "w/a.mp4"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    rows = [{"video": name, "id": i} for i, name in enumerate(names)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "saved"

    def run(prompt: str, fn: Any = None, **given: Any) -> tuple[list[str], int]:
        summary = caption_file(operator(fn, prompt=prompt), source, output, format="datasets", **given)
        return [str((row["captions"] or [""])[0]) for row in open_source(output)], summary.kept_edits

    run("First")
    edit_videos_inside(output, {1: "mine", 3: "too"})
    assert run("Other", update=True, with_videos=True) == (["a 0 Other", "mine", "a 0 Other", "too"], 2)
    edit_videos_inside(output, {2: "mine as well"})
    jsonl(source, [{"video": "w/a.mp4", "id": None}, rows[1], rows[2], rows[3]])
    expected = ["a 0 Third", "mine", "mine as well", "too"], 3
    assert run("Third", update=True, with_videos=True) == expected
    assert run("Third", update=True) == expected
    assert run("Third", Words(("b",)), update=True, with_videos=True) == expected


def test_a_text_that_the_run_wrote_before_its_video_failed_is_no_edit(clips: Path) -> None:
    in_folder(clips)
    for prompt in ("Other", "Third"):
        in_folder(clips, fn=Words(("b",)), prompt=prompt, update=True)
    assert "b.mp4" not in table(clips)
    summary = in_folder(clips, prompt="Third", retry=())
    assert (table(clips)["b.mp4"], texts(clips)["b.mp4"], summary.kept_edits) == ("b 0 Third", "b 0 Third", 0)


@pytest.mark.parametrize("name", FORMATS)
def test_captions_in_a_field_of_another_name_are_no_edits(source: Path, tmp_path: Path, name: str) -> None:
    file, form, edit = FORMATS[name]
    output = tmp_path / file
    caption_file(operator(), source, output, format=form)
    edit(output, lambda rows: corrected(rows, c1="mine"))
    summary = caption_file(operator(caption_key="said"), source, output, format=form, update=True)
    rows = {int(row["id"]): str(row["said"]) for row in open_source(output)}
    assert "mine" in rows.pop(1)
    assert all(f"clip{i} 0 Descr" in said for i, said in rows.items())
    assert (summary.kept_edits, summary.remarks) == (1, [])


def test_a_table_without_captions_takes_none_from_the_next_one(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    caption_file(operator(), source, output)
    edit_jsonl(output, lambda rows: [{"id": row["id"], "video": row["video"]} for row in rows])
    caption_file(operator(), source, output, update=True)
    assert captions_in(output) == {i: f"clip{i} 0 Descr" for i in range(6)}
    assert (tmp_path / "out.edited-1.jsonl").exists()


def test_edits_of_the_table_stay_when_parts_are_cut_out(tmp_path: Path) -> None:
    video = render_video(tmp_path / "a.mkv")
    windows = [{"start_seconds": 0, "end_seconds": 0.5}, {"start_seconds": 0.5, "end_seconds": 1}]
    source = jsonl(tmp_path / "in.jsonl", [{"video": str(video), **window} for window in windows])
    given: dict[str, Any] = {"format": "videofolder", "with_videos": True}
    caption_file(operator(), source, tmp_path / "out", **given)
    rows = load(tmp_path / "out/metadata.jsonl")
    for number, how in enumerate(("copy", "exact", None)):
        rows[1]["caption"] = f"mine {number}"
        jsonl(tmp_path / "out/metadata.jsonl", rows)
        summary = caption_file(operator(prompt=str(how)), source, tmp_path / "out", **given, cut=how, update=True)
        rows = load(tmp_path / "out/metadata.jsonl")
        assert [row["caption"] for row in rows] == [f"a 0 {how}"[:9], f"mine {number}"]
        assert (summary.kept_edits, summary.remarks) == (1, [])
