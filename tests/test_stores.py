"""Data and videos in an object store: a real S3 server on loopback, ranges, outages, a cache with a bound."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clips import NOISE, noise
from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe import ranges as ranges_module
from reelscribe.cli import main
from reelscribe.data import Target, open_source
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.upload import local_place
from reelscribe.stores import StoredPath, is_address, located, shown
from reelscribe.types import CaptionRequest, Clip, Failure, TimeWindow
from reelscribe.video.decode.timeline import PacketTimes, index_keys, scan_packets
from reelscribe.video.files import source as source_module
from reelscribe.video.files.cache import cached
from reelscribe.video.files.mp4_boxes import media_ranges
from reelscribe.video.files.source import find_source
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.reader import read_clip
from s3_server import Door, serving

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

BUCKET = "s3://clips"
ALLOWED = ReadLimits(allow_remote=True)
POLICY = FramePolicy(min_frames=2, max_frames=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    with serving() as door:
        import fsspec

        fsspec.filesystem("s3").mkdir("clips")
        yield door


@pytest.fixture
def store(server: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    """The server, with nothing in its bucket and no runs known on this machine."""
    import fsspec

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    for name in fs.find("clips"):
        fs.rm_file(name)
    server.asked.clear()
    server.sent_bytes.clear()
    return server


def put(name: str, data: bytes) -> str:
    import fsspec

    fsspec.filesystem("s3").pipe_file(f"clips/{name}", data)
    return f"{BUCKET}/{name}"


def get(name: str) -> bytes:
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    return bytes(fs.cat_file(f"clips/{name}"))


def names() -> list[str]:
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    return [name.removeprefix("clips/") for name in fs.find("clips")]


def rows_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def words(request: CaptionRequest, i: int) -> str:
    return f"caption of {Path(request.video).stem}"


def operator(**parameters: Any) -> VideoCaptioningFromVLMMapper:
    given = {"allow_remote": True, "num_proc": 2, **parameters}
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words, policy=POLICY), **given)


# addresses


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("s3://b/k", True),
        ("S3://b/k", True),
        ("hf://datasets/a/b.jsonl", True),
        ("https://h/x", True),
        ("http://h/x", False),
        ("file:///x", False),
        ("simplecache::s3://b/k", False),
        ("local://x", False),
        ("x.jsonl", False),
    ],
)
def test_only_known_schemes_are_addresses(value: str, is_one: bool) -> None:
    assert is_address(value) == is_one
    assert isinstance(located(value), StoredPath) == is_one


def test_an_address_has_the_parts_of_a_path() -> None:
    path = StoredPath("s3://user@b/a/rows.jsonl.gz?x=secret")
    assert (path.name, path.suffix, path.parent.url) == ("rows.jsonl.gz", ".gz", "s3://user@b/a")
    assert str(path) == shown(path.url) == "s3://b/a/rows.jsonl.gz"
    assert (path.parent / "b.mp4").url == "s3://user@b/a/b.mp4"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(_url: str) -> Any:
        raise ImportError("no")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(SettingsError, match=r"gs:// needs gcsfs: pip install 'reelscribe\[stores\]'"):
        StoredPath("gs://b/k").exists()


# videos


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_stored_video_is_the_clip_of_its_file(
    store: Door, video: Callable[[str], Path], tmp_path: Path, name: str, cache: bool
) -> None:
    limits = ReadLimits(allow_remote=True, video_cache=tmp_path / "cache" if cache else None)
    url = put(name, video(name).read_bytes())
    clip, local = read_clip(url, FramePolicy(), limits=limits), read_clip(video(name), FramePolicy())
    assert isinstance(clip, Clip), clip
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)
    assert clip.pts_seconds.tolist() == local.pts_seconds.tolist()


def test_a_video_is_read_in_ranges(store: Door, video: Callable[[str], Path]) -> None:
    url = put("a.mp4", video("h264.mp4").read_bytes())
    assert isinstance(read_clip(url, POLICY, limits=ALLOWED), Clip)
    ranges = [asked for method, path, asked in store.asked if method == "GET" and path.endswith("a.mp4")]
    assert ranges
    assert all(one.startswith("bytes=") for one in ranges)


def times_of(url: str, *, times_only: bool) -> PacketTimes:
    with find_source(url, root=None, limits=ALLOWED).open(times_only=times_only) as (container, stream):
        keys = index_keys(stream) if times_only else None
        return scan_packets(container, stream, max_seconds=1e9, max_packets=10**9, keys=keys)


@pytest.mark.parametrize("codec", NOISE)
def test_times_of_an_mp4_are_read_without_its_media(
    store: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(source_module, "LEFT_OUT_BYTES", 0)
    monkeypatch.setattr(ranges_module, "BUFFER_BYTES", 1 << 12)
    path = noise(codec, tmp_path / "noise.mp4")
    url = put("noise.mp4", path.read_bytes())
    read_whole = times_of(url, times_only=False)
    store.sent_bytes.clear()
    assert times_of(url, times_only=True) == read_whole
    assert len(read_whole.keys) >= 6
    assert sum(store.sent_bytes.values()) < path.stat().st_size
    window = TimeWindow(3, 4)
    clip = read_clip(url, POLICY, window=window, limits=ALLOWED)
    local = read_clip(path, POLICY, window=window)
    assert isinstance(clip, Clip), clip
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)


def test_a_window_of_a_long_video_is_a_part_of_its_bytes(
    store: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges_module, "BUFFER_BYTES", 1 << 14)
    monkeypatch.setattr(source_module, "LEFT_OUT_BYTES", 0)
    path = noise("mpeg4", tmp_path / "noise.mp4")
    url = put("noise.mp4", path.read_bytes())
    store.sent_bytes.clear()
    assert isinstance(read_clip(url, POLICY, window=TimeWindow(5, 5.5), limits=ALLOWED), Clip)
    assert sum(store.sent_bytes.values()) < 0.8 * path.stat().st_size


def test_fragments_and_other_files_have_no_media_ranges(store: Door, tmp_path: Path) -> None:
    whole = noise("mpeg4", tmp_path / "whole.mp4")
    [(begin, end)] = media_ranges(StoredPath(put("whole.mp4", whole.read_bytes())))
    assert whole.read_bytes()[begin - 4 : begin] == b"mdat"
    assert 0.8 * whole.stat().st_size < end - begin < whole.stat().st_size
    pieces = noise("mpeg4", tmp_path / "pieces.mp4", fragments=True)
    assert len(media_ranges(StoredPath(put("pieces.mp4", pieces.read_bytes())))) in (0, 6)
    assert media_ranges(StoredPath(put("x.mp4", bytes(100)))) == []
    assert media_ranges(StoredPath(put("y.mp4", b"\0\0\0\7mdat" + bytes(100)))) == []
    large = b"\0\0\0\1mdat" + (60).to_bytes(8, "big") + bytes(44)
    assert media_ranges(StoredPath(put("z.mp4", large))) == [(16, 60)]


def failure_of(url: str, limits: ReadLimits = ALLOWED) -> Failure:
    failure = read_clip(url, POLICY, limits=limits)
    assert isinstance(failure, Failure), failure
    return failure


def test_what_is_wrong_with_a_stored_video_is_a_failure(store: Door) -> None:
    assert failure_of(f"{BUCKET}/gone.mp4").kind == "not_found"
    assert failure_of(put("x.mp4", b"no video")).kind == "unreadable"
    assert failure_of(put("empty.mp4", b"")).kind == "unreadable"
    small = ReadLimits(allow_remote=True, max_source_bytes=1000)
    assert failure_of(put("x.mp4", bytes(2000)), small).kind == "too_large"


@pytest.mark.parametrize("name", ["fetched.ts", "ranges.mp4"])
@pytest.mark.parametrize(
    ("error", "kinds"), [(TimeoutError, {"timeout"}), (FileNotFoundError, {"not_found", "unreadable"})]
)
@pytest.mark.parametrize("calls", range(1, 9))
def test_a_range_that_does_not_arrive_is_no_damage(
    store: Door,
    video: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: type[OSError],
    kinds: set[str],
    calls: int,
) -> None:
    monkeypatch.setattr(source_module, "LEFT_OUT_BYTES", 0)
    path = video("mpeg2.ts") if name == "fetched.ts" else noise("mpeg4", tmp_path / name)
    url = put(name, path.read_bytes())
    really, left = StoredPath.read_range, [calls]

    def breaks(path: StoredPath, start: int, end: int) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise error(None, "gone")
        return really(path, start, min(end, start + 500))

    monkeypatch.setattr(StoredPath, "read_range", breaks)
    failure = failure_of(url)
    assert failure.kind in kinds
    assert "did not arrive" in failure.message or "does not exist" in failure.message


def test_without_leave_nothing_is_asked(store: Door) -> None:
    before = len(store.asked)
    failure = failure_of(f"{BUCKET}/a.mp4", ReadLimits())
    assert failure.kind == "not_allowed"
    assert "--allow-remote" in failure.message
    assert len(store.asked) == before


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.mp4", "ftp://h/a.mp4", "github://a:b@/x.mp4", "local:///a.mp4"])
def test_other_schemes_are_not_read(url: str) -> None:
    assert failure_of(url).kind == "not_allowed"


def test_private_addresses_stay_closed() -> None:
    assert failure_of("https://127.0.0.1:9/a.mp4").kind == "not_allowed"


# the cache


def test_the_cache_is_used_again_and_bounded(store: Door, tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    def fetch(name: str, *, max_bytes: int = 2500) -> bytes:
        with cached(StoredPath(f"{BUCKET}/{name}"), folder, max_bytes=max_bytes) as file:
            return file.read()

    for name in "abc":
        put(name, name.encode() * 1000)
    assert fetch("a") == b"a" * 1000
    os.utime(next(folder.iterdir()), (1, 1))
    assert fetch("b") == b"b" * 1000
    asked = len([one for one in store.asked if one[0] == "GET"])
    assert fetch("a") == b"a" * 1000, "used again, so it is newer than b"
    assert len([one for one in store.asked if one[0] == "GET"]) == asked
    os.utime(max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns))
    assert fetch("c") == b"c" * 1000
    assert sum(path.stat().st_size for path in folder.iterdir()) == 2000
    assert fetch("a", max_bytes=500) == b"a" * 1000, "too large to be kept is still read"
    put("c", b"new!")
    assert fetch("c") == b"new!", "one that has changed is fetched again"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


# data


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".tar"])
def test_data_files_are_read_where_they_lie(store: Door, tmp_path: Path, suffix: str) -> None:
    rows = [{"video": f"clips/{i}.mp4", "text": f"Bär {i} 熊"} for i in range(50)]
    target = Target.of(tmp_path / f"rows{suffix}")
    part = tmp_path / f"000000.{target.format.part}"
    with target.open_part(part) as sink:
        for row in rows:
            sink.write(row)
        sink.commit()
    target.join([part])
    source = open_source(put(f"data/rows{suffix}", target.path.read_bytes()))
    found = [{key: value for key, value in row.items() if key != "__key__"} for row in source]
    assert found == rows
    assert source.folder == StoredPath(f"{BUCKET}/data")


@pytest.mark.parametrize("kind", ["datasets", "lance"])
def test_folders_of_rows_are_written_and_read_where_they_lie(
    store: Door, video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Written by a run into the bucket, and read from there by another, which goes by its columns."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    put("v/a.mp4", video("h264.mp4").read_bytes())
    rows = [{"video": "a.mp4", "text": f"Bär {i} 熊", "n": i} for i in range(150)]
    name, chosen = ("saved", {"format": "datasets"}) if kind == "datasets" else ("saved.lance", {})
    scripted = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words), num_proc=1)
    caption_file(scripted, put("v/rows.jsonl", jsonl(rows)), f"{BUCKET}/{name}", part_rows=60, **chosen)
    source = open_source(f"{BUCKET}/{name}")
    assert source.fields() == ["video", "text", "n", "captions"]
    assert source.schema().field("n").type == "int64"
    assert [{key: row[key] for key in rows[0]} for row in source] == rows
    assert list(source) == list(source), "it can be read more than once"
    again = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words), caption_key="more")
    caption_file(again, f"{BUCKET}/{name}", f"{BUCKET}/again.jsonl")
    assert [row["more"] for row in rows_of(get("again.jsonl"))] == [["caption of a"]] * 150


def test_a_folder_of_stored_videos_is_listed(store: Door) -> None:
    for name in ("v/b.mp4", "v/a.webm", "v/.hidden/x.mp4", "v/notes.txt"):
        put(name, b"x")
    assert list(open_source(f"{BUCKET}/v")) == [{"video": f"{BUCKET}/v/a.webm"}, {"video": f"{BUCKET}/v/b.mp4"}]
    with pytest.raises(DataError, match="'s3://clips/none.jsonl' does not exist"):
        open_source(f"{BUCKET}/none.jsonl")


# runs


def test_a_run_reads_and_writes_a_bucket_through_an_outage(store: Door, video: Callable[[str], Path]) -> None:
    """200 videos, the data file and the output in a bucket; the server answers nothing for three seconds."""
    data = video("h264.mp4").read_bytes()
    for i in range(200):
        put(f"in/clips/{i:03}.mp4", data)
    source = put("in/rows.jsonl", jsonl([{"video": f"clips/{i:03}.mp4", "id": i} for i in range(200)]))
    store.shut(after=150, seconds=3)
    summary = caption_file(operator(), source, f"{BUCKET}/out/captions.jsonl")
    assert store.refused > 0
    assert (summary.rows_in, summary.failed_rows) == (200, 0)
    assert rows_of(get("out/captions.jsonl")) == [
        {"video": f"clips/{i:03}.mp4", "id": i, "captions": [f"caption of {i:03}"]} for i in range(200)
    ]
    assert str(summary.output) == f"{BUCKET}/out/captions.jsonl"
    assert [name for name in names() if name.startswith("out/")] == ["out/captions.jsonl"]


def test_an_outage_that_lasts_is_a_failure_of_its_rows(store: Door, video: Callable[[str], Path]) -> None:
    url = put("a.mp4", video("h264.mp4").read_bytes())
    store.shut(after=0, seconds=600)
    try:
        assert failure_of(url, ReadLimits(allow_remote=True, max_read_seconds=1)).kind == "timeout"
    finally:
        store.shut(after=10**9, seconds=0)
        store._shut_until = 0.0


def test_failures_and_second_goes_of_a_stored_output(store: Door, video: Callable[[str], Path], tmp_path: Path) -> None:
    put("a.mp4", video("h264.mp4").read_bytes())
    source = put("rows.jsonl", jsonl([{"video": "a.mp4"}, {"video": "late.mp4"}]))
    output = f"{BUCKET}/out.parquet"
    summary = caption_file(operator(), source, output)
    assert str(summary.failures_path) == f"{output}.failures.jsonl"
    assert [row["kind"] for row in rows_of(get("out.parquet.failures.jsonl"))] == ["not_found"]
    assert caption_file(operator(), source, output).is_old
    put("late.mp4", video("h264.mp4").read_bytes())
    assert caption_file(operator(), source, output, retry=()).failed_rows == 0
    assert [row["captions"] for row in open_source(output)] == [["caption of a"], ["caption of late"]]
    assert "out.parquet.failures.jsonl" not in names()
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(DataError, match="already exists, and no run"):
        caption_file(operator(), source, output)
    with pytest.raises(DataError, match="no run with the output"):
        retry_file(output)
    assert not caption_file(operator(), source, output, overwrite=True).is_old


def test_folders_are_uploaded_file_by_file(store: Door, video: Callable[[str], Path]) -> None:
    put("v/a.mp4", video("h264.mp4").read_bytes())
    caption_file(operator(), f"{BUCKET}/v", f"{BUCKET}/shards", format="webdataset")
    assert [name for name in names() if name.startswith("shards")] == ["shards/000000.tar"]
    assert [row["captions"] for row in open_source(f"{BUCKET}/shards")] == [["caption of a"]]


def test_an_upload_that_failed_is_made_up_for(
    store: Door, video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.mp4", video("h264.mp4").read_bytes())
    source, output = put("rows.jsonl", jsonl([{"video": "a.mp4"}])), f"{BUCKET}/out.jsonl"
    caption_file(operator(), source, output)

    def fails(_path: StoredPath, _local: Path) -> None:
        raise OSError(None, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(StoredPath, "put", fails)
        with pytest.raises(DataError, match="no room"):
            caption_file(operator(caption_key="words"), source, output, update=True)
    assert "captions" in rows_of(get("out.jsonl"))[0]
    assert caption_file(operator(caption_key="words"), source, output).is_old
    assert "words" in rows_of(get("out.jsonl"))[0]


def test_captions_that_were_edited_at_their_address_are_kept(store: Door, video: Callable[[str], Path]) -> None:
    put("a.mp4", video("h264.mp4").read_bytes())
    put("b.mp4", video("h264.mp4").read_bytes())
    source, output = put("rows.jsonl", jsonl([{"video": "a.mp4"}, {"video": "b.mp4"}])), f"{BUCKET}/edited.jsonl"
    caption_file(operator(), source, output)
    put("edited.jsonl", get("edited.jsonl").replace(b"caption of a", b"by hand"))
    summary = caption_file(operator(), source, output)
    assert "1 caption edited" in summary.remarks[0]
    summary = caption_file(operator(finish_reason_key="why"), source, output, update=True)
    rows = rows_of(get("edited.jsonl"))
    assert ([row["captions"] for row in rows], summary.kept_edits) == ([["by hand"], ["caption of b"]], 1)
    assert "why" in rows[0]


def test_an_output_among_the_stored_videos_is_no_input(store: Door, video: Callable[[str], Path]) -> None:
    put("w/a.mp4", video("h264.mp4").read_bytes())
    for is_old in (False, True):
        assert caption_file(operator(), f"{BUCKET}/w", f"{BUCKET}/w/out.parquet").is_old == is_old


def test_a_folder_that_shrinks_leaves_nothing_behind(store: Door, video: Callable[[str], Path], tmp_path: Path) -> None:
    for name in "abc":
        put(f"v/{name}.mp4", video("h264.mp4").read_bytes())
    folder = {"format": "webdataset", "part_rows": 1}
    caption_file(operator(), f"{BUCKET}/v", f"{BUCKET}/shards/", **folder)
    assert len([name for name in names() if name.startswith("shards/")]) == 3
    caption_file(operator(), f"{BUCKET}/v", f"{BUCKET}/shards", limit=2, overwrite=True, **folder)
    assert [name for name in names() if name.startswith("shards/")] == ["shards/000000.tar", "shards/000001.tar"]
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(DataError, match="or remove it"):
        caption_file(operator(), f"{BUCKET}/v", f"{BUCKET}/shards", overwrite=True, **folder)


def test_what_cannot_be_written_to_a_store_is_said_first(store: Door) -> None:
    source = put("rows.jsonl", jsonl([{"video": "a.mp4"}]))
    with pytest.raises(SettingsError, match="outputs go to s3://"):
        caption_file(operator(), source, "https://host/out.jsonl")
    with pytest.raises(SettingsError, match="next to local videos"):
        caption_file(operator(), source, f"{BUCKET}/v", format="videofolder")
    assert not local_place(StoredPath(f"{BUCKET}/v")).parent.exists()


@pytest.mark.slow
def test_the_command_takes_addresses(store: Door, video: Callable[[str], Path], tmp_path: Path) -> None:
    put("a.mp4", video("h264.mp4").read_bytes())
    source = put("rows.jsonl", jsonl([{"video": "a.mp4"}]))
    cache = ["--video-cache", str(tmp_path / "cache"), "--video-cache-mib", "10"]
    command = ["caption", source, "-o", f"{BUCKET}/o.jsonl", "--model", "reelscribe/shapes", "--allow-remote", *cache]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert rows_of(get("o.jsonl"))[0]["captions"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("path", ["a\0b.jsonl", "\ud800.jsonl", Path("a\0b")])
def test_a_text_that_can_name_no_file_is_refused_in_one_line(path: str | Path) -> None:
    with pytest.raises(SettingsError, match="a character that no path can"):
        located(path)
    with pytest.raises(SettingsError, match="a character that no path can"):
        VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda _: "x"), video_root=str(path))


def test_a_file_name_of_other_bytes_than_utf8_is_a_path() -> None:
    assert located("\udcff.jsonl") == Path("\udcff.jsonl")
