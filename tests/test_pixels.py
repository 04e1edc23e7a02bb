"""From a decoded frame to what the model sees: which way up, in which shape, range and light."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from numpy.typing import NDArray
from PIL import Image

import clips
from reelscribe.errors import SettingsError
from reelscribe.types import Clip
from reelscribe.video.decode import hdr
from reelscribe.video.decode.orientation import Orientation
from reelscribe.video.decode.pixels import Look, RgbConverter, pixel_aspect, upright_size
from reelscribe.video.frames.policy import FramePolicy, FrameSettings
from reelscribe.video.reader import read_clip

EVERY_FRAME = FramePolicy(fps=None, min_frames=1, temporal_patch=1)
Pixels = NDArray[np.uint8]


def clip_of(path: Path, **settings: Any) -> Clip:
    clip = read_clip(path, EVERY_FRAME.override(FrameSettings(**settings)))
    assert isinstance(clip, Clip), clip
    return clip


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


# ---- which way up -----------------------------------------------------------------------------------------------


def still(number: int, *, form: str, orientation: int | None = None) -> bytes:
    """A picture as a camera stores it: with EXIF, whether or not that says how it stands."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0132] = "Canon", "2024:01:01 00:00:00"
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(clips.numbered_frame(number)).save(
        file, form, exif=exif, **({"quality": 95} if form == "jpeg" else {})
    )
    return file.getvalue()


def time_lapse(path: Path, *, codec: str = "mjpeg", pix_fmt: str = "yuvj420p", orientation: int | None = None,
               prepare: Callable[[Any], None] = lambda stream: None) -> Path:  # fmt: skip
    """Pictures with EXIF, put into a container as they are."""
    form = "jpeg" if codec == "mjpeg" else "png"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        prepare(stream)
        for index in range(12):
            packet = av.Packet(still(index, form=form, orientation=orientation))
            packet.stream, packet.time_base = stream, Fraction(1, 5)
            packet.pts = packet.dts = index
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return path


def shown(clip: Clip, *, undo: Callable[[Pixels], Pixels] = lambda frame: frame) -> list[int]:
    return [clips.number_of(undo(frame)) for frame in clip.frames]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [(f"a.{suffix}", "mjpeg", "yuvj420p") for suffix in ("mkv", "avi", "mov", "mp4", "nut")]
    + [(f"b.{suffix}", "png", "rgb24") for suffix in ("avi", "mov", "mp4", "nut")],
)
def test_pictures_with_exif_are_read(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = time_lapse(tmp_path / name, codec=codec, pix_fmt=pix_fmt)
    clip = clip_of(path)
    assert shown(clip) == list(range(12))
    assert clip.pts_seconds == pytest.approx(np.arange(12) / 5)


TURNS: dict[str, tuple[int | None, Callable[[Any], None], Callable[[Pixels], Pixels]]] = {
    "container 90": (None, clips.rotated(90), lambda frame: np.rot90(frame, -1)),
    "container -90": (None, clips.rotated(-90), lambda frame: np.rot90(frame, 1)),
    "container 180": (None, clips.rotated(180), lambda frame: np.rot90(frame, 2)),
    "container vflip": (None, clips.rotated(0, vflip=True), lambda frame: frame[::-1]),
    "container hflip": (None, clips.rotated(0, hflip=True), lambda frame: frame[:, ::-1]),
    "container 90 hflip": (None, clips.rotated(90, hflip=True), lambda frame: np.rot90(frame[:, ::-1], -1)),
    "picture 6": (6, lambda stream: None, lambda frame: np.rot90(frame, 1)),
    "picture 3": (3, lambda stream: None, lambda frame: np.rot90(frame, 2)),
    "picture 2": (2, lambda stream: None, lambda frame: frame[:, ::-1]),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", ["mkv", "mov", "mp4"])
def test_no_turn_is_lost_beside_exif(tmp_path: Path, suffix: str, turn: str) -> None:
    orientation, prepare, undo = TURNS[turn]
    clip = clip_of(time_lapse(tmp_path / f"a.{suffix}", orientation=orientation, prepare=prepare))
    assert shown(clip, undo=undo) == list(range(12))
    turned = "90" in turn or turn == "picture 6"
    assert (clip.source_height, clip.source_width) == ((96, 64) if turned else (64, 96))


def test_every_kind_of_side_data_has_a_name() -> None:
    assert Type(6) is Type.DISPLAYMATRIX
    assert Type(4711).value == 4711
    assert Type(4711).name not in Type.__members__


@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
def test_a_turn_survives_where_side_data_cannot_be_listed(degrees: int, tmp_path: Path) -> None:
    frame = first_frame(clips.render_video(tmp_path / "a.mp4", count=1, prepare=clips.rotated(degrees)))

    class Unlisted:
        rotation = frame.rotation

        @property
        def side_data(self) -> Any:
            raise ValueError("31 is not a valid Type")

    assert Orientation.of(cast("Any", Unlisted())) == Orientation.of(frame)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flips_rows", [False, True])
@pytest.mark.parametrize("flips_columns", [False, True])
def test_pixels_are_written_the_way_they_stand(transposed: bool, flips_rows: bool, flips_columns: bool) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    orientation = Orientation(transposed, flips_rows, flips_columns)
    out = np.zeros((*orientation.size(5, 7), 3), np.uint8)
    orientation.write(stored, out)
    wanted = stored.transpose(1, 0, 2) if transposed else stored
    wanted = wanted[::-1] if flips_rows else wanted
    assert np.array_equal(out, wanted[:, ::-1] if flips_columns else wanted)


# ---- range ------------------------------------------------------------------------------------------------------

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


def grey_video(path: Path, *, codec: str, pix_fmt: str, bits: int, color_range: int, marked: int) -> Path:
    """Five even frames of the levels, in the values of a range (1: limited, 2: full), marked as one."""
    unit, most = 1 << (bits - 8), (1 << bits) - 1
    values = [round(unit * (16 + 219 * level) if color_range == 1 else most * level) for level in LEVELS]
    kind: type[np.generic] = np.uint8 if bits == 8 else np.uint16
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=LOSSLESS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        stream.codec_context.color_range, stream.thread_count = marked, 1
        for value in values:
            frame = av.VideoFrame(96, 64, pix_fmt)
            frame.color_range = marked
            plane = frame.planes[0]
            row = [value, most] if pix_fmt.startswith("ya") else [value]
            plane.update(np.resize(np.array(row, kind), plane.buffer_size // np.dtype(kind).itemsize))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


LOSSLESS = {"libx265": {"x265-params": "log-level=none:lossless=1"}}
GREY = [
    ("a.mp4", "libx265", "gray", 8), ("b.mkv", "libx265", "gray10le", 10), ("c.mov", "libx265", "gray12le", 12),
    ("d.mkv", "ffv1", "gray", 8), ("e.mkv", "ffv1", "gray10le", 10), ("f.mkv", "ffv1", "gray12le", 12),
    ("g.mkv", "ffv1", "gray16le", 16), ("h.mkv", "ffv1", "ya8", 8), ("i.mkv", "jpeg2000", "gray", 8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "bits"), GREY)
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("min_pixels", [None, 40_000], ids=["same size", "scaled"])
def test_grey_is_shown_from_black_to_white(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, bits: int, color_range: int, min_pixels: int | None
) -> None:
    path = grey_video(
        tmp_path / name, codec=codec, pix_fmt=pix_fmt, bits=bits, color_range=color_range, marked=color_range
    )
    assert first_frame(path).color_range == color_range
    frames = clip_of(path, min_pixels=min_pixels).frames
    assert np.ptp(frames, axis=(1, 2, 3)).max() <= 1
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 255 * np.array(LEVELS)).max() <= 1


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "bits"), [("ffv1", "gray", 8), ("ffv1", "gray10le", 10), ("ffv1", "ya8", 8)]
)
def test_grey_without_a_named_range_is_full(tmp_path: Path, codec: str, pix_fmt: str, bits: int) -> None:
    path = grey_video(tmp_path / "a.mkv", codec=codec, pix_fmt=pix_fmt, bits=bits, color_range=2, marked=0)
    assert np.abs(clip_of(path).frames.mean(axis=(1, 2, 3)) - 255 * np.array(LEVELS)).max() <= 1


FORMATS = [
    "yuv420p", "yuv422p", "yuv444p", "yuva420p", "nv12", "p010le", "yuv420p10le", "yuv440p", "gray", "ya8", "gray10le",
    "gray12le",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pix_fmt", "color_range"),
    [(name, 1) for name in FORMATS] + [(name, 2) for name in (*FORMATS, "yuvj420p", "yuvj444p")],
)
@pytest.mark.parametrize("size", [(64, 96), (96, 128)], ids=["same size", "scaled"])
def test_black_is_black_and_white_is_white(pix_fmt: str, color_range: int, size: tuple[int, int]) -> None:
    grey = pix_fmt.startswith(("gray", "ya8"))
    bits = 12 if "12" in pix_fmt else 10 if "10" in pix_fmt else 8
    for level in (0, 255):
        picture = np.full((64, 96, 3), level, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format=pix_fmt, dst_color_range=color_range
        )
        if grey and color_range == 1:  # FFmpeg itself makes no limited grey
            unit = 1 << (bits - 8)
            kind: type[np.generic] = np.uint8 if bits == 8 else np.uint16
            row = (
                [(16 if level == 0 else 235) * unit, 255] if pix_fmt == "ya8" else [(16 if level == 0 else 235) * unit]
            )
            plane = frame.planes[0]
            plane.update(np.resize(np.array(row, kind), plane.buffer_size // np.dtype(kind).itemsize))
        frame.color_range = color_range
        found = RgbConverter(height=size[0], width=size[1]).convert(frame)
        assert np.abs(found.astype(int) - level).max() <= 2


# ---- frames of other sizes ----------------------------------------------------------------------------------------


def plain(height: int, width: int, level: int = 200) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), format="rgb24").reformat(
        format="yuv420p"
    )


@pytest.mark.parametrize("size", [(90, 160), (360, 640), (720, 1280), (480, 854)])
def test_a_frame_of_the_same_shape_fills_the_picture(size: tuple[int, int]) -> None:
    out = np.zeros((96, 160, 3), np.uint8)
    RgbConverter(height=96, width=160, source_size=(720, 1280)).write(plain(*size), out)
    assert np.abs(out.astype(int) - 200).max() <= 4


@pytest.mark.parametrize(
    ("size", "filled"),
    [
        ((640, 480), (slice(0, 480), slice(140, 500))),
        ((480, 480), (slice(0, 480), slice(80, 560))),
        ((240, 640), (slice(120, 360), slice(0, 640))),
        ((2, 1000), (slice(239, 240), slice(0, 640))),
    ],
)
def test_a_frame_of_another_shape_stands_in_the_middle_of_black(
    size: tuple[int, int], filled: tuple[slice, slice]
) -> None:
    out = np.full((480, 640, 3), 77, np.uint8)
    RgbConverter(height=480, width=640, source_size=(480, 640)).write(plain(*size), out)
    bright = np.zeros((480, 640), bool)
    bright[filled] = True
    assert out[~bright].max() == 0
    assert np.abs(out[bright].astype(int) - 200).max() <= 4


def test_what_is_around_a_frame_follows_the_pictures_own_rounding() -> None:
    """A source of 360 rows is shown in 352: a square is as much narrower than high as everything is."""
    out = np.zeros((352, 640, 3), np.uint8)
    RgbConverter(height=352, width=640, source_size=(360, 640)).write(plain(100, 100), out)
    rows, columns = np.nonzero(out[..., 0])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (352, 360)


def test_a_frame_may_be_written_into_a_part_of_an_array() -> None:
    whole = np.zeros((3, 64, 200, 3), np.uint8)
    frame = plain(64, 96)
    RgbConverter(height=64, width=96).write(frame, whole[1, :, 50:146])
    assert np.array_equal(whole[1, :, 50:146], RgbConverter(height=64, width=96).convert(frame))
    whole[1, :, 50:146] = 0
    assert not whole.any()


def test_a_video_that_is_turned_while_it_runs_is_letter_boxed(tmp_path: Path) -> None:
    wide_one = clips.render_video(tmp_path / "wide.h264", count=5, height=64, width=128)
    high_one = clips.render_video(tmp_path / "high.h264", count=15, height=128, width=64)
    both = tmp_path / "both.h264"
    both.write_bytes(wide_one.read_bytes() + high_one.read_bytes())
    clip = clip_of(both)
    assert clip.frames.shape == (20, 128, 64, 3)
    assert clips.numbers_of(clip.frames[5:]) == list(range(15))
    assert clips.numbers_of(clip.frames[:5, 48:80]) == list(range(5))
    assert clip.frames[:5, :48].max() == 0
    assert clip.frames[:5, 80:].max() == 0


def test_frames_of_all_kinds_in_turn_look_as_each_does_alone() -> None:
    """What is kept from one frame to the next changes nothing, neither do other threads."""
    random = np.random.default_rng(0)
    frames = [
        av.VideoFrame.from_ndarray(
            random.integers(0, 255, (height, width, 3), dtype=np.uint8), format="rgb24"
        ).reformat(format=name)
        for height, width in ((64, 96), (90, 160), (360, 640))
        for name in ("yuv420p", "yuvj420p", "yuv420p10le", "yuv444p", "rgb24", "gray")
    ]
    converters = [RgbConverter(height=96, width=128), RgbConverter(height=64, width=96)]

    def alone(index: int) -> list[Pixels]:
        return [converter.convert(frames[index]) for converter in converters]

    wanted = []
    for index in range(len(frames)):
        with ThreadPoolExecutor(1) as fresh:
            wanted.append(fresh.submit(alone, index).result())
    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(alone, list(range(len(frames))) * 6)):
            for one, other in zip(found, wanted[index % len(frames)], strict=True):
                assert np.array_equal(one, other)


# ---- pixels that are not square -----------------------------------------------------------------------------------


def wide(ratio: str, prepare: Callable[[Any], None] = lambda stream: None) -> Callable[[Any], None]:
    def set_ratio(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        prepare(stream)

    return set_ratio


ANAMORPHIC: dict[str, dict[str, Any]] = {
    "a.mp4": {}, "b.mov": {}, "c.mkv": {}, "d.ts": {}, "e.h264": {}, "f.mp4": {"codec": "libx265"},
    "g.mkv": {"codec": "mpeg4"}, "h.avi": {"codec": "mpeg4"},
}  # fmt: skip


@pytest.mark.parametrize("name", ANAMORPHIC)
@pytest.mark.parametrize(("ratio", "width"), [("64/45", 256), ("16/15", 192), ("8/9", 160)])
def test_pixels_are_shown_in_their_true_shape_on_request(tmp_path: Path, name: str, ratio: str, width: int) -> None:
    path = clips.render_video(tmp_path / name, count=4, height=144, width=180, prepare=wide(ratio), **ANAMORPHIC[name])
    clip = clip_of(path, pixel_aspect="display")
    assert (clip.source_height, clip.source_width) == (144, width)
    assert clips.numbers_of(clip.frames) == list(range(4))
    stored = clip_of(path)
    assert (stored.source_height, stored.source_width) == (144, 180)
    assert np.array_equal(stored.frames, clip_of(path, pixel_aspect="stored").frames)


def with_display_size(path: Path, *, height: int, width: int) -> Path:
    """Put the size for display into a Matroska file, in the place of what it says of colours."""
    data = bytearray(path.read_bytes().replace(b"\x54\xb2\x81\x04", b"\x54\xb2\x81\x00"))  # in pixels, not unknown
    at = data.index(b"\x55\xb0")
    size = 3 + (data[at + 2] & 0x7F)
    said = b"\x54\xb0\x82" + width.to_bytes(2, "big") + b"\x54\xba\x82" + height.to_bytes(2, "big")
    rest = size - len(said)
    data[at : at + size] = said + bytes([0xEC, 0x80 | (rest - 2)]) + bytes(rest - 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("suffix", "codec"), [("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mkv", "ffv1"), ("mkv", "libx264")]
)
@pytest.mark.parametrize("width", [256, 160])
def test_the_size_for_display_of_matroska_is_kept(tmp_path: Path, suffix: str, codec: str, width: int) -> None:
    path = clips.render_video(
        tmp_path / f"a.{suffix}", codec=codec, count=4, height=144, width=180,
        prepare=clips.tagged(primaries=1, transfer=1, matrix=1),
    )  # fmt: skip
    clip = clip_of(with_display_size(path, height=144, width=width), pixel_aspect="display")
    assert (clip.source_height, clip.source_width) == (144, width)
    assert clips.numbers_of(clip.frames) == list(range(4))
    assert clip_of(path).source_width == 180


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg2video"), ("ts", "mpeg2video"), ("vob", "mpeg2video")])
def test_wide_screen_dvds_and_broadcasts_are_shown_wide(tmp_path: Path, suffix: str, codec: str) -> None:
    path = clips.render_video(
        tmp_path / f"a.{suffix}", codec=codec, fps=25, count=4, height=576, width=720, prepare=wide("64/45"),
        options={"q:v": "2"},
    )  # fmt: skip
    clip = clip_of(path, pixel_aspect="display")
    assert (clip.source_height, clip.source_width) == (576, 1024)
    assert clip.frames.shape[1:3] == (576, 1024)
    assert clips.numbers_of(clip.frames) == list(range(4))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("degrees", [90, -90])
def test_a_turn_takes_the_shape_of_pixels_along(tmp_path: Path, suffix: str, degrees: int) -> None:
    frames = [
        np.ascontiguousarray(np.rot90(clips.numbered_frame(i, height=192, width=144), -degrees // 90)) for i in range(4)
    ]
    path = clips.render_video(
        tmp_path / f"a.{suffix}", frames=frames, height=144, width=192, prepare=wide("4/3", clips.rotated(degrees))
    )
    clip = clip_of(path, pixel_aspect="display")
    assert (clip.source_height, clip.source_width) == (256, 144)
    assert clips.numbers_of(clip.frames) == list(range(4))


def test_the_container_says_the_shape_before_the_pictures(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "a.mp4", count=2, height=144, width=180, prepare=wide("16/15"))
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = (64).to_bytes(4, "big") + (45).to_bytes(4, "big")
    path.write_bytes(data)
    assert clip_of(path, pixel_aspect="display").source_width == 256


@pytest.mark.parametrize(
    ("container", "decoder", "wanted"),
    [
        ("1/100", None, 1), ("100/1", None, 1), (None, None, 1), (None, "4/3", "4/3"), ("4/3", "16/15", "4/3"),
        ("0", None, 1), ("8", None, 8),
    ],
)  # fmt: skip
def test_nonsense_is_no_shape_of_a_pixel(container: str | None, decoder: str | None, wanted: Any) -> None:
    def ratio(text: str | None) -> Fraction | None:
        return None if text is None else Fraction(text)

    stream = SimpleNamespace(
        sample_aspect_ratio=ratio(container), codec_context=SimpleNamespace(sample_aspect_ratio=ratio(decoder))
    )
    assert pixel_aspect(cast("Any", stream)) == Fraction(wanted)


def test_a_frame_of_another_shape_is_letter_boxed_as_it_is_shown() -> None:
    assert upright_size(plain(144, 180), aspect=Fraction(64, 45)) == (144, 256)
    out = np.zeros((144, 256, 3), np.uint8)
    look = Look(aspect=Fraction(64, 45))
    converter = RgbConverter(height=144, width=256, source_size=(144, 256), look=look)
    converter.write(plain(144, 90), out)
    assert not out[:, :64].any()
    assert not out[:, 192:].any()
    assert np.abs(out[:, 64:192].astype(int) - 200).max() <= 4


# ---- light --------------------------------------------------------------------------------------------------------

TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear BT.709 to linear BT.2020: Recommendation ITU-R BT.2087."""
NITS = (0.0, 1.0, 5.0, 20.0, 36.5, 60.9, 100.0, 203.0, 400.0, 700.0, 1000.0)
COLOURS = {
    "red": (1, 0.1, 0.1),
    "green": (0.1, 1, 0.1),
    "blue": (0.1, 0.1, 1),
    "skin": (1, 0.6, 0.45),
    "sky": (0.3, 0.55, 1),
}


def pq(nits: Any) -> Any:
    power = (np.asarray(nits, float) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(nits: Any) -> Any:
    """The signal that shows light `[…, 3]` on a display of 1000 nits."""
    light = np.asarray(nits, float) / 1000
    whole = light @ np.array([0.2627, 0.6780, 0.0593])
    scene = light * np.maximum(whole, 1e-9)[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


SIGNALS = {16: pq, 18: hlg}


def hdr_frame(light: Sequence[Any], trc: int, *, primaries: int = 9) -> av.VideoFrame:
    """Columns of light (nits of linear BT.709, three each), 16 pixels wide, 10 bits of BT.2020."""
    nits = np.asarray(light, float) @ TO_2020.T
    red, green, blue = np.moveaxis(SIGNALS[trc](nits), -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    planes = [64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746]
    frame = av.VideoFrame(16 * len(nits), 32, "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        rows[:, : frame.width] = np.repeat(np.round(values).astype(np.uint16), 16)
        plane.update(rows)
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, trc, primaries
    return frame


def mapped(frame: av.VideoFrame) -> NDArray[np.int64]:
    """The colour of each column, tone-mapped."""
    converter = RgbConverter(height=frame.height, width=frame.width, look=Look(tone_map=True))
    return converter.convert(frame)[16, 8::16].astype(np.int64)


def greys(nits: Sequence[float]) -> list[tuple[float, float, float]]:
    return [(value, value, value) for value in nits]


@pytest.mark.parametrize("trc", SIGNALS, ids=["pq", "hlg"])
def test_a_ramp_of_hdr_rises_from_black_to_white(trc: int) -> None:
    found = mapped(hdr_frame(greys(np.linspace(0, 1, 200) ** 3 * 1000), trc))
    assert np.abs(found - found[:, :1]).max() <= 2, "grey stays grey"
    assert np.diff(found[:, 1]).min() >= 0
    assert found[0].max() <= 2
    assert found[-1].min() >= 253


@pytest.mark.parametrize("trc", SIGNALS, ids=["pq", "hlg"])
def test_hdr_white_is_near_white_and_mid_grey_is_mid_grey(trc: int) -> None:
    """White is 203 nits; up to 30 % of it light is as it would be in SDR, on a screen of gamma 2.4."""
    found = dict(zip(NITS, mapped(hdr_frame(greys(NITS), trc))[:, 1].tolist(), strict=True))
    assert 210 <= found[203.0] <= 235
    assert found[36.5] == pytest.approx(255 * 0.18 ** (1 / 2.4), abs=3)
    assert found[60.9] == pytest.approx(255 * 0.30 ** (1 / 2.4), abs=3)
    assert found[5.0] == pytest.approx(255 * (5 / 203) ** (1 / 2.4), abs=3)
    assert 235 <= found[400.0] < found[700.0] <= found[1000.0] <= 255


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("nits", [30.0, 150.0, 600.0])
@pytest.mark.parametrize("trc", SIGNALS, ids=["pq", "hlg"])
def test_hues_of_hdr_stay(trc: int, nits: float, colour: str) -> None:
    """Red, green and blue keep their proportions of light."""
    wanted = np.array(COLOURS[colour], float)
    found = (mapped(hdr_frame([nits * wanted], trc))[0] / 255) ** 2.4
    assert found / found.max() == pytest.approx(wanted / wanted.max(), abs=0.03)


def test_hdr_is_dull_without_tone_mapping_and_sdr_is_left_alone(tmp_path: Path, video: Callable[[str], Path]) -> None:
    frame = hdr_frame(greys(NITS), 16)
    plain_one = RgbConverter(height=32, width=frame.width).convert(frame)
    assert plain_one[16, 8::16, 1][NITS.index(203.0)] < 160
    for name in ("h264.mp4", "hevc_10bit.mp4", "h264_444_10bit.mkv", "grey.mkv", "alpha.webm"):
        path = video(name)
        assert np.array_equal(clip_of(path).frames, clip_of(path, tone_map=True).frames), name


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
@pytest.mark.parametrize("trc", SIGNALS, ids=["pq", "hlg"])
@pytest.mark.parametrize("min_pixels", [None, 100_000], ids=["same size", "scaled"])
def test_hdr_files_are_shown_as_sdr(tmp_path: Path, suffix: str, trc: int, min_pixels: int | None) -> None:
    path = tmp_path / f"a.{suffix}"
    nits = (0.0, 36.5, 203.0, 1000.0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none:qp=4"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p10le"
        clips.tagged(primaries=9, transfer=trc, matrix=9)(stream)
        for _ in range(5):
            container.mux(stream.encode(hdr_frame(greys(nits), trc)))
        container.mux(stream.encode())
    frames = clip_of(path, tone_map=True, min_pixels=min_pixels).frames
    height, width = frames.shape[1:3]
    columns = frames[:, height // 2, width // 8 :: width // 4].astype(int)
    assert np.abs(columns - np.array([0, 125, 217, 255])[:, None]).max() <= 4
    assert not np.array_equal(frames, clip_of(path, min_pixels=min_pixels).frames)


@pytest.mark.parametrize(("peak", "white"), [(203.0, 250), (400.0, 228), (4000.0, 205)])
def test_the_curve_bends_to_the_videos_own_peak(monkeypatch: pytest.MonkeyPatch, peak: float, white: int) -> None:
    monkeypatch.setattr(hdr, "peak_nits", lambda frame: peak)
    found = mapped(hdr_frame(greys([36.5, 203.0, peak]), 16))[:, 1]
    assert found[0] == pytest.approx(125, abs=3)
    assert found[1] >= white - 6
    assert found[2] >= 251
    assert found[1] <= found[2]


def test_a_videos_own_peak_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    display = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
    light = f"log-level=none:hdr10=1:max-cll=600,200:{display}"
    for index, params in enumerate((light, light.replace("max-cll=600,200:", ""), "log-level=none")):
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx265", rate=10, options={"x265-params": params})
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p10le"
            clips.tagged(primaries=9, transfer=16, matrix=9)(stream)
            container.mux(stream.encode(plain(32, 64)))
            container.mux(stream.encode())
        assert hdr.peak_nits(first_frame(path)) == (600, 4000, 1000)[index]


# ---- fields -------------------------------------------------------------------------------------------------------


def interlaced(
    path: Path, *, codec: str, top_first: bool, height: int = 64, options: dict[str, str] | None = None
) -> Path:
    """Frame `i` has number `2 i` in its first field and `2 i + 1` in its second."""
    graph = av.filter.Graph()
    source = graph.add("buffer", video_size=f"96x{height}", pix_fmt="yuv420p", time_base="1/25", pixel_aspect="1/1")
    graph.link_nodes(source, graph.add("setfield", "tff" if top_first else "bff"), graph.add("buffersink")).configure()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 96, height, "yuv420p", 1
        for index in range(10):
            picture = np.zeros((height, 96, 3), np.uint8)
            first, second = (0, 1) if top_first else (1, 0)
            picture[first::2] = clips.numbered_frame(2 * index, height=height)[first::2]
            picture[second::2] = clips.numbered_frame(2 * index + 1, height=height)[second::2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph.push(frame)
            container.mux(stream.encode(cast("av.VideoFrame", graph.pull())))
        container.mux(stream.encode())
    return path


FIELD_CODECS: dict[str, dict[str, Any]] = {
    "a.mp4": {"codec": "libx264", "options": {"x264-params": "interlaced=1:qp=8"}},
    "b.ts": {"codec": "libx264", "options": {"x264-params": "interlaced=1:qp=8"}},
    "c.mpg": {"codec": "mpeg2video", "options": {"flags": "+ilme+ildct", "q:v": "2"}},
    "d.mkv": {"codec": "ffv1", "options": {"flags": "+ilme"}},
}


@pytest.mark.parametrize("name", FIELD_CODECS)
@pytest.mark.parametrize("top_first", [True, False], ids=["top", "bottom"])
def test_the_first_field_of_interlaced_frames_is_shown_on_request(tmp_path: Path, name: str, top_first: bool) -> None:
    path = interlaced(tmp_path / name, top_first=top_first, **FIELD_CODECS[name])
    assert first_frame(path).interlaced_frame
    clip = clip_of(path, deinterlace=True)
    assert clips.numbers_of(clip.frames) == list(range(0, 20, 2))
    assert (clip.source_height, clip.source_width) == (64, 96)
    assert clip.frames.shape[1:3] == (64, 96)

    def combed(frames: Pixels) -> float:
        return float(np.abs(np.diff(frames.astype(int), axis=1)).mean())

    assert combed(clip.frames) < 0.3 * combed(clip_of(path).frames)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.mpg", "ffv1.mkv", "odd.webm"])
def test_progressive_frames_are_left_alone(video: Callable[[str], Path], name: str) -> None:
    path = video(name)
    assert np.array_equal(clip_of(path).frames, clip_of(path, deinterlace=True).frames)


def test_fields_of_an_odd_number_of_rows(tmp_path: Path) -> None:
    path = interlaced(
        tmp_path / "a.mkv", codec="mpeg2video", top_first=True, height=63, options=FIELD_CODECS["c.mpg"]["options"]
    )
    assert first_frame(path).interlaced_frame
    assert clips.numbers_of(clip_of(path, deinterlace=True).frames) == list(range(0, 20, 2))


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"pixel_aspect": "square"}, {"pixel_aspect": 1}, {"tone_map": "yes"}, {"deinterlace": 1}, {"tone_map": 0}],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        FrameSettings(**settings)


def test_what_is_not_set_leaves_a_models_own_policy() -> None:
    own = FramePolicy(pixel_aspect="display", tone_map=True)
    assert own.override(FrameSettings()) == own
    assert own.override(FrameSettings(pixel_aspect="stored", tone_map=False)) == FramePolicy()
    assert FramePolicy().override(FrameSettings(deinterlace=True)).deinterlace
