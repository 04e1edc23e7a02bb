"""Still and animated pictures as videos, and which of several streams is shown."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import clips
from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper, cli
from reelscribe.data import open_source
from reelscribe.data.folder import IMAGE_SUFFIXES
from reelscribe.errors import DataError
from reelscribe.runners.run.run import caption_file
from reelscribe.types import Candidate, CaptionResult, Clip, Failure, TimeWindow
from reelscribe.video.files.source import _video_stream
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.reader import read_clip
from rows import jsonl, load

EVERY = FramePolicy(sizer="video_budget", fps=None, multiple=2, min_pixels=16, temporal_patch=1)
ALLOWED = ReadLimits(allow_images=True)
ANIMATED_MS = (40, 100, 500, 40, 70, 1000)


def picture(number: int = 0, *, height: int = 64, width: int = 96) -> Image.Image:
    return Image.fromarray(clips.numbered_frame(number, height=height, width=width))


def still(path: Path, number: int = 83, **options: Any) -> Path:
    picture(number).save(path, **options)
    return path


def animated(path: Path, lengths_ms: tuple[int, ...] = ANIMATED_MS, **options: Any) -> Path:
    first, *rest = [picture(10 * i) for i in range(len(lengths_ms))]
    first.save(path, save_all=True, append_images=rest, duration=list(lengths_ms), **options)
    return path


def clip_of(video: Any, **given: Any) -> Clip:
    found = read_clip(video, EVERY, **given)
    assert isinstance(found, Clip), found
    return found


def failure_of(video: Any, **given: Any) -> Failure:
    found = read_clip(video, EVERY, **given)
    assert isinstance(found, Failure)
    assert "Invalid argument" not in found.message
    return found


# ---- still pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_still_picture_is_a_clip_of_one_frame_where_that_is_allowed(tmp_path: Path, suffix: str) -> None:
    path = still(tmp_path / f"x{suffix}")
    refused = failure_of(str(path))
    assert refused.kind == "not_allowed"
    assert "still picture" in refused.message
    assert "--allow-images" in refused.message
    for video in (str(path), path.read_bytes(), {"path": None, "bytes": path.read_bytes()}):
        clip = clip_of(video, limits=ALLOWED)
        assert clips.numbers_of(clip.frames) == [83]
        assert clip.frames.shape == (1, 64, 96, 3)
        assert clip.pts_seconds.tolist() == [0.0]
        assert (clip.source_height, clip.source_width) == (64, 96)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".avif"])
def test_exif_orientation_turns_a_still_picture(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The stored picture is the upright one turned the other way."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = picture(83) if orientation == 1 else picture(83).transpose(back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x{suffix}", exif=exif)
    clip = clip_of(tmp_path / f"x{suffix}", limits=ALLOWED)
    assert clips.numbers_of(clip.frames) == [83]
    assert (clip.source_height, clip.source_width) == (64, 96)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_other_modes_are_shown_as_they_look(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        deep = clips.numbered_frame(83)[..., 0].astype(np.uint16) * 257
        Image.fromarray(deep).save(tmp_path / "x.png")
    else:
        picture(83).convert(mode).save(tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"))
    (path,) = tmp_path.iterdir()
    clip = clip_of(path, limits=ALLOWED)
    assert clips.numbers_of(clip.frames) == [83]
    assert np.abs(clip.frames[0].astype(int) - clips.numbered_frame(83)).mean() < 30


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header says a size that its data have not."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = still_bytes("PNG")
    return data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]


def still_bytes(form: str) -> bytes:
    buffer = io.BytesIO()
    picture(83).save(buffer, form)
    return buffer.getvalue()


def test_pictures_over_the_limit_are_refused_by_their_header() -> None:
    for data, limits in (
        (bomb(60_000, 60_000), ALLOWED),
        (bomb(9_000, 9_000), ALLOWED),
        (still_bytes("JPEG"), ReadLimits(allow_images=True, max_source_pixels=96 * 64 - 1)),
    ):
        assert failure_of(data, limits=limits).kind == "too_large"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_damaged_picture_is_unreadable(form: str) -> None:
    data = still_bytes(form)
    assert failure_of(data[: len(data) // 2], limits=ALLOWED).kind == "unreadable"


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("JPEG XL", b"\xff\x0a\xfa\x1f"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("PSD", b"8BPS\0\1\0\0"),
        ("OpenEXR", b"\x76\x2f\x31\x01\2\0\0\0"),
        ("QOI", b"qoif\0\0\0\x60"),
    ],
)
def test_kinds_that_are_not_read_are_named(kind: str, head: bytes) -> None:
    for limits in (ReadLimits(), ALLOWED):
        failure = failure_of(head + bytes(500), limits=limits)
        assert failure.kind == "unreadable"
        assert f"a still picture of type {kind}, " in failure.message


def test_what_no_demuxer_here_may_open_is_said_so(tmp_path: Path) -> None:
    picture().save(tmp_path / "x.ico")
    assert "a picture, a playlist or another type" in failure_of(tmp_path / "x.ico").message


def test_a_stream_of_jpeg_pictures_is_a_video(tmp_path: Path) -> None:
    data = b"".join(jpeg(i) for i in range(5))
    (tmp_path / "x.mjpeg").write_bytes(data)
    for video in (tmp_path / "x.mjpeg", data):
        assert clips.numbers_of(clip_of(video).frames) == [0, 1, 2, 3, 4]


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "JPEG")
    return buffer.getvalue()


def test_pictures_of_one_scene_in_one_jpeg_file_are_a_still(tmp_path: Path) -> None:
    """As phones write them: the picture, and a map of its brightness, or what the other eye sees."""
    picture(83).save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[picture(1)])
    assert failure_of(tmp_path / "x.jpg").kind == "not_allowed"
    assert clips.numbers_of(clip_of(tmp_path / "x.jpg", limits=ALLOWED).frames) == [83]
    (tmp_path / "motion.jpg").write_bytes(jpeg(83) + b"\0\0\0\x18ftypmp42" + bytes(1000))
    assert clips.numbers_of(clip_of(tmp_path / "motion.jpg", limits=ALLOWED).frames) == [83]


# ---- animated pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "minimize_size": True}])
def test_an_animated_webp_has_its_own_times(tmp_path: Path, options: dict[str, Any]) -> None:
    path = animated(tmp_path / "x.webp", **options)
    for video in (path, path.read_bytes()):
        clip = clip_of(video)
        assert clips.numbers_of(clip.frames) == [0, 10, 20, 30, 40, 50]
        assert clip.pts_seconds.tolist() == pytest.approx([0, 0.04, 0.14, 0.64, 0.68, 0.75])
        assert clip.duration_seconds == pytest.approx(1.75)
        assert clip.source_fps == pytest.approx(6 / 1.75)


def test_an_animated_webp_is_sampled_as_a_video_of_the_same_times_is(tmp_path: Path) -> None:
    lengths = (100,) * 20
    webp = animated(tmp_path / "x.webp", lengths, lossless=True)
    png = animated(tmp_path / "x.png", lengths)
    policy = FramePolicy(multiple=2, min_pixels=16)
    for window in (TimeWindow(), TimeWindow(0.5, 1.2)):
        one, other = (read_clip(path, policy, window=window) for path in (webp, png))
        assert isinstance(one, Clip)
        assert isinstance(other, Clip)
        assert np.array_equal(one.frames, other.frames)
        assert one.pts_seconds.tolist() == pytest.approx(other.pts_seconds.tolist())
        assert (one.duration_seconds, one.source_fps) == pytest.approx((other.duration_seconds, other.source_fps))
        assert (one.window_seconds is None) == (other.window_seconds is None)
    assert failure_of(webp, window=TimeWindow(5, 6)).kind == "no_frames"


def test_a_frame_of_an_animated_webp_without_a_length_stays_a_tenth_of_a_second(tmp_path: Path) -> None:
    clip = clip_of(animated(tmp_path / "x.webp", (40, 0, 50), lossless=True))
    assert clip.pts_seconds.tolist() == pytest.approx([0, 0.04, 0.14])


def test_what_a_frame_leaves_is_disposed_of(tmp_path: Path) -> None:
    """Only a small part changes, so that the file holds only that part."""
    frames = [Image.new("RGB", (96, 64), (200, 0, 0)) for _ in range(3)]
    for i, frame in enumerate(frames):
        frame.paste((0, 0, 200), (30 * i, 10, 30 * i + 20, 30))
    path = tmp_path / "x.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True, minimize_size=True)
    for shown, drawn in zip(clip_of(path).frames, frames, strict=True):
        assert np.abs(shown.astype(int) - np.asarray(drawn)).max() <= 8


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (ReadLimits(max_source_frames=5), "too_long"),
        (ReadLimits(max_source_seconds=1.7), "too_long"),
        (ReadLimits(max_source_pixels=96 * 64 - 1), "too_large"),
    ],
)
def test_an_animated_webp_keeps_to_the_limits(tmp_path: Path, limits: ReadLimits, kind: str) -> None:
    assert failure_of(animated(tmp_path / "x.webp"), limits=limits).kind == kind


def test_a_truncated_animated_webp_is_unreadable(tmp_path: Path) -> None:
    data = animated(tmp_path / "x.webp").read_bytes()
    assert failure_of(data[: len(data) // 2]).kind == "unreadable"
    assert failure_of(data[:40]).kind in ("no_frames", "unreadable")


@pytest.mark.parametrize(
    ("name", "options"), [("x.png", {}), ("x.apng", {"format": "PNG"}), ("x.avif", {}), ("x.gif", {})]
)
def test_other_animated_pictures_are_videos(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = animated(tmp_path / name, (40, 100, 500, 40, 70, 1000), **options)
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == [0, 10, 20, 30, 40, 50]
    assert clip.pts_seconds.tolist() == pytest.approx([0, 0.04, 0.14, 0.64, 0.68, 0.75])


# ---- which stream is shown --------------------------------------------------------------------------------------

Track = tuple[str, int, int, str, int, int]
FILM: Track = ("libx264", 320, 192, "yuv420p", 6, 100)
THUMBNAILS: Track = ("libx264", 160, 96, "yuv420p", 6, 0)
COVER: Track = ("mjpeg", 640, 384, "yuvj420p", 1, 0)
SLOW_COVER: Track = ("mjpeg", 640, 384, "yuvj420p", 6, 0)
ALPHA: Track = ("libx265", 320, 192, "gray", 6, 0)


def with_tracks(path: Path, *tracks: Track, prepare: Callable[[list[Any]], None] = lambda _: None) -> Path:
    """A file with these streams: codec, width, height, pixel format, number of frames, number of the first."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for codec, width, height, pix_fmt, *_ in tracks:
            stream: Any = container.add_stream(codec, rate=10, options=clips.QUIET.get(codec, {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            streams.append(stream)
        prepare(streams)
        for i in range(max(track[4] for track in tracks)):
            for stream, (_, width, height, _, count, first) in zip(streams, tracks, strict=True):
                if i < count:
                    drawn = clips.numbered_frame(first + i, height=height, width=width)
                    frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                    frame.pts = i
                    container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("other", [THUMBNAILS, COVER, SLOW_COVER, ALPHA], ids=["thumbnails", "cover", "mjpeg", "alpha"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
def test_the_picture_is_shown(tmp_path: Path, suffix: str, other: Track, is_first: bool) -> None:
    tracks = (other, FILM) if is_first else (FILM, other)
    path = with_tracks(tmp_path / f"x{suffix}", *tracks)
    assert clips.numbers_of(clip_of(path).frames) == [100, 101, 102, 103, 104, 105]


@pytest.mark.parametrize("mark", ["timed_thumbnails", "non_diegetic", "dependent", "still_image", "metadata"])
def test_streams_that_the_file_sets_aside_are_not_shown(mark: str) -> None:
    """No muxer here writes these marks, so what the choice looks at stands for the file."""
    context = SimpleNamespace(name="h264", width=320, height=192, format=SimpleNamespace(components=(1, 2, 3)))
    none = av.stream.Disposition(0)
    film: Any = SimpleNamespace(index=1, disposition=none, frames=6, codec_context=context)
    other: Any = SimpleNamespace(index=0, disposition=av.stream.Disposition[mark], frames=6, codec_context=context)
    for streams in ([other, film], [film, other]):
        container: Any = SimpleNamespace(metadata={}, streams=Streams(streams, best=other))
        assert _video_stream(container) is film
    container = SimpleNamespace(metadata={}, streams=Streams([other], best=other))
    assert _video_stream(container) is other, "alone, it is the picture"


class Streams:
    """Video streams of a container, and which of them FFmpeg likes best."""

    def __init__(self, video: list[Any], *, best: Any) -> None:
        self.video, self._best = video, best

    def best(self, _kind: str) -> Any:
        return self._best


def test_of_equal_streams_the_default_is_shown(tmp_path: Path) -> None:
    """A smaller angle that is the default stays it: it is no thumbnail."""

    def prepare(streams: list[Any]) -> None:
        streams[1].disposition = av.stream.Disposition.default

    large = ("libx264", 320, 192, "yuv420p", 6, 0)
    small = ("libx264", 240, 144, "yuv420p", 6, 100)
    path = with_tracks(tmp_path / "x.mkv", large, small, prepare=prepare)
    assert clips.numbers_of(clip_of(path).frames)[0] == 100


def test_a_stream_that_is_alone_is_shown_whatever_it_is(tmp_path: Path) -> None:
    for name, track in (("gray.mp4", ALPHA), ("mjpeg.mkv", SLOW_COVER), ("one.mkv", COVER)):
        assert clips.numbers_of(clip_of(with_tracks(tmp_path / name, track)).frames) == list(range(track[4]))


def test_the_alpha_plane_of_an_avif_sequence_is_not_shown(tmp_path: Path) -> None:
    """Noise as alpha, so that its track has more data than the picture."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 96), np.uint8)
    frames = [picture(10 * i) for i in range(6)]
    for frame, alpha in zip(frames, noise, strict=True):
        frame.putalpha(Image.fromarray(alpha))
    frames[0].save(tmp_path / "x.avif", save_all=True, append_images=frames[1:], duration=100, quality=90)
    clip = clip_of(tmp_path / "x.avif")
    assert clips.numbers_of(clip.frames) == [0, 10, 20, 30, 40, 50]
    assert clip.pts_seconds.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


# ---- data sets --------------------------------------------------------------------------------------------------


def operator(**parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=Seeing(), num_proc=1, **parameters)


class Seeing(ScriptedCaptioner):
    """Says which number the first frame shows."""

    def __init__(self) -> None:
        super().__init__(lambda _request, _i: "", policy=EVERY)

    def caption(self, items: Any) -> Any:
        for request, clip in items:
            text = str(clips.numbers_of(clip.frames)[0])
            yield CaptionResult(request.id, (Candidate(text, tokens=1),))


def test_pictures_of_rows_and_of_a_folder_are_captioned_where_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    still(folder / "a.png", 7)
    animated(folder / "b.webp", lossless=True)
    clips.render_video(folder / "c.mkv")
    (folder / "notes.txt").write_text("x")
    summary = caption_file(operator(), folder, tmp_path / "out.jsonl")
    assert (summary.rows_in, summary.failed_rows, summary.passed_over) == (2, 0, {".png": 1, ".txt": 1})
    summary = caption_file(operator(allow_images=True), folder, tmp_path / "more.jsonl")
    assert (summary.rows_in, summary.failed_rows, summary.passed_over) == (3, 0, {".txt": 1})
    assert [row["captions"] for row in load(tmp_path / "more.jsonl")] == [["7"], ["0"], ["0"]]


def test_the_command_says_what_a_still_picture_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelscribe.operator.load_captioner", lambda _spec: Seeing())
    still(tmp_path / "a.png", 7)
    rows = jsonl(tmp_path / "in.jsonl", [{"video": "a.png"}])
    command = ["caption", str(rows), "-o", str(tmp_path / "out.jsonl"), "--model", "reelscribe/shapes"]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 3, result.output
    (failure,) = load(tmp_path / "out.jsonl.failures.jsonl")
    assert failure["kind"] == "not_allowed"
    assert "--allow-images" in failure["message"]
    again = ["retry", str(tmp_path / "out.jsonl"), "--allow-images"]
    result = CliRunner().invoke(cli.main, again)
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "out.jsonl")[0]["captions"] == ["7"]
    folder = ["caption", str(tmp_path), "-o", str(tmp_path / "all/out.jsonl"), "--model", "reelscribe/shapes"]
    result = CliRunner().invoke(cli.main, folder)
    assert result.exit_code == 1
    for part in ("no videos", ".png 1", ".jsonl 2", "--allow-images"):
        assert part in result.output
    result = CliRunner().invoke(cli.main, [*folder, "--allow-images"])
    assert result.exit_code == 0, result.output
    assert "passed over  2 files (.jsonl 2)" in result.output


def test_one_still_picture_is_an_input_where_allowed(tmp_path: Path) -> None:
    path = still(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"still picture \(JPEG\).*--allow-images"):
        open_source(path)
    assert open_source(path, images=True).count() == 1
    assert open_source(animated(tmp_path / "b.png")).count() == 1


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_still_picture_of_a_tar_sample_is_its_video_where_it_has_no_other(tmp_path: Path) -> None:
    data, film = jpeg(7), clips.render_video(tmp_path / "x.mkv").read_bytes()
    path = shard(tmp_path / "x.tar", {"a.jpg": data, "a.mkv": film, "b.jpg": data, "b.txt": b"seven"})
    rows = list(open_source(path, images=True))
    assert [row["video"]["path"] for row in rows] == ["a.mkv", "b.jpg"]
    assert rows[0]["jpg"] == data
    assert "video" not in list(open_source(path))[1]
    summary = caption_file(operator(allow_images=True), path, tmp_path / "out.parquet")
    assert (summary.captions, summary.failed_rows) == (2, 0)
    alone = shard(tmp_path / "y.tar", {"b.jpg": data})
    with pytest.raises(DataError, match="--allow-images"):
        caption_file(operator(), alone, tmp_path / "none.jsonl")


def test_thumbnails_of_a_tar_sample_do_not_take_the_place_of_its_video(tmp_path: Path) -> None:
    film = clips.render_video(tmp_path / "x.mkv").read_bytes()
    stills = {f"a.{form.lower()}": still_bytes(form) for form in ("AVIF", "WEBP", "PNG")}
    for images in (False, True):
        (row,) = open_source(shard(tmp_path / "x.tar", {**stills, "a.mkv": film}), images=images)
        assert row["video"] == {"path": "a.mkv", "bytes": film}
        assert row["avif"] == stills["a.avif"]


def test_pictures_go_into_shards_with_their_captions(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = still(folder / "a.png", 7)
    caption_file(operator(allow_images=True), folder, tmp_path / "out.tar", with_videos=True)
    with tarfile.open(tmp_path / "out.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    by_suffix = {Path(name).suffix: data for name, data in members.items()}
    assert by_suffix[".png"] == path.read_bytes()
    assert json.loads(by_suffix[".json"])["captions"] == ["7"]
