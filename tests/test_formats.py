"""Formats that are folders, shards and sidecars: outputs of runs, and what other libraries make of them."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelscribe import DataError, ModelError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.data import BY_NAME, BY_SUFFIX, Target, open_source, schema_of
from reelscribe.data.base import Layout
from reelscribe.data.hf_dataset import join_hf_dataset
from reelscribe.data.member_names import folded
from reelscribe.runners.report.progress import NoProgress
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import run_folder
from reelscribe.types import CaptionRequest
from reelscribe.video.files.source import VideoSource, find_source
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.rejection import RejectedError

others_leave_files_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""For what other libraries do in a test; they leave it to the collector, which must come before the next test."""

Rows = list[dict[str, Any]]
MANY = 25_000
FORMATS = [*BY_SUFFIX, *(name for name in BY_NAME if name != "videofolder")]


def target_of(folder: Path, form: str) -> Target:
    """A target of a format, by its suffix or its name."""
    if form == ".lance":
        pytest.importorskip("lance")
    return Target.of(folder / f"rows{form}") if form in BY_SUFFIX else Target.of(folder / "rows", format=form)


def write(target: Target, *parts: Rows) -> Path:
    """An output of parts, as a run makes it."""
    paths: list[Path] = []
    for number, rows in enumerate(parts):
        path = target.path.parent / "parts" / f"{number:06}.{target.format.part}"
        with target.open_part(path, schema=schema_of(paths[-1]) if paths else None) as sink:
            for row in rows:
                sink.write(row)
            sink.commit()
        paths.append(path)
    target.join(paths)
    return target.path


def caption_of(request: CaptionRequest, i: int) -> str:
    """The stem of the video; one that is broken fails."""
    video = request.video
    name = video["path"] if isinstance(video, dict) else video
    if "broken" in name:
        raise ValueError("broken")
    return f"{Path(name).stem} läuft {i}"


def operator(**parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(caption_of), **parameters)


def clips(folder: Path, *names: str) -> Path:
    """A folder of files with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def expected(rows: Rows, form: str) -> Rows:
    """The rows as a format gives them back."""
    if form in (".csv", ".tsv"):
        return [{name: _cell(value) for name, value in row.items()} for row in rows]
    return rows


def _cell(value: Any) -> Any:
    text = value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
    return text or None


# every format


@pytest.mark.parametrize("form", FORMATS)
def test_parts_come_back_in_order_with_unicode_nulls_and_nested_fields(tmp_path: Path, form: str) -> None:
    rows: Rows = [
        {"id": 0, "text": "ein Bär läuft 熊 🐻\u2028", "tags": ["a", None], "meta": {"a": 1, "b": [1.5, None]}},
        {"id": 1, "text": None, "tags": [], "meta": {"a": None, "b": []}},
        {"id": 2, "text": "", "tags": None, "meta": None},
    ]
    path = write(target_of(tmp_path, form), rows[:1], rows[1:])
    shutil.rmtree(tmp_path / "parts")
    found = [{key: value for key, value in row.items() if key != "__key__"} for row in open_source(path)]
    assert found == expected(rows, form)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_come_back(tmp_path: Path, form: str) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"id": i, "text": None if i % 7 == 0 else f"Bär {i} 熊", "meta": {"n": i, "tags": ["x"] * (i % 3)}}

    half = MANY // 2
    path = write(target_of(tmp_path, form), [row(i) for i in range(half)], [row(i) for i in range(half, MANY)])
    count = 0
    for i, found in enumerate(open_source(path)):
        found.pop("__key__", None)
        assert [found] == expected([row(i)], form)
        count += 1
    assert count == MANY


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_writes_every_format_and_leaves_it_alone_afterwards(tmp_path: Path, form: str) -> None:
    source = clips(tmp_path / "clips", "a.mp4", "b.mp4", "broken.mp4")
    target = target_of(tmp_path, form)
    settings = {"format": None if form in BY_SUFFIX else form, "part_rows": 2}
    summary = caption_file(operator(), source, target.path, **settings)
    assert (summary.rows_in, summary.failed_rows) == (3, 1)
    captions = [row["captions"] for row in open_source(target.path)]
    texts = [["a läuft 0"], ["b läuft 0"], None]
    assert captions == [row["captions"] for row in expected([{"captions": one} for one in texts], form)]
    assert caption_file(operator(), source, target.path, **settings).is_old


@pytest.mark.parametrize("form", [*FORMATS, "videofolder"])
def test_a_run_that_was_ended_makes_the_same_files(tmp_path: Path, form: str) -> None:
    """Lance names its files at random: its rows are compared."""
    made = []
    for name, stops in (("whole", False), ("ended", True)):
        folder = tmp_path / name
        clips(folder / "clips", *(f"{i}.mp4" for i in range(9)), "broken.mp4")
        path = folder / "clips" if form == "videofolder" else target_of(folder, form).path
        settings = {"format": None if form in BY_SUFFIX else form, "part_rows": 3}
        if stops:
            with pytest.raises(ModelError, match="enough"):
                caption_file(operator(), folder / "clips", path, progress=Stops(7), **settings)
            assert form == "videofolder" or not path.exists()
        caption_file(operator(), folder / "clips", path, **settings)
        made.append(contents(path, folder))
    assert made[0] == made[1]


class Stops(NoProgress):
    """Ends a run after so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def update(self, counts: Any) -> None:
        if counts.rows_in == self.rows:
            raise ModelError("enough")


def contents(path: Path, folder: Path) -> Any:
    """The files of an output, without what depends on the folder that it is in."""
    if path.suffix == ".lance" or path.suffix in (".parquet", ".gz", ".zst") or (path / "state.json").exists():
        return [str(row).replace(str(folder), "") for row in open_source(path)]
    files = [path] if path.is_file() else sorted(path.rglob("*.t*")) + sorted(path.glob("meta*.jsonl"))
    if any(file.suffix == ".tar" for file in files):
        return [str(row).replace(str(folder), "") for row in open_source(path)]
    return [(file.name, file.read_text("utf-8").replace(str(folder), "")) for file in files]


def test_a_retry_knows_the_format(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips", "a.mp4")
    caption_file(VideoCaptioningFromVLMMapper("reelscribe/shapes"), source, tmp_path / "out", format="datasets")
    assert retry_file(tmp_path / "out").failed_rows == 1
    assert open_source(tmp_path / "out").count() == 1


def test_formats_that_are_not_known_or_cannot_hold_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown format 'x'; choose from webdataset, videofolder, datasets"):
        Target.of(tmp_path / "out", format="x")
    with pytest.raises(SettingsError, match="parquet cannot hold videos"):
        Target.of(tmp_path / "out.parquet", with_videos=True)


@pytest.mark.parametrize("form", ["webdataset", "datasets"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, form: str, overwrite: bool) -> None:
    source = clips(tmp_path / "clips", "a.mp4")
    mine = clips(tmp_path / "mine", "dear.txt", "x.tar")
    with pytest.raises(DataError, match="contains other files than"):
        caption_file(operator(), source, mine, format=form, overwrite=overwrite)
    with pytest.raises(DataError, match="would overwrite"):
        caption_file(operator(), source, source, format=form, overwrite=overwrite)
    assert sorted(one.name for one in mine.iterdir()) == ["dear.txt", "x.tar"]
    assert [one.name for one in source.iterdir()] == ["a.mp4"]


# WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file as any tool makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_of_a_sample_are_one_row(tmp_path: Path) -> None:
    members = {
        "dir/a.mp4": b"video", "dir/a.txt": "Bär\n".encode(), "dir/a.json": b'{"id": 7, "n": {"x": null}}',
        "dir/a.cls": b"3", "b.WEBM": b"other", "c.json": b"[1]",
    }  # fmt: skip
    assert list(open_source(shard(tmp_path / "x.tar", members))) == [
        {"__key__": "dir/a", "id": 7, "n": {"x": None}, "video": {"path": "dir/a.mp4", "bytes": b"video"},
         "text": "Bär", "cls": b"3"},
        {"__key__": "b", "video": {"path": "b.webm", "bytes": b"other"}},
        {"__key__": "c", "json": [1]},
    ]  # fmt: skip


def test_shards_are_a_folder_or_a_pattern(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"shards/{i}.tar", {f"{i}.mp4": b"v"})
    for path in (tmp_path / "shards", tmp_path / "shards/*.tar"):
        assert [row["__key__"] for row in open_source(path)] == ["0", "1", "2"]
    assert [row["__key__"] for row in open_source(tmp_path / "shards/[12].tar")] == ["1", "2"]
    with pytest.raises(DataError, match="no file or folder matches"):
        open_source(tmp_path / "shards/x*.tar")


@pytest.mark.parametrize("damage", [lambda data: data[:700], lambda data: b"no tar" * 500])
def test_a_torn_shard_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = shard(tmp_path / "x.tar", {"a.mp4": bytes(2000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read .*x\.tar"):
        list(open_source(path))


def test_a_member_that_is_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tar:a\.json is not JSON"):
        list(open_source(shard(tmp_path / "x.tar", {"a.json": b"{"})))


@others_leave_files_open
@pytest.mark.parametrize("with_videos", [False, True])
def test_captions_go_out_as_shards_that_webdataset_reads(tmp_path: Path, with_videos: bool) -> None:
    from webdataset.tariterators import tarfile_samples

    source = shard(tmp_path / "in.tar", {f"{name}.mp4": name.encode() for name in ("a", "b", "c")})
    output = tmp_path / "out"
    caption_file(operator(), source, output, format="webdataset", part_rows=2, with_videos=with_videos)
    assert sorted(path.name for path in output.iterdir()) == ["000000.tar", "000001.tar"]
    samples = list(tarfile_samples([{"url": str(path)} for path in sorted(output.iterdir())]))
    assert [one["__key__"] for one in samples] == ["a", "b", "c"]
    gc.collect()
    assert [one["txt"].decode() for one in samples] == ["a läuft 0", "b läuft 0", "c läuft 0"]
    assert [one.get("mp4") for one in samples] == ([b"a", b"b", b"c"] if with_videos else [None] * 3)
    assert json.loads(samples[0]["json"])["captions"] == ["a läuft 0"]
    again = list(open_source(output))
    assert again[0]["captions"] == ["a läuft 0"]
    assert again[0]["video"] == {"path": "a.mp4", "bytes": b"a" if with_videos else None}


def test_videos_of_a_folder_can_be_packed_into_shards(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips", "a.mp4", "broken.webm")
    caption_file(operator(caption_num=2, keep_candidate_mode="all"), source, tmp_path / "out.tar", with_videos=True)
    rows = list(open_source(tmp_path / "out.tar"))
    assert [row["video"] for row in rows] == [
        {"path": "000000-000000.mp4", "bytes": b"a.mp4"},
        str(source / "broken.webm"),
    ]
    assert rows[0]["text"] == "a läuft 0\na läuft 1"
    assert rows[1]["captions"] is None
    assert b"broken.webm" not in members(tmp_path / "out.tar").values()


def test_other_members_come_out_as_they_went_in(tmp_path: Path) -> None:
    members = {"a.mp4": b"v", "a.cls": b"3", "a.flow.npy": bytes(9), "a.json": b'{"id": 1}'}
    caption_file(operator(), shard(tmp_path / "in.tar", members), tmp_path / "out.tar", with_videos=True)
    [row] = open_source(tmp_path / "out.tar")
    assert {name: row[name] for name in ("cls", "flow.npy", "id")} == {"cls": b"3", "flow.npy": bytes(9), "id": 1}
    assert row["video"]["bytes"] == b"v"


def test_samples_with_one_key_get_keys_of_their_own(tmp_path: Path) -> None:
    rows = [{"__key__": "a.b", "n": i} for i in range(3)]
    path = write(target_of(tmp_path, "webdataset"), rows, rows[:1])
    assert [row["__key__"] for row in open_source(path)] == ["a.b", "a.b-1", "a.b-2", "a.b"]
    assert [*members(path / "000000.tar")] == ["a%2Eb.json", "a%2Eb-1.json", "a%2Eb-2.json"]
    plain = [{"__key__": "a", "n": i} for i in range(2)]
    path = write(target_of(tmp_path / "tar", ".tar"), [*plain, {"__key__": "b"}, plain[0]], plain)
    assert [row["__key__"] for row in open_source(path)] == ["a", "a-1", "b", "a-2", "a-3", "a-1-1"]


def members(path: Path) -> dict[str, bytes]:
    """What `tar` makes of a shard: names and what is in them."""
    folder = path.with_name(f"{path.name}.extracted")
    folder.mkdir()
    done = subprocess.run(["tar", "-xf", str(path), "-C", str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with tarfile.open(path) as tar:
        names = tar.getnames()
    found = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    shutil.rmtree(folder)
    assert sorted(found) == sorted(names)
    return {name: found[name] for name in names}


def samples_of(path: Path) -> dict[str, bytes]:
    """What `webdataset` makes of a shard, member by member; it makes the letters of suffixes small."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    with path.open("rb") as file:
        found = list(group_by_keys({**one, "__url__": ""} for one in tar_file_iterator(file)))
    return {f"{one['__key__']}.{name}": one[name] for one in found for name in one if not name.startswith("__")}


def assert_readers_agree(path: Path) -> dict[str, bytes]:
    """What every reader finds; no two names are one on a system that ignores case or forms of Unicode."""
    found = members(path)
    assert len({folded(name) for name in found}) == len(found)
    assert all(len(part.encode()) <= 255 for name in found for part in name.split("/"))
    small = {f"{key}.{suffix.lower()}": data for (key, suffix), data in ((split(n), d) for n, d in found.items())}
    assert samples_of(path) == small
    return found


def split(member: str) -> tuple[str, str]:
    folders, slash, base = member.rpartition("/")
    name, _, suffix = base.partition(".")
    return folders + slash + name, suffix


ORDINARY_KEYS = [
    "a",
    "000001",
    "n01440764/n01440764_10026",
    "Bär 熊 🐻",
    "a-b_c (1)",
    "100%",
    "__a",
    "x" * 120,
    "[a]&b;c'd",
]
HOSTILE_KEYS = [
    "/etc/passwd", "../../up", "a/../../up", "..", ".", "/", "//", "a//b", "a/", "./a", ".hidden/a", "a.b", "a.json",
    "dir.d/a", "dir./a", "dir /a", "\0", "a\0b", "a\nb", "a\x1b[31mb", "\ud800", "\udcff", "a\u2028b", "C:\\x",
    "\\\\host\\x", "a:b", "con", "NUL", "aux/b", "com1.x/b", "Lpt9", "a*?b", '<"|>', "%41", "%2F", "100%25",
    "__x__/a", "x" * 300,
    "é" * 200, "a/" * 700 + "b", "-rf", "~", " ", "a b ",
]  # fmt: skip


@pytest.mark.parametrize("key", ORDINARY_KEYS)
def test_a_key_that_is_a_name_stays_as_it_is(tmp_path: Path, key: str) -> None:
    path = write(target_of(tmp_path, ".tar"), [{"__key__": key, "cls": b"3", "n": 1}])
    found = assert_readers_agree(path)
    assert found == {f"{key}.cls": b"3", f"{key}.json": b'{"n": 1}\n'}
    assert list(open_source(path)) == [{"__key__": key, "n": 1, "cls": b"3"}]


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=range(len(HOSTILE_KEYS)))
def test_a_key_that_is_no_name_is_escaped_and_comes_back(tmp_path: Path, key: str) -> None:
    path = write(target_of(tmp_path, ".tar"), [{"__key__": key, "n": 1}])
    [name] = assert_readers_agree(path)
    assert list(open_source(path)) == [{"__key__": key, "n": 1}]
    assert not name.startswith("/")
    assert not {"", ".", ".."} & {*name.split("/")}
    assert name.isprintable()
    if len(key) < 100:
        assert unquote(name.removesuffix(".json"), errors="surrogatepass") == key


def test_keys_that_are_one_file_somewhere_are_told_apart(tmp_path: Path) -> None:
    keys = ["A", "a", "é", "e\u0301", "a", "ß", "ss", "A.b", "a.b", "a-1", "x" * 300, "x" * 299 + "y"]
    rows = [{"__key__": key, "n": i} for i, key in enumerate(keys)]
    for count in (len(rows), 1, 5):
        folder = tmp_path / str(count)
        folder.mkdir()
        path = write(target_of(folder, ".tar"), *(rows[i : i + count] for i in range(0, len(rows), count)))
        assert_readers_agree(path)
        found = [row["__key__"] for row in open_source(path)]
        assert [*found[:4], *found[5:9], *found[10:]] == [*keys[:4], *keys[5:9], *keys[10:]]
        assert len({*found}) == len(keys)


def test_a_folder_is_never_called_like_a_member(tmp_path: Path) -> None:
    rows = [{"__key__": key, "n": 1} for key in ("a", "a.json/b", "a.json", "a.json/b.json/c", "b/a", "b")]
    path = write(target_of(tmp_path, ".tar"), rows[:2], rows[2:])
    assert_readers_agree(path)
    assert list(open_source(path)) == rows


def test_shards_of_others_keep_their_keys(tmp_path: Path) -> None:
    """A percent sign in a name of another's shard is a percent sign."""
    source = shard(tmp_path / "in.tar", {"a%20b.mp4": b"1", "a%2Fb.mp4": b"2", "/abs.mp4": b"3", "v1.0/x.mp4": b"4"})
    keys = ["a%20b", "a%2Fb", "/abs", "v1.0/x"]
    assert [row["__key__"] for row in open_source(source)] == keys
    caption_file(operator(), source, tmp_path / "out.tar", with_videos=True)
    found = assert_readers_agree(tmp_path / "out.tar")
    assert [row["__key__"] for row in open_source(tmp_path / "out.tar")] == keys
    assert [data for name, data in found.items() if name.endswith(".mp4")] == [b"1", b"2", b"3", b"4"]
    caption_file(operator(caption_key="captions"), tmp_path / "out.tar", tmp_path / "again.tar", with_videos=True)
    assert [*members(tmp_path / "again.tar")] == [*found]


HOSTILE_FIELDS = [
    "", "/x", "..", "../x", "a\0", "\ud800", "CLS", "cls", "json", "JSON", "txt", "TXT", "mp4", "x.mp4", "_p", "__x__",
    "a__", "__url__", "é", "e\u0301", "f" * 80, "F" * 80, "a.", "a.b", ".x", "%empty", "\u212a", "k", "%6ason",
    "a\nb", "text",
]  # fmt: skip


def test_fields_that_are_no_names_are_escaped_and_come_back(tmp_path: Path) -> None:
    def row(key: str) -> dict[str, Any]:
        data = {name: f"{name} {key}".encode("utf-8", "surrogatepass") for name in HOSTILE_FIELDS}
        return {"__key__": key, **data, "n": 1}

    rows = [row(key) for key in ("a", "b", "a", "x" * 300)]
    rows += [{"__key__": "one", name: b"alone", f"{name.swapcase()}-": None} for name in HOSTILE_FIELDS]
    path = write(target_of(tmp_path, ".tar"), rows[:2], rows[2:])
    assert_readers_agree(path)
    for row, found in zip(rows, open_source(path), strict=True):
        assert {**found, "__key__": row["__key__"]} == row


def test_a_picture_beside_a_video_keeps_its_name(tmp_path: Path) -> None:
    """Unless the video itself is called so."""
    picture = b"RIFF\x04\0\0\0WEBPVP8 "
    row = {"__key__": "a", "video": {"path": "v.mp4", "bytes": b"v"}, "webp": picture, "jpg": b"j", "captions": ["x"]}
    target = target_of(tmp_path, ".tar").laid_out(video_field="video", caption_field="captions", root=tmp_path)
    target = replace(target, layout=replace(target.layout, with_videos=True))
    found = assert_readers_agree(write(target, [row]))
    assert {*found} == {"a.jpg", "a.json", "a.mp4", "a.txt", "a.webp"}
    [again] = open_source(target.path)
    assert (again["webp"], again["jpg"], again["video"]["bytes"]) == (picture, b"j", b"v")
    (tmp_path / "2").mkdir()
    found = assert_readers_agree(
        write(replace(target, path=tmp_path / "2/x.tar"), [{**row, "video": {"path": "v.webp", "bytes": b"v"}}])
    )
    assert (found["a.webp"], found["a.%77ebp"]) == (b"v", picture)


names = st.text(st.characters(codec=None) | st.sampled_from("./\\:%_aA0\0\n\ud800 é\u0301"), max_size=12)
some_keys = st.lists(names | st.sampled_from([*ORDINARY_KEYS, *HOSTILE_KEYS]), min_size=1, max_size=6)
some_fields = st.lists(names | st.sampled_from(HOSTILE_FIELDS), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(some_keys, some_fields, st.integers(1, 4))
def test_whatever_keys_and_fields_are_they_come_back(keys: list[str], fields: list[str], rows_per_part: int) -> None:
    fields = [name for name in fields if name not in ("__key__", "video")]
    rows = [{"__key__": key, **{name: f"{i}".encode() for name in fields}, "n": i} for i, key in enumerate(keys)]
    with TemporaryDirectory() as folder:
        parts = [rows[i : i + rows_per_part] for i in range(0, len(rows), rows_per_part)]
        path = write(target_of(Path(folder), ".tar"), *parts)
        assert_readers_agree(path)
        found = list(open_source(path))
    assert [{**row, "__key__": ""} for row in found] == [{**row, "__key__": ""} for row in rows]
    back = [row["__key__"] for row in found]
    assert all(isinstance(key, str) for key in back)
    seen: set[str] = set()
    for key, one in zip(keys, back, strict=True):
        assert one == key or key in seen or not key
        seen.add(key)


# videos that go out with their captions


def secrets(folder: Path) -> Path:
    """A folder of clips, among them links to what lies outside of it."""
    clips(folder, "outside/secret.mp4", "outside/deep/x.mp4", "clips/good.mp4", "clips/sub/also.mp4")
    for name in ("secret.mp4", "deep/x.mp4"):
        (folder / "outside" / name).write_bytes(SECRET)
    (folder / "clips/link.mp4").symlink_to(folder / "outside/secret.mp4")
    (folder / "clips/linked").symlink_to(folder / "outside/deep")
    return folder / "clips"


SECRET = b"what nobody else may have"


@pytest.mark.parametrize("form", [".tar", "webdataset"])
def test_what_lies_outside_of_the_media_root_is_not_copied(tmp_path: Path, form: str) -> None:
    """Though a captioner that looks at no video has a caption for it."""
    folder = secrets(tmp_path)
    secret = tmp_path / "outside/secret.mp4"
    videos = [
        "clips/good.mp4", (folder / "sub/also.mp4").as_uri(), "clips/link.mp4", "clips/linked/x.mp4",
        "outside/secret.mp4", str(secret), "clips/../outside/secret.mp4", secret.as_uri(), "https://127.0.0.1/a.mp4", "s3://bucket/a.mp4",
    ]  # fmt: skip
    rows = [{"video": one} for one in videos] + [{"video": {"path": str(secret), "bytes": None}}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / f"out{form if form == '.tar' else ''}"
    named = operator(media_root=str(folder))
    caption_file(named, source, output, format=None if form == ".tar" else form, with_videos=True)
    [path] = [output] if output.is_file() else output.iterdir()
    found = members(path)
    assert [data for name, data in found.items() if name.endswith(".mp4")] == [b"clips/good.mp4", b"clips/sub/also.mp4"]
    assert SECRET not in path.read_bytes()


def test_a_videofolder_does_not_copy_what_lies_outside_of_the_media_root(tmp_path: Path) -> None:
    folder = secrets(tmp_path)
    source = tmp_path / "rows.jsonl"
    source.write_text('{"video": "clips/good.mp4"}\n{"video": "clips/link.mp4"}\n')
    with pytest.raises(DataError, match="cannot copy"):
        caption_file(operator(media_root=str(folder)), source, tmp_path / "out", format="videofolder", with_videos=True)
    copies = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert b"clips/good.mp4" in copies
    assert SECRET not in copies


@pytest.mark.parametrize("with_media_root", [False, True])
def test_a_video_that_failed_is_not_copied(tmp_path: Path, video: Callable[[str], Path], with_media_root: bool) -> None:
    """With real reading: a link to a secret, noise, nothing, and a good one."""
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(video("h264.mp4"), folder / "good.mp4")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "noise.mp4").write_bytes(b"noise" * 100)
    (folder / "none.mp4").touch()
    policy = FramePolicy(min_frames=1, max_frames=1)
    reader = VideoCaptioningFromVLMMapper(
        captioner=ScriptedCaptioner(caption_of, policy=policy), media_root=str(folder) if with_media_root else None
    )
    caption_file(reader, folder, tmp_path / "out.tar", with_videos=True)
    reader.close()
    found = members(tmp_path / "out.tar")
    assert [data for name, data in found.items() if name.endswith(".mp4")] == [video("h264.mp4").read_bytes()]
    assert len([name for name in found if name.endswith(".json")]) == 4


def test_rows_with_lists_of_videos_bring_no_other_field_along(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    row = {"text": "<__dj__video>", "videos": ["a.mp4"], "video": str(tmp_path / "secret.mp4"), "captions": ["x"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    caption_file(operator(), tmp_path / "rows.jsonl", tmp_path / "out.tar", with_videos=True)
    assert not any(data == b"secret" for data in members(tmp_path / "out.tar").values())


def test_a_file_is_checked_again_once_it_is_open(tmp_path: Path) -> None:
    """Links and other things that take its place after it was found are not read."""
    folder = secrets(tmp_path)
    limits = ReadLimits(media_root=folder, max_source_bytes=100)

    def found(name: str) -> VideoSource:
        return find_source(name, root=folder, limits=limits)

    with found("good.mp4").file() as file:
        assert file.read() == b"clips/good.mp4"
    for name, swap in {
        "good.mp4": lambda path: path.symlink_to(tmp_path / "outside/secret.mp4"),
        "sub/also.mp4": lambda path: (path.parent.rmdir(), path.parent.symlink_to(tmp_path / "outside/deep")),
        "x.mp4": lambda path: os.mkfifo(path),
        "y.mp4": lambda path: path.mkdir(),
        "z.mp4": lambda path: path.write_bytes(bytes(101)),
        "gone.mp4": lambda path: None,
    }.items():
        path = folder / name
        path.write_bytes(b"here")
        source = found(name)
        path.unlink()
        swap(path)
        with pytest.raises(RejectedError):
            source.file()


def test_videos_in_a_shard_are_read(tmp_path: Path, video: Callable[[str], Path]) -> None:
    from reelscribe.video.reader import read_clip

    path = video("h264.mp4")
    [row] = open_source(shard(tmp_path / "x.tar", {"a.mp4": path.read_bytes()}))
    first, second = read_clip(row["video"], FramePolicy()), read_clip(path, FramePolicy())
    assert (first.frames == second.frames).all()


# videofolder


def test_captions_lie_beside_their_videos(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "deep/b.mov", "broken.mp4")
    summary = caption_file(operator(), folder, folder, format="videofolder")
    assert (folder / "a.txt").read_text("utf-8") == "a läuft 0"
    assert (folder / "deep/b.txt").read_text("utf-8") == "b läuft 0"
    assert not (folder / "broken.txt").exists()
    assert summary.output == folder / "metadata.jsonl"
    assert lines(folder / "metadata.jsonl") == [
        {"file_name": "a.mp4", "caption": "a läuft 0"}, {"file_name": "deep/b.mov", "caption": "b läuft 0"},
    ]  # fmt: skip
    assert caption_file(operator(), folder, folder, format="videofolder").is_old


@others_leave_files_open
def test_the_table_can_be_csv_and_datasets_reads_both(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        folder = clips(tmp_path / name.replace(".", "_"), "a.mp4", "b.mp4")
        caption_file(operator(caption_num=2, keep_candidate_mode="all"), folder, folder / name, format="videofolder")
        assert (folder / "a.txt").read_text("utf-8") == "a läuft 0\na läuft 1"
        found = datasets.load_dataset("videofolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        assert found["caption"] == ["a läuft 0", "b läuft 0"]
        assert found.column_names[0] == "video"
    with (tmp_path / "metadata_csv/metadata.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["captions"] == '["a läuft 0", "a läuft 1"]'
    gc.collect()


@pytest.mark.slow
def test_many_captions_lie_beside_their_videos(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(MANY):
        (folder / f"{i}.mp4").touch()

    def row(i: int) -> dict[str, Any]:
        captions = None if i % 7 == 0 else [f"Bär {i} 熊"]
        return {"video": f"{i}.mp4", "meta": {"n": i, "tags": ["x"] * (i % 3)}, "note": None, "captions": captions}

    target = Target.of(folder, format="videofolder")
    target = replace(target, layout=Layout(video_field="video", caption_field="captions", root=folder))
    half = MANY // 2
    table = write(target, [row(i) for i in range(half)], [row(i) for i in range(half, MANY)])
    found = lines(table)
    captioned = [row(i) for i in range(MANY) if i % 7]
    assert found == [
        {"file_name": one["video"], "caption": one["captions"][0], "meta": one["meta"], "note": None}
        for one in captioned
    ]
    assert all((folder / f"{i}.txt").exists() == bool(i % 7) for i in range(MANY))
    assert (folder / f"{MANY - 1}.txt").read_text("utf-8") == f"Bär {MANY - 1} 熊"


def test_rows_of_a_data_file_keep_their_fields_in_the_table(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4")
    source = tmp_path / "rows.jsonl"
    source.write_text('{"video": "clips/a.mp4", "id": 5}\n{"video": null, "id": 6}\n')
    caption_file(operator(), source, folder, format="videofolder")
    assert lines(folder / "metadata.jsonl") == [{"file_name": "a.mp4", "caption": "a läuft 0", "id": 5}]


def test_videos_elsewhere_are_copied_if_wanted(tmp_path: Path) -> None:
    source = clips(tmp_path / "clips", "a.mp4", "deep/b.mp4")
    with pytest.raises(DataError, match=r"is outside .*--with-videos"):
        caption_file(operator(), source, tmp_path / "out", format="videofolder")
    caption_file(operator(), source, tmp_path / "out", format="videofolder", with_videos=True)
    assert (tmp_path / "out/deep/b.mp4").read_bytes() == b"deep/b.mp4"
    assert (tmp_path / "out/deep/b.txt").exists()


def test_texts_that_are_there_are_not_replaced_unasked(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "a.txt")
    with pytest.raises(DataError, match=r"a\.txt' already exists"):
        caption_file(operator(), folder, folder, format="videofolder")
    caption_file(operator(), folder, folder, format="videofolder", overwrite=True)
    assert (folder / "a.txt").read_text("utf-8") == "a läuft 0"


def test_a_videofolder_says_what_it_cannot_place(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "a.mp4", "a.mov")
    with pytest.raises(DataError, match="would share the file"):
        caption_file(operator(), folder, folder, format="videofolder")
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "<__dj__video>", "videos": ["a.mp4"]}\n')
    with pytest.raises(DataError, match="one video each"):
        caption_file(operator(), source, folder, format="videofolder")
    source.write_text('{"video": "https://host/a.mp4"}\n')
    with pytest.raises(DataError, match="videos that are files"):
        caption_file(operator(), source, folder, format="videofolder")
    with pytest.raises(DataError, match=r"named by its folder, or by metadata\.jsonl"):
        caption_file(operator(), folder, folder / "out.jsonl", format="videofolder")
    assert not run_folder(folder / "metadata.jsonl").exists()


# datasets


def test_a_saved_data_set_is_read_with_its_videos_as_they_are_stored(tmp_path: Path) -> None:
    features = datasets.Features({"video": datasets.Video(), "id": datasets.Value("int32")})
    other = clips(tmp_path, "b.mp4") / "b.mp4"
    rows = {"video": [{"path": "a.mp4", "bytes": b"data"}, {"path": str(other), "bytes": None}], "id": [1, 2]}
    made = datasets.Dataset(pa.table(rows, schema=features.arrow_schema))
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "many")
    pq.write_table(made.data.table.take([1, 0]), tmp_path / "one.parquet")
    join_hf_dataset([tmp_path / "one.parquet"], tmp_path / "one")
    source = open_source(tmp_path / "one")
    assert list(source) == [
        {"video": {"bytes": None, "path": str(other)}, "id": 2},
        {"video": {"bytes": b"data", "path": "a.mp4"}, "id": 1},
    ]  # fmt: skip
    assert (source.count(), source.fields(), source.schema().field("id").type) == (2, ["video", "id"], pa.int32())
    with pytest.raises(DataError, match=r"several splits; name one of them: .*many/test, .*many/train"):
        open_source(tmp_path / "many")
    assert open_source(tmp_path / "many/test").count() == 2
    caption_file(operator(), tmp_path / "one", tmp_path / "out", format="datasets")
    back = datasets.load_from_disk(tmp_path / "out")
    assert back.features["video"] == datasets.Video()
    assert back["captions"] == [["b läuft 0"], ["a läuft 0"]]


def test_what_is_no_saved_data_set_is_an_error(tmp_path: Path) -> None:
    folder = clips(tmp_path / "x", "state.json")
    with pytest.raises(DataError, match="cannot read"):
        list(open_source(folder))


def test_parts_with_wider_types_are_one_data_set(tmp_path: Path) -> None:
    for form in ("datasets", ".lance"):
        (tmp_path / form).mkdir()
        path = write(target_of(tmp_path / form, form), [{"a": 1, "b": None}], [{"a": 1.5, "b": "text"}])
        assert list(open_source(path)) == [{"a": 1.0, "b": None}, {"a": 1.5, "b": "text"}]
