"""One file to one clip: containers, codecs, times, turns, damage and limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

import clips
from reelscribe.errors import SettingsError
from reelscribe.types import Clip, Failure, TimeWindow
from reelscribe.video.decode import decoder
from reelscribe.video.decode.pixels import RgbConverter
from reelscribe.video.frames.moments import FramePolicy, is_constant_rate
from reelscribe.video.reader import WHOLE, ReadLimits, read_clip

EVERY_FRAME = FramePolicy(fps=None, min_frames=1, temporal_patch=1)
Video = Callable[[str], Path]


def clip_of(video: Any, policy: FramePolicy = EVERY_FRAME, **settings: Any) -> Clip:
    clip = read_clip(video, policy, **settings)
    assert isinstance(clip, Clip), clip
    return clip


def failure_of(video: Any, policy: FramePolicy = EVERY_FRAME, **settings: Any) -> Failure:
    failure = read_clip(video, policy, **settings)
    assert isinstance(failure, Failure), failure
    return failure


@pytest.mark.parametrize("name", clips.CODECS)
def test_every_container_and_codec_gives_its_frames_in_order(video: Video, name: str) -> None:
    clip = clip_of(video(name))
    recipe = clips.CODECS[name]
    fps = float(recipe.get("fps", 10))
    assert clips.numbers_of(clip.frames) == list(range(20))
    assert clip.source_fps == pytest.approx(fps)
    assert clip.duration_seconds == pytest.approx(20 / fps)
    assert (clip.source_height, clip.source_width) == (recipe.get("height", 64), recipe.get("width", 96))
    assert np.diff(clip.pts_seconds) == pytest.approx(1 / fps, abs=1e-3)
    if name != "h264.flv":  # its muxer delays everything by the encoder's reordering
        assert clip.pts_seconds[0] == pytest.approx(0, abs=1e-6)
    assert clip.frames.shape[1] % 32 == 0
    assert clip.frames.shape[2] % 32 == 0


@pytest.mark.parametrize("name", clips.CODECS)
def test_the_same_frames_come_from_bytes(video: Video, name: str) -> None:
    policy = FramePolicy(fps=2.0)
    path = video(name)
    from_path, from_bytes = clip_of(path, policy), clip_of(path.read_bytes(), policy)
    assert np.array_equal(from_path.frames, from_bytes.frames)
    assert np.array_equal(from_path.pts_seconds, from_bytes.pts_seconds)


@pytest.mark.parametrize("name", clips.BROKEN)
def test_broken_files_fail_with_their_kind(broken_video: Video, name: str) -> None:
    failure = failure_of(broken_video(name))
    assert failure.kind == clips.BROKEN[name][0], failure
    assert len(failure.message) <= 300


@pytest.mark.parametrize(
    "value", [None, 3, "", [1], {"path": None, "bytes": None}, {"file": "a.mp4"}, object(), b"x".hex]
)
def test_a_value_that_is_no_video_is_a_bad_sample(value: Any) -> None:
    assert failure_of(value).kind == "bad_sample"


@pytest.mark.parametrize("url", ["http://host/a.mp4", "https://host/a.mp4", "s3://bucket/a.mp4", "file://other/a.mp4"])
def test_remote_videos_are_not_read(url: str) -> None:
    failure = failure_of(url)
    assert failure.kind == ("unreadable" if url.startswith("file") else "not_allowed")
    assert "local" in failure.message or "--allow-remote" in failure.message


@pytest.mark.parametrize("text", ["pipe:0", "concat:a.ts|b.ts", "a\0b.mp4", "x" * 5000])
def test_odd_paths_fail_quietly(text: str) -> None:
    failure = failure_of(text)
    assert failure.kind in ("not_found", "unreadable")
    assert len(failure.message) <= 300


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failure_of(tmp_path / "pipe.mp4").kind == "unreadable"


def test_a_video_may_be_named_in_many_ways(video: Video, tmp_path: Path) -> None:
    path = video("h264.mp4")
    odd = tmp_path / "50% of: a|b #1 ü%03d.mp4"
    odd.write_bytes(path.read_bytes())
    data = path.read_bytes()
    ways = [str(path), path, path.as_uri(), data, bytearray(data), memoryview(data), odd, odd.as_uri()]
    ways += [{"path": str(path)}, {"path": str(path), "bytes": None}, {"path": "gone.mp4", "bytes": data}]
    for way in ways:
        assert clips.numbers_of(clip_of(way).frames) == list(range(20))
    assert len(clip_of(path.name, root=path.parent).frames) == 20
    assert failure_of(path.name, root=tmp_path).kind == "not_found"


def test_a_one_frame_file_is_padded(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "one.mp4", count=1)
    clip = clip_of(path, FramePolicy())
    assert clips.numbers_of(clip.frames) == [0, 0]
    assert clip.pts_seconds.tolist() == [0, 0]
    assert clip.duration_seconds == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "start"), [("late.mkv", 2.5), ("late.mp4", 2.5)])
def test_a_start_that_is_not_zero_stays(tmp_path: Path, name: str, start: float) -> None:
    pts = [2500 + 100 * i for i in range(20)]
    path = clips.render_video(tmp_path / name, pts=pts, time_base=Fraction(1, 1000), options={"bf": "0"})
    clip = clip_of(path)
    assert clip.pts_seconds == pytest.approx(start + np.arange(20) / 10)
    assert clip.duration_seconds == pytest.approx(2.0)


def test_transport_streams_count_from_their_start(tmp_path: Path) -> None:
    pts = [90_000 * 3600 + 9000 * i for i in range(20)]
    path = clips.render_video(tmp_path / "late.ts", pts=pts, time_base=Fraction(1, 90_000))
    clip = clip_of(path)
    assert clip.pts_seconds == pytest.approx(np.arange(20) / 10)
    assert clips.numbers_of(clip.frames) == list(range(20))


IRREGULAR_MS = [0, 40, 80, 500, 520, 1500, 2600, 2640, 2680, 4000]


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv", "vfr.webm"])
def test_variable_rates_keep_their_true_times(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = clips.render_video(tmp_path / name, codec=codec, count=10, pts=IRREGULAR_MS, time_base=Fraction(1, 1000))
    clip = clip_of(path)
    assert clip.pts_seconds * 1000 == pytest.approx(IRREGULAR_MS)
    assert clips.numbers_of(clip.frames) == list(range(10))
    assert not is_constant_rate(clip.pts_seconds)
    sparse = clip_of(path, FramePolicy(num_frames=4))
    assert clips.numbers_of(sparse.frames) == [0, 5, 8, 9]
    assert (sparse.pts_seconds * 1000).tolist() == pytest.approx([0, 1500, 2680, 4000])


def test_a_last_frame_that_stays_counts_into_the_length(tmp_path: Path) -> None:
    path = clips.render_video(
        tmp_path / "slides.gif", codec="gif", pix_fmt="rgb8", count=5, pts=[0, 100, 200, 300, 400],
        time_base=Fraction(1, 100), container_options={"final_delay": "900"},
    )  # fmt: skip
    clip = clip_of(path)
    assert clip.duration_seconds == pytest.approx(13)
    assert clip.pts_seconds.tolist() == [0, 1, 2, 3, 4]


def test_a_gif_with_uneven_delays_keeps_them(tmp_path: Path) -> None:
    pts = [0, 10, 20, 90, 100, 300]
    path = clips.render_video(
        tmp_path / "a.gif", codec="gif", pix_fmt="rgb8", count=6, pts=pts, time_base=Fraction(1, 100)
    )
    assert clip_of(path).pts_seconds == pytest.approx(np.array(pts) / 100)


def test_an_edit_list_hides_what_was_trimmed(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "trim.mp4", count=40, options={"g": "10"})
    with av.open(str(path)) as container:
        tick = container.streams.video[0].time_base
    assert tick is not None
    clips.patch_edit_list(path, skip_ticks=int(Fraction(13, 10) / tick))
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(13, 40))
    assert clip.pts_seconds == pytest.approx(np.arange(27) / 10)


@pytest.mark.parametrize(
    ("degrees", "flips"),
    [(0, {}), (90, {}), (-90, {}), (180, {}), (0, {"hflip": True}), (0, {"vflip": True}), (90, {"hflip": True})],
)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_turned_and_mirrored_videos_are_shown_upright(
    tmp_path: Path, degrees: int, flips: dict[str, bool], suffix: str
) -> None:
    """The stored picture is the upright one turned back: mirror first, then turn the other way."""

    def stored(number: int) -> Any:
        upright = clips.numbered_frame(number, height=96, width=64)
        upright = upright[:, ::-1] if flips.get("hflip") else upright
        upright = upright[::-1] if flips.get("vflip") else upright
        return np.ascontiguousarray(np.rot90(upright, -degrees // 90))

    frames = [stored(i) for i in range(20)]
    height, width = frames[0].shape[:2]
    path = clips.render_video(
        tmp_path / f"a.{suffix}",
        frames=frames,
        height=height,
        width=width,
        prepare=clips.rotated(degrees, **flips),
    )
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(20))
    assert (clip.source_height, clip.source_width) == (96, 64)
    assert clip.frames.shape[1:3] == (96, 64)


def test_frames_that_change_size_share_the_target_of_most_of_them_the_larger_on_a_tie(tmp_path: Path) -> None:
    small = clips.render_video(tmp_path / "small.h264", count=10)
    large = clips.render_video(tmp_path / "large.h264", count=10, height=128, width=192)
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    clip = clip_of(both)
    assert clips.numbers_of(clip.frames) == [*range(10), *range(10)]
    assert clip.frames.shape[1:3] == (128, 192)
    assert (clip.source_height, clip.source_width) == (128, 192)


@pytest.mark.parametrize(
    ("height", "matrix"), [(64, 5), (64, 1), (720, 1), (64, 2), (720, 2)], ids=["601", "709", "709hd", "sd", "hd"]
)
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
def test_colours_follow_the_files_matrix_and_range(tmp_path: Path, height: int, matrix: int, color_range: int) -> None:
    """Pure colours come back, whether the matrix is named or left to the frame size."""
    used = av.video.reformatter.Colorspace.ITU709 if matrix == 1 or (matrix == 2 and height == 720) else 5
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)]

    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, 96, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        for colour in colours:
            picture = np.full((height, 96, 3), colour, np.uint8)
            rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = rgb.reformat(format="yuv444p", dst_colorspace=used, dst_color_range=color_range)
            frame.colorspace, frame.color_range = matrix, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = clip_of(path)
    for frame, colour in zip(clip.frames, colours, strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(0) - colour).max() <= 3


def test_a_picture_attached_as_cover_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 512, 512, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film: Any = container.add_stream("libx264", rate=10)
        film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
        picture = clips.numbered_frame(200, height=512, width=512)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(cover.encode())
        for i in range(20):
            container.mux(film.encode(av.VideoFrame.from_ndarray(clips.numbered_frame(i), format="rgb24")))
        container.mux(film.encode())
    assert clips.numbers_of(clip_of(path).frames) == list(range(20))


# ---- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "h264.avi", "raw.h264", "vp9.webm", "colours.gif"])
def test_a_window_shows_its_own_frames(video: Video, name: str) -> None:
    clip = clip_of(video(name), window=TimeWindow(0.5, 1.2))
    assert clips.numbers_of(clip.frames) == list(range(5, 13))
    assert clip.pts_seconds == pytest.approx(np.arange(5, 13) / 10)
    assert clip.duration_seconds == pytest.approx(2.0)
    assert clip.window_seconds == pytest.approx(0.8)


def test_a_window_between_two_frames_shows_the_one_on_display(video: Video) -> None:
    clip = clip_of(video("h264.mp4"), window=TimeWindow(0.52, 0.58))
    assert clips.numbers_of(clip.frames) == [5]


def test_a_window_behind_the_end_shows_nothing(video: Video) -> None:
    failure = failure_of(video("h264.mp4"), window=TimeWindow(10, 12))
    assert failure.kind == "no_frames"


@pytest.fixture(scope="session")
def long_videos(video_folder: Path) -> list[Path]:
    """Two hundred frames with key frames among them, in every kind of group of pictures."""
    recipes: dict[str, dict[str, Any]] = {
        "long.mp4": {"options": {"g": "25", "bf": "3"}},
        "long_open.mkv": {"options": {"x264-params": "keyint=20:open-gop=1:bframes=3:scenecut=0"}},
        "long_open.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=20:open-gop=1"}},
        "long.ts": {"options": {"g": "25"}},
        "long_mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"g": "12", "bf": "2", "q:v": "2"}},
        "long.avi": {"options": {"g": "25"}},
        "long_mpeg4.avi": {"codec": "mpeg4", "options": {"g": "25"}},
        "long.webm": {"codec": "libvpx-vp9", "options": {"g": "25", "lag-in-frames": "10"}},
        "long_av1.mp4": {"codec": "libsvtav1", "options": {"g": "25", "crf": "20"}},
        "long_refresh.mkv": {"options": {"x264-params": "keyint=40:intra-refresh=1"}},
    }
    return [clips.render_video(video_folder / name, **({"count": 200} | recipe)) for name, recipe in recipes.items()]


# ---- savings ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def referring_videos(video_folder: Path) -> list[Path]:
    """Files of every codec that refers from frame to frame, with B-frames, pyramids, open groups, hidden frames."""
    recipes: dict[str, dict[str, Any]] = {
        "b_frames.mp4": {"options": {"g": "24", "bf": "3"}},
        "pyramid.mkv": {"options": {"x264-params": "keyint=30:bframes=5:b-pyramid=normal:ref=4"}},
        "open.ts": {"options": {"x264-params": "open-gop=1:keyint=25:bframes=3"}},
        "no_b.mp4": {"options": {"g": "40", "bf": "0"}},
        "refresh.mp4": {"options": {"x264-params": "keyint=40:intra-refresh=1:bframes=2"}},
        "interlaced.mp4": {"options": {"x264-params": "keyint=25:bframes=2:tff=1"}},
        "open_hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=25:open-gop=1:bframes=4"}},
        "layers.mkv": {"codec": "libx265", "options": {"x265-params": "keyint=25:temporal-layers=1:bframes=4"}},
        "hidden.webm": {"codec": "libvpx", "options": {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}},
        "hidden_vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "30", "auto-alt-ref": "1"}},
        "layered_av1.mp4": {"codec": "libsvtav1", "options": {"g": "32"}},
        "b_mpeg2.ts": {"codec": "mpeg2video", "fps": 25, "options": {"g": "15", "bf": "2", "q:v": "2"}},
        "b_mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"g": "15", "bf": "2", "q:v": "2"}},
        "b_mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "24", "bf": "2"}},
        "b_mpeg4.avi": {"codec": "mpeg4", "options": {"g": "24", "bf": "2"}},
        "b_vfr.mp4": {"pts": [40 * i + (i % 7) * 5 for i in range(120)], "time_base": Fraction(1, 1000)},
    }
    return [clips.render_video(video_folder / name, **({"count": 120} | recipe)) for name, recipe in recipes.items()]


def everything(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Every frame of a file by a plain loop that knows none of our shortcuts, uint8 `[N, H, W, 3]`."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame for packet in container.demux(video=0) for frame in packet.decode()]
        return np.stack([RgbConverter(height=height, width=width).convert(frame) for frame in frames])


@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuvj420p", "yuv422p", "nv12", "yuv420p10le", "yuv444p", "gbrp", "rgba", "gray"],
)
@pytest.mark.parametrize("size", [(112, 168), (56, 84), (224, 336)])
def test_pixels_are_near_those_of_a_processor(pixel_format: str, size: tuple[int, int]) -> None:
    """A processor of transformers makes the whole picture RGB, and scales that; to scale and convert in one step comes
    no nearer."""
    import torch
    from torchvision.transforms.v2 import functional

    rows, columns = np.mgrid[0:120, 0:176]
    waves = [120 + 90 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((9, 14), (17, 8), (12, 23))]
    picture = np.stack(waves, axis=2).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
    whole = torch.from_numpy(frame.reformat(format="rgb24").to_ndarray()).permute(2, 0, 1)
    wanted = functional.resize(whole, list(size), functional.InterpolationMode.BICUBIC, antialias=True)

    def apart(pixels: NDArray[np.uint8]) -> float:
        return float(np.abs(pixels.astype(int) - wanted.permute(1, 2, 0).numpy()).mean())

    way = {"height": size[0], "width": size[1], "format": "rgb24", "interpolation": Interpolation.BICUBIC}
    in_one_step = apart(frame.reformat(**way).to_ndarray())
    found = apart(RgbConverter(height=size[0], width=size[1]).convert(frame))
    assert found <= in_one_step + 0.1


POLICIES_OF_SAVINGS = [
    FramePolicy(fps=2.0, temporal_patch=1),
    FramePolicy(num_frames=3, temporal_patch=1),
    FramePolicy(num_frames=8, temporal_patch=1),
    FramePolicy(num_frames=41, temporal_patch=1),
    FramePolicy(fps=None, temporal_patch=1),
    FramePolicy(num_frames=1, temporal_patch=1),
]


def test_savings_change_no_pixel(
    referring_videos: list[Path], long_videos: list[Path], video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame, over all codecs of the fixtures, equals that of decoding everything."""
    used: dict[str, set[int]] = {}
    inner = decoder.frames_at

    def watched(*args: Any, way: decoder.Shortcuts, following: Any) -> Any:
        used.setdefault(args[0].name.removeprefix("file:"), set()).add(decoder.WAYS.index(way))
        return inner(*args, way=way, following=following)

    monkeypatch.setattr("reelscribe.video.reader.frames_at", watched)
    for path in [*referring_videos, *long_videos, *(video(name) for name in clips.CODECS)]:
        whole: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        all_times = clip_of(path).pts_seconds
        for policy in POLICIES_OF_SAVINGS:
            for window in (WHOLE, TimeWindow(all_times[0] + 0.55, all_times[0] + 1.25)):
                clip = clip_of(path, policy, window=window)
                size = clip.frames.shape[1:3]
                if size not in whole:
                    whole[size] = everything(path, *size)
                chosen = np.searchsorted(all_times, clip.pts_seconds - 1e-9)
                assert np.array_equal(clip.frames, whole[size][chosen]), (path.name, policy, window)
    fell_back = {Path(name).name for name, ways in used.items() if ways - {0}}
    assert "b_frames.mp4" not in fell_back
    assert len(fell_back) < len(used) / 2, fell_back


def decoded_frames(path: Path, policy: FramePolicy, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Frames that came out of the decoder for a clip."""
    count = 0
    inner = decoder.decoded

    def counted(*args: Any) -> Any:
        nonlocal count
        frames = inner(*args)
        count += len(frames)
        return frames

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "decoded", counted)
        clip_of(path, policy, **settings)
    return count


def test_frames_that_nothing_refers_to_are_not_decoded(
    referring_videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = {path.name: path for path in referring_videos}
    sparse = FramePolicy(num_frames=6, temporal_patch=1)
    for name in ("b_frames.mp4", "b_mpeg2.ts", "b_mpeg4.mp4", "open_hevc.mp4"):
        assert decoded_frames(by_name[name], sparse, monkeypatch) < 80, name


def test_nothing_is_decoded_behind_the_last_wanted_frame(
    long_videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FramePolicy(num_frames=1, temporal_patch=1)
    assert decoded_frames(long_videos[0], first, monkeypatch) == 1


def test_frames_of_intra_codecs_are_decoded_alone(video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mjpeg.avi", "prores.mov"):
        assert decoded_frames(video(name), FramePolicy(num_frames=3, temporal_patch=1), monkeypatch) == 3, name


def test_sparse_frames_are_reached_over_key_frames(long_videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = FramePolicy(num_frames=4, temporal_patch=1)
    leaps: list[int] = []
    inner = decoder._Feed.leap
    monkeypatch.setattr(decoder._Feed, "leap", lambda *args: leaps.append(args[1]) or inner(*args))
    assert decoded_frames(long_videos[0], sparse, monkeypatch) < 60
    assert len(leaps) == 3
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "SEEK_FRAMES", 10**9)
        passed_over = clip_of(long_videos[0], sparse)
    assert np.array_equal(passed_over.frames, clip_of(long_videos[0], sparse).frames)


# ---- tolerance ----------------------------------------------------------------------------------------------------


def test_a_tolerance_takes_cheaper_frames_with_their_own_times(
    long_videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = long_videos[0]
    exact = FramePolicy(num_frames=8, temporal_patch=1)
    loose = FramePolicy(num_frames=8, temporal_patch=1, time_tolerance_seconds=1.0)
    sharp, near = clip_of(path, exact), clip_of(path, loose)
    assert len(near.frames) == len(sharp.frames)
    assert np.abs(near.pts_seconds - sharp.pts_seconds).max() <= 1.0
    numbers = clips.numbers_of(near.frames)
    assert near.pts_seconds == pytest.approx(np.array(numbers) / near.source_fps), "the times of the frames taken"
    assert numbers != clips.numbers_of(sharp.frames)
    assert decoded_frames(path, loose, monkeypatch) < 0.7 * decoded_frames(path, exact, monkeypatch)
    assert np.array_equal(clip_of(path, FramePolicy(num_frames=8, temporal_patch=1)).frames, sharp.frames)


def test_a_tolerance_stays_in_the_window(long_videos: list[Path]) -> None:
    window = TimeWindow(2.05, 3.95)
    for tolerance in (0.3, 5.0):
        policy = FramePolicy(num_frames=3, temporal_patch=1, time_tolerance_seconds=tolerance)
        times = clip_of(long_videos[0], policy, window=window).pts_seconds
        assert times.min() >= 2.05
        assert times.max() <= 3.95
        assert len(set(times.tolist())) == 3


# ---- damage and limits ------------------------------------------------------------------------------------------


def test_a_file_cut_late_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = clips.render_video(
        tmp_path / "whole.mp4", codec="mpeg4", count=40, container_options={"movflags": "faststart"}
    )
    cut = clips.cut(whole, tmp_path / "cut.mp4", share=0.85)
    numbers = clips.numbers_of(clip_of(cut).frames)
    assert 20 <= len(set(numbers)) < 40
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


def test_a_file_cut_early_is_refused_but_not_for_a_window_that_is_there(tmp_path: Path) -> None:
    whole = clips.render_video(
        tmp_path / "whole.mp4", codec="mpeg4", count=100, container_options={"movflags": "faststart"}
    )
    cut = clips.cut(whole, tmp_path / "cut.mp4", share=0.35)
    assert "cut short" in failure_of(cut).message
    assert clips.numbers_of(clip_of(cut, window=TimeWindow(0, 0.5)).frames) == list(range(6))


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm", "h264.avi", "h264.ts"])
def test_other_containers_cut_early_are_refused_where_they_say_how_long_they_were(tmp_path: Path, name: str) -> None:
    recipe = clips.CODECS[name] | {"count": 200, "options": {"g": "20"}}
    whole = clips.render_video(tmp_path / name, **recipe)
    cut = clips.cut(whole, tmp_path / f"cut_{name}", share=0.3)
    result = read_clip(cut, EVERY_FRAME)
    if name == "h264.ts":  # a transport stream has no announced length: what is there is the video
        assert isinstance(result, Clip)
        return
    assert isinstance(result, Failure)
    assert result.kind == "unreadable"


def test_damaged_frames_in_the_middle_do_not_lose_the_video(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "hole.mkv", codec="mjpeg", pix_fmt="yuvj420p", count=40)
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"]
    for start in starts[10:14]:
        data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    clip = clip_of(path)
    numbers = clips.numbers_of(clip.frames)
    assert numbers == sorted(numbers)
    assert set(range(40)) - set(numbers) <= set(range(10, 14))
    assert clip.pts_seconds[numbers.index(20)] == pytest.approx(2.0)


def test_a_video_of_which_most_is_damaged_is_unreadable(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "hole.mkv", codec="mjpeg", pix_fmt="yuvj420p", count=40)
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"]
    for start in starts[5:]:
        data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    failure = failure_of(path)
    assert failure.kind == "unreadable"
    assert "5 of 40" in failure.message


def test_limits_are_kept(video: Video) -> None:
    path = video("h264.mp4")
    size = path.stat().st_size
    assert failure_of(path, limits=ReadLimits(max_source_pixels=64 * 96 - 1)).kind == "too_large"
    assert failure_of(path, limits=ReadLimits(max_source_bytes=size - 1)).kind == "too_large"
    assert failure_of(path.read_bytes(), limits=ReadLimits(max_source_bytes=size - 1)).kind == "too_large"
    assert failure_of(path, limits=ReadLimits(max_source_seconds=1.5)).kind == "too_long"
    assert failure_of(video("live.webm"), limits=ReadLimits(max_source_seconds=1.5)).kind == "too_long"
    exact = ReadLimits(max_source_pixels=64 * 96, max_source_bytes=size, max_source_seconds=2.0)
    assert len(clip_of(path, limits=exact).frames) == 20


@pytest.mark.parametrize(
    "name",
    [
        "max_source_pixels",
        "max_source_seconds",
        "max_source_frames",
        "max_source_bytes",
        "max_read_seconds",
        "max_read_memory_mib",
    ],
)
def test_limits_must_be_above_zero(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        ReadLimits(**{name: 0})


def test_hidden_frames_of_vp8_are_not_counted(video: Video, tmp_path: Path) -> None:
    """Alternate reference frames are packets of their own that show nothing."""
    path = tmp_path / "hidden.webm"
    with av.open(str(video("vp8.webm"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            data, pts = bytes(packet), packet.pts
            assert pts is not None
            packet.stream = stream
            target.mux(packet)
            if pts == 1000:
                hidden = av.Packet(bytes([data[0] & ~0x10]) + data[1:])
                hidden.pts = hidden.dts = pts + 7
                hidden.time_base, hidden.stream = Fraction(1, 1000), stream
                target.mux(hidden)
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(20))
    assert clip.source_fps == pytest.approx(10)


def test_frames_are_scaled_to_the_size_the_model_sees(video: Video) -> None:
    policy = FramePolicy(fps=2.0, min_pixels=4096, max_pixels=4 * 32 * 64)
    clip = clip_of(video("h264.mp4"), policy)
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags.c_contiguous


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "h264.avi", "vp9.webm", "hevc.mp4", "colours.gif"])
def test_damage_anywhere_is_a_clip_or_a_failure(video: Video, name: str) -> None:
    """No exception, no endless decoding, whatever bytes are lost or changed."""
    rng = np.random.default_rng(7)
    original = video(name).read_bytes()
    for _ in range(15):
        data = bytearray(original[: rng.integers(1, len(original) + 1)])
        for at in rng.integers(0, len(data), rng.integers(0, 30)):
            data[at] = rng.integers(256)
        result = read_clip(bytes(data), FramePolicy(), limits=ReadLimits(max_source_pixels=4096 * 4096))
        assert isinstance(result, Clip) or result.kind in (
            "unreadable",
            "no_video_stream",
            "no_frames",
            "too_large",
            "too_long",
        )


# where files may lie


@pytest.fixture
def walled(video: Video, tmp_path: Path) -> tuple[Path, ReadLimits]:
    """A folder with a video outside of which nothing may be read, and limits that say so."""
    inside = tmp_path / "media" / "deep"
    inside.mkdir(parents=True)
    for path in (inside / "a.mp4", tmp_path / "outside.mp4"):
        path.write_bytes(video("h264.mp4").read_bytes())
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "a.mp4").write_bytes(b"x")
    (inside / "out.mp4").symlink_to(tmp_path / "outside.mp4")
    (inside / "in.mp4").symlink_to("a.mp4")
    (inside / "up").symlink_to("../..")
    (tmp_path / "entrance").symlink_to("media")
    return tmp_path / "media", ReadLimits(media_root=tmp_path / "media")


@pytest.mark.parametrize("name", ["deep/a.mp4", "deep/in.mp4", "deep/../deep/a.mp4", "../entrance/deep/a.mp4"])
def test_files_inside_the_media_root_are_read(walled: tuple[Path, ReadLimits], name: str) -> None:
    root, limits = walled
    for value in (name, root / name, f"file://{root / name}", {"path": str(root / name), "bytes": None}):
        assert len(clip_of(value, limits=limits, root=root).frames)


@pytest.mark.parametrize(
    "name",
    ["../outside.mp4", "deep/out.mp4", "deep/up/outside.mp4", "../media2/a.mp4", "../gone.mp4", "/etc/passwd", ".."],
)
def test_files_outside_the_media_root_are_refused(walled: tuple[Path, ReadLimits], name: str) -> None:
    root, limits = walled
    for value in (name, root / name, f"file://{root / name}", {"path": str(root / name), "bytes": None}):
        assert failure_of(value, limits=limits, root=root).kind == "not_allowed"


def test_bytes_lie_nowhere_and_a_media_root_may_be_a_link(video: Video, walled: tuple[Path, ReadLimits]) -> None:
    root, limits = walled
    assert len(clip_of(video("h264.mp4").read_bytes(), limits=limits).frames)
    linked = ReadLimits(media_root=root.parent / "entrance")
    assert len(clip_of(root / "deep" / "a.mp4", limits=linked).frames)
    assert failure_of(root / "gone.mp4", limits=limits).kind == "not_found"
    assert failure_of("x\0.mp4", limits=limits, root=root).kind == "unreadable"


def test_the_number_of_frames_is_bounded(video: Video) -> None:
    for name in ("h264.mp4", "vp9.webm", "raw.h264"):
        assert len(clip_of(video(name), limits=ReadLimits(max_source_frames=20)).frames) > 1
        assert failure_of(video(name), limits=ReadLimits(max_source_frames=19)).kind == "too_long"


# files that mislead


def fast_and_plain(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Clip, Clip]:
    """A file read as it is read, and by decoding all of it."""
    fast = read_clip(str(path), FramePolicy(fps=2.0), **settings)
    with monkeypatch.context() as patch:
        patch.setattr("reelscribe.video.reader.WAYS", decoder.WAYS[-1:])
        plain = read_clip(str(path), FramePolicy(fps=2.0), **settings)
    assert isinstance(fast, Clip)
    assert isinstance(plain, Clip)
    return fast, plain


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("mpeg4", "yuv420p", "mp4"),
        ("msmpeg4", "yuv420p", "mov"),
        ("qtrle", "rgb24", "mov"),
        ("cinepak", "rgb24", "mov"),
        ("libx264", "yuv420p", "mp4"),
        ("mpeg2video", "yuv420p", "mp4"),
    ],
)
def test_flags_of_key_frames_that_are_not_true_change_no_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, pix_fmt: str, suffix: str
) -> None:
    """Without its table of key frames every frame of an MP4 counts as one."""

    def long_groups(stream: Any) -> None:
        stream.gop_size = 50

    path = clips.render_video(
        tmp_path / f"true.{suffix}", codec=codec, pix_fmt=pix_fmt, count=90, fps=25, prepare=long_groups
    )
    data = path.read_bytes()
    assert data.count(b"stss") == 1
    liar = tmp_path / f"liar.{suffix}"
    liar.write_bytes(data.replace(b"stss", b"free"))
    fast, plain = fast_and_plain(liar, monkeypatch)
    assert np.array_equal(fast.frames, plain.frames)
    truth, _ = fast_and_plain(path, monkeypatch)
    assert np.array_equal(fast.frames, truth.frames)


@pytest.mark.parametrize("suffix", ["avi", "mov"])
def test_a_palette_that_came_with_an_earlier_frame_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"palette.{suffix}"
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0], palette[:, 1:] = 255, np.arange(256)[::-1, None]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "pal8"
        for index in range(40):
            picture = np.full((64, 96), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray((picture, palette), format="pal8")))
        container.mux(stream.encode())
    fast, plain = fast_and_plain(path, monkeypatch, window=TimeWindow(2.0, None))
    assert np.array_equal(fast.frames, plain.frames)
    assert fast.frames[0].mean() == pytest.approx(255 - 5 * 20, abs=2)
