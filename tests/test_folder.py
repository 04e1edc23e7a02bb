"""Folders: every suffix of a video that can be read, what is passed over, and what only looks like a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import clips
from reelscribe.data import open_source, passed_over
from reelscribe.data.folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES, passed_over_text
from reelscribe.errors import DataError
from reelscribe.types import Clip
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.reader import read_clip

EVERY = FramePolicy(fps=None, multiple=2, min_pixels=16, temporal_patch=1)
HD = {"height": 576, "width": 720, "fps": 25}

MUXERS: dict[tuple[str, ...], tuple[str, str, dict[str, Any]]] = {
    (".mp4", ".m4v", ".mp4v", ".mpg4", ".insv", ".lrv", ".lrf", ".360"): ("mp4", "libx264", {}),
    (".mov", ".qt", ".mqv"): ("mov", "libx264", {}),
    (".f4v",): ("f4v", "libx264", {}),
    (".ismv",): ("ismv", "libx264", {}),
    (".mj2",): ("mp4", "jpeg2000", {}),
    (".3gp", ".3gpp"): ("3gp", "libx264", {}),
    (".3g2", ".3gp2", ".3gpp2"): ("3g2", "libx264", {}),
    (".mkv", ".mk3d"): ("matroska", "libx264", {}),
    (".webm",): ("webm", "libvpx", {}),
    (".avi", ".divx", ".xvid"): ("avi", "mpeg4", {}),
    (".asf", ".wmv", ".wm"): ("asf", "wmv2", {}),
    (".ogv", ".ogm", ".ogx"): ("ogg", "libvpx", {}),
    (".flv",): ("flv", "flv", {}),
    (".gif",): ("gif", "gif", {"pix_fmt": "rgb8"}),
    (".apng",): ("apng", "apng", {"pix_fmt": "rgb24"}),
    (".avif",): ("avif", "libsvtav1", {}),
    (".ts", ".mts", ".m2ts", ".m2t", ".tod", ".trp", ".tp"): ("mpegts", "mpeg2video", {"fps": 25}),
    (".mpg", ".mpeg", ".mpe"): ("mpeg", "mpeg1video", {"fps": 25}),
    (".vob", ".mod", ".m2p", ".vro", ".evo", ".mpg2", ".mpeg2"): ("vob", "mpeg2video", {"fps": 25}),
    (".m1v",): ("mpeg1video", "mpeg1video", {"fps": 25}),
    (".m2v", ".mpv", ".mp2v"): ("mpeg2video", "mpeg2video", {"fps": 25}),
    (".h264", ".264", ".avc"): ("h264", "libx264", {}),
    (".h265", ".265", ".hevc"): ("hevc", "libx265", {}),
    (".ivf",): ("ivf", "libvpx", {}),
    (".obu", ".av1"): ("obu", "libsvtav1", {}),
    (".y4m",): ("yuv4mpegpipe", "wrapped_avframe", {}),
    (".mjpeg", ".mjpg"): ("mjpeg", "mjpeg", {"pix_fmt": "yuvj420p"}),
    (".dv", ".dif"): ("dv", "dvvideo", HD),
    (".rm", ".rmvb"): ("rm", "rv20", {"height": 144, "width": 176}),
    (".nut",): ("nut", "mpeg4", {"fps": 25}),
    (".wtv",): ("wtv", "mpeg2video", {"fps": 25}),
    (".gxf",): ("gxf", "mpeg2video", HD),
    (".mxf",): ("mxf", "mpeg2video", {"fps": 25}),
}
"""Suffixes to FFmpeg's muxer and encoder for them, and what these want."""
NO_MUXER = {".h266", ".266", ".vvc", ".vc1", ".nsv", ".lxf", ".ty", ".viv", ".amv", ".webp"}
"""Suffixes of formats that FFmpeg here reads, and does not write alone; `.webp` is in `test_stills.py`."""


def rendered(path: Path, muxer: str, codec: str, options: dict[str, Any]) -> Path:
    height, width = options.get("height", 64), options.get("width", 96)
    with av.open(str(path), "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=options.get("fps", 10), options=clips.QUIET.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt = height, width, options.get("pix_fmt", "yuv420p")
        for i in range(8):
            picture = clips.numbered_frame(i, height=height, width=width)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_every_suffix_is_tried() -> None:
    assert {suffix for suffixes in MUXERS for suffix in suffixes} | NO_MUXER == set(VIDEO_SUFFIXES)


@pytest.mark.parametrize("suffixes", MUXERS, ids=lambda suffixes: suffixes[0])
def test_every_kind_of_video_of_a_folder_gives_a_clip(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    made = rendered(tmp_path / "first", *MUXERS[suffixes])
    data = made.read_bytes()
    made.unlink()
    for suffix in suffixes:
        (tmp_path / f"x{suffix.upper()}").write_bytes(data)
    source = open_source(tmp_path)
    assert (source.count(), passed_over(source)) == (len(suffixes), {})
    for video in [*(row["video"] for row in source), data]:
        clip = read_clip(video, EVERY)
        assert isinstance(clip, Clip), clip
        assert clips.numbers_of(clip.frames) == list(range(8))


def test_files_that_are_empty_or_damaged_stay_rows(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        (tmp_path / f"empty{suffix}").write_bytes(b"")
        (tmp_path / f"damaged{suffix}").write_bytes(bytes(range(256)))
    expected = 2 * len(VIDEO_SUFFIXES) - 2
    source = open_source(tmp_path)
    assert (source.count(), passed_over(source)) == (expected, {".webp": 2})


def test_what_has_the_suffix_of_a_video_and_is_plainly_none_is_passed_over(tmp_path: Path) -> None:
    tracker = bytearray(2000)
    tracker[:5], tracker[1080:1084] = b"song\0", b"M.K."
    (tmp_path / "song.mod").write_bytes(tracker)
    (tmp_path / "go.mod").write_text("module example.org/x\n\ngo 1.22\n")
    (tmp_path / "main.nut").write_text('print("squirrel")\n')
    Image.fromarray(clips.numbered_frame(1)).save(tmp_path / "still.avif")
    Image.fromarray(clips.numbered_frame(1)).save(tmp_path / "still.webp")
    rendered(tmp_path / "film.mod", "vob", "mpeg2video", {"fps": 25})
    source = open_source(tmp_path)
    assert [Path(row["video"]).name for row in source] == ["film.mod"]
    assert passed_over(source) == {".mod": 2, ".nut": 1, ".avif": 1, ".webp": 1}
    with_images = open_source(tmp_path, images=True)
    assert [Path(row["video"]).name for row in with_images] == ["film.mod", "still.avif", "still.webp"]


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    names = [
        "a.mp4",
        "a.txt",
        "sub/b.TXT",
        "sub/c.psd",
        "README",
        "x.tar.gz",
        ".hidden.txt",
        ".git/config",
        "sub/._a.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = open_source(tmp_path)
    assert passed_over(source) == {".txt": 2, ".psd": 1, "": 1, ".gz": 1}
    assert passed_over_text(passed_over(source)) == "5 files (.txt 2, without a suffix 1, .gz 1, .psd 1)"
    assert passed_over_text({".a": 1}) == "1 file (.a 1)"
    many = passed_over_text({f".{i:03}": 1 for i in range(100)})
    assert many.startswith("100 files (.000 1, ")
    assert many.endswith(", others 88)")


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_files_beside_shards_and_tables_are_counted_too(tmp_path: Path, suffix: str) -> None:
    for name in (f"a{suffix}", f"b{suffix}", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert passed_over(open_source(tmp_path)) == {".md": 1}


def test_a_folder_without_videos_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is empty"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"only 1 file \(\.txt 1\); videos are") as caught:
        open_source(tmp_path)
    assert "--allow-images" not in str(caught.value)
    for name in ("b.jpg", "c.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"only 3 files \(\.jpg 1, \.png 1, \.txt 1\).*--allow-images"):
        open_source(tmp_path)


def test_still_pictures_are_listed_where_asked_for(tmp_path: Path) -> None:
    for suffix in IMAGE_SUFFIXES:
        (tmp_path / f"x{suffix.upper()}").write_bytes(np.zeros(10, np.uint8).tobytes())
    source = open_source(tmp_path, images=True)
    assert (source.count(), passed_over(source)) == (len(IMAGE_SUFFIXES), {})
