"""Renders small test videos whose frames carry their own number, and breaks them in every way the reader must bear.

A frame is a grid of eight black and white fields, two rows of four: the bits of its number, highest first. So a test
can tell which frame it was given, and whether it stands upright, after any codec and any resize.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("SVT_LOG", "0")

Frame = NDArray[np.uint8]

QUIET = {"libx265": {"x265-params": "log-level=none"}}


def numbered_frame(number: int, *, height: int = 64, width: int = 96) -> Frame:
    """The picture of a number from 0 to 255, uint8 `[height, width, 3]`."""
    bits = [(number >> shift) & 1 for shift in range(7, -1, -1)]
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    fields = np.array(bits).reshape(2, 4)[rows[:, None], columns[None, :]]
    return np.repeat((16 + fields * 223).astype(np.uint8)[..., None], 3, axis=2)


def number_of(frame: Frame) -> int:
    """The number a picture shows, read at the middle of its fields."""
    height, width = frame.shape[:2]
    number = 0
    for row in range(2):
        for column in range(4):
            y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 8
            number = number * 2 + int(frame[y - 1 : y + 2, x - 1 : x + 2].mean() > 127)
    return number


def numbers_of(frames: Frame) -> list[int]:
    """The numbers that frames `[T, H, W, 3]` show."""
    return [number_of(frame) for frame in frames]


def render_video(
    path: Path,
    *,
    codec: str = "libx264",
    count: int = 20,
    fps: Fraction | int | str = 10,
    height: int = 64,
    width: int = 96,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio: bool = False,
    frames: Iterable[Frame] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """Encode numbered frames (or the given ones) into a file; the container follows the suffix.

    Args:
        path: the file to write.
        codec: FFmpeg's encoder name.
        count: number of frames.
        fps: frame rate.
        height: pixels.
        width: pixels.
        pix_fmt: FFmpeg's pixel format.
        options: the encoder's options.
        container_options: the muxer's options.
        pts: time of each frame in ticks of `time_base`; without it the rate rules.
        time_base: length of a tick in seconds.
        audio: add two seconds of a sound track.
        frames: pictures to encode instead of numbered ones.
        prepare: called with the stream before encoding, to set what is not set here.
    """
    numbered = (numbered_frame(i, height=height, width=width) for i in range(count))
    pictures = numbered if frames is None else frames
    with av.open(str(path), "w", container_options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=QUIET.get(codec, {}) | (options or {}))
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.thread_count = 1
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if prepare is not None:
            prepare(stream)
        sound: Any = container.add_stream("aac", rate=8000) if audio else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None and time_base is not None:
                frame.pts, frame.time_base = pts[index], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _add_sound(container, sound)
    return path


def _add_sound(container: Any, stream: Any) -> None:
    for start in range(0, 16000, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def render_sound(path: Path) -> Path:
    """A file with a sound track only."""
    with av.open(str(path), "w") as container:
        _add_sound(container, container.add_stream("aac", rate=8000))
    return path


def rotated(degrees: int, *, hflip: bool = False, vflip: bool = False) -> Callable[[Any], None]:
    """Make players turn the picture counter-clockwise by so many degrees, then mirror it."""
    return lambda stream: stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)


def tagged(*, primaries: int, transfer: int, matrix: int, color_range: int = 1) -> Callable[[Any], None]:
    """Write colour tags (FFmpeg's numbers) into the stream."""

    def prepare(stream: Any) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix
        context.color_range = color_range

    return prepare


def patch_edit_list(path: Path, *, skip_ticks: int) -> Path:
    """Move the start of an mp4's only edit by so many media ticks, as trimming without encoding does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    version, entries = data[at], struct.unpack_from(">I", data, at + 4)[0]
    assert (version, entries) == (0, 1), "an edit list of one short entry was expected"
    (media_time,) = struct.unpack_from(">i", data, at + 12)
    struct.pack_into(">i", data, at + 12, media_time + skip_ticks)
    path.write_bytes(data)
    return path


def blank_media_data(path: Path, *, share: float = 1.0, value: int = 0) -> Path:
    """Overwrite the last `share` of an mp4's media data."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", data, at)
    first = at + 8 + int((size - 8) * (1 - share))
    data[first : at + size] = bytes([value]) * (at + size - first)
    path.write_bytes(data)
    return path


def cut(source: Path, path: Path, *, share: float) -> Path:
    """The first `share` of a file's bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


CODECS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mov": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "h264.ts": {"codec": "libx264"},
    "h264.avi": {"codec": "libx264"},
    "h264.flv": {"codec": "libx264"},
    "raw.h264": {"codec": "libx264"},
    "hevc.mp4": {"codec": "libx265"},
    "hevc.mkv": {"codec": "libx265"},
    "raw.hevc": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9.mp4": {"codec": "libvpx-vp9"},
    "live.webm": {"codec": "libvpx-vp9", "container_options": {"live": "1"}},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.webm": {"codec": "libsvtav1"},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2", "q:v": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2", "q:v": "2"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "ffv1.mkv": {"codec": "ffv1"},
    "colours.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "hevc_10bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "h264_422.mp4": {"codec": "libx264", "pix_fmt": "yuv422p"},
    "h264_444_10bit.mkv": {"codec": "libx264", "pix_fmt": "yuv444p10le"},
    "gbr.mp4": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "palette.mov": {"codec": "png", "pix_fmt": "rgba"},
    "odd.webm": {"codec": "libvpx-vp9", "height": 47, "width": 63},
    "odd_444.mp4": {"codec": "libx264", "pix_fmt": "yuv444p", "height": 47, "width": 63},
    "sound.mp4": {"codec": "libx264", "audio": True},
    "pq.mp4": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "prepare": tagged(primaries=9, transfer=16, matrix=9),
    },
}
"""Name of a file to how it is rendered; all have 20 numbered frames."""


def render_codec(name: str, folder: Path) -> Path:
    """The file of this name of `CODECS`, rendered on first use."""
    path = folder / name
    return path if path.exists() else render_video(path, **CODECS[name])


def _with_cover(path: Path) -> Path:
    """A sound file whose only picture is attached cover art."""
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(numbered_frame(3, height=64, width=64), format="rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        _add_sound(container, sound)
    return path


def _text(path: Path) -> Path:
    path.write_text("This is not a video. " * 200)
    return path


def _noise(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(50_000))
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXTINF:2,\nh264.ts\n#EXT-X-ENDLIST\n")
    return path


def _rendered(path: Path, **settings: Any) -> Path:
    return render_video(path, **({"count": 40, "options": {"g": "10"}} | settings))


def _headless(path: Path) -> Path:
    """An mp4 whose index, which stands at the end, is cut off."""
    whole = _rendered(path.with_suffix(".whole.mp4"))
    return cut(whole, path, share=0.6)


def _early_end(path: Path) -> Path:
    """An mp4 with its index in front, cut in its first third."""
    whole = _rendered(path.with_suffix(".whole.mp4"), container_options={"movflags": "faststart"})
    data = whole.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + (len(data) - start) // 4])
    return path


BROKEN: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "missing.mp4": ("not_found", lambda path: path),
    "empty.mp4": ("unreadable", _empty),
    "text.mp4": ("unreadable", _text),
    "noise.mp4": ("unreadable", _noise),
    "headless.mp4": ("unreadable", _headless),
    "folder.mp4": ("unreadable", _folder),
    "playlist.mp4": ("unreadable", _playlist),
    "early_end.mp4": ("unreadable", _early_end),
    "sound.m4a": ("no_video_stream", render_sound),
    "cover.m4a": ("no_video_stream", _with_cover),
    "blank.mp4": ("no_frames", lambda path: blank_media_data(_rendered(path))),
}
"""Name of a file to the kind of its failure and what makes it."""


def break_video(name: str, folder: Path) -> Path:
    """The file of this name of `BROKEN`, made on first use."""
    path = folder / name
    return path if path.exists() else BROKEN[name][1](path)


NOISE = {
    "libx264": {"g": "25", "bf": "2"},
    "libx265": {"x265-params": "keyint=25:log-level=none"},
    "libsvtav1": {"g": "25", "preset": "10"},
    "libvpx-vp9": {"g": "25", "deadline": "realtime"},
    "mpeg4": {"g": "25", "bf": "2"},
}
"""Encoder to options, with several key frames in what it makes."""


def noise(codec: str, path: Path, *, fragments: bool = False) -> Path:
    """Frames that do not compress, so that most of the file is media."""
    options = {"movflags": "frag_keyframe+empty_moov"} if fragments else {}
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25, options=NOISE[codec])
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(150):
            pixels = random.integers(0, 255, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
