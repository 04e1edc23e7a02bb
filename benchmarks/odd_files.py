"""Videos with odd times, in every container that is written and read here, and what is right for each.

Every frame shows its number, and is encoded once for each codec; the packets are then written with the times that a
kind of oddity asks for. Nothing here reads a clip.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import clips
import remuxed

FRAMES = 48
"""Frames of a part of a file."""
STEP = 40
"""Milliseconds between two frames, where nothing is odd."""
MILLISECOND = Fraction(1, 1000)
SECOND = 1000
MPEG_TURN = (1 << 33) / 90
"""When the clock of MPEG starts again, in milliseconds."""

Numbers = np.random.Generator


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to encode."""

    encoder: str
    """FFmpeg's name."""
    options: dict[str, str] = field(default_factory=dict)
    """Of the encoder."""
    pix_fmt: str = "yuv420p"
    """FFmpeg's pixel format."""
    size: tuple[int, int] = (64, 96)
    """Height and width."""


_X264 = {"g": "12", "preset": "veryfast", "bf": "0"}
_X265 = "log-level=none:keyint=12:min-keyint=12"
_REALTIME = {"g": "12", "deadline": "realtime", "auto-alt-ref": "0", "lag-in-frames": "0"}
CODECS = {
    "h264": Codec("libx264", _X264),
    "h264 b": Codec("libx264", _X264 | {"bf": "3", "b_strategy": "0"}),
    "h264 open": Codec("libx264", _X264 | {"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"}),
    "hevc": Codec("libx265", {"x265-params": _X265 + ":bframes=0", "preset": "ultrafast"}),
    "hevc open": Codec("libx265", {"x265-params": _X265 + ":bframes=3:b-adapt=0:open-gop=1", "preset": "ultrafast"}),
    "vp8": Codec("libvpx", _REALTIME),
    "vp9": Codec("libvpx-vp9", _REALTIME),
    "vp9 hidden": Codec("libvpx-vp9", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "5"}),
    "av1": Codec("libsvtav1", {"g": "12", "preset": "8", "crf": "10"}),
    "mpeg1": Codec("mpeg1video", {"g": "12", "bf": "0", "q:v": "2"}),
    "mpeg2": Codec("mpeg2video", {"g": "12", "bf": "0", "q:v": "2"}),
    "mpeg2 b": Codec("mpeg2video", {"g": "12", "bf": "2", "q:v": "2"}),
    "mpeg2 pal": Codec("mpeg2video", {"g": "12", "bf": "0", "q:v": "5"}, size=(576, 720)),
    "mpeg4": Codec("mpeg4", {"g": "12", "bf": "0", "q:v": "2"}),
    "mpeg4 b": Codec("mpeg4", {"g": "12", "bf": "2", "q:v": "2"}),
    "mjpeg": Codec("mjpeg", {"q:v": "2"}, "yuvj420p"),
    "prores": Codec("prores_ks", {}, "yuv422p10le"),
    "ffv1": Codec("ffv1", {"g": "1"}),
    "huffyuv": Codec("huffyuv", {}, "yuv422p"),
    "wmv2": Codec("wmv2", {"g": "12", "q:v": "2"}),
    "msmpeg4": Codec("msmpeg4", {"g": "12", "q:v": "2"}),
    "flv1": Codec("flv", {"g": "12", "q:v": "2"}),
    "h263": Codec("h263", {"g": "12", "q:v": "2"}, size=(96, 128)),
    "png": Codec("png", {}, "rgb24"),
    "qtrle": Codec("qtrle", {"g": "12"}, "rgb24"),
    "pictures": Codec("wrapped_avframe"),
}
"""Name to how frames are encoded."""
_NOT_IN_NUT = ("prores", "qtrle")


@dataclass(frozen=True, slots=True)
class Muxer:
    """One container."""

    codecs: tuple[str, ...]
    """Keys of `CODECS`."""
    format: str | None = None
    """FFmpeg's name; None: by the suffix."""
    free_times: bool = True
    """Whether each frame has a time of its own."""
    tells_last: bool = False
    """Whether the last frame's length can be read."""
    options: dict[str, str] = field(default_factory=dict)
    """Of the muxer."""
    same_times: bool = False
    """Whether two frames may have one time."""


_H26X = ("h264", "h264 b", "h264 open", "hevc", "hevc open")
_OTHERS = ("vp9", "mpeg2", "mpeg2 b", "prores", "ffv1")
_MP4 = (*_H26X, "vp9", "av1", "mpeg4", "mpeg4 b", "mpeg2 b", "mjpeg")
_TS = (*_H26X, "mpeg2", "mpeg2 b", "mpeg4 b")
_COPY = {"mpegts_copyts": "1"}
MUXERS = {
    "mp4": Muxer(_MP4, tells_last=True),
    "mov": Muxer((*_MP4[:5], "prores", "png", "qtrle", "mjpeg"), tells_last=True),
    "3gp": Muxer(("h264", "h264 b", "mpeg4", "h263"), tells_last=True),
    "f4v": Muxer(("h264", "h264 b"), tells_last=True),
    "ismv": Muxer(("h264", "h264 b"), tells_last=True),
    "fragments.mp4": Muxer(_MP4[:7], tells_last=True, options={"movflags": "frag_keyframe+delay_moov"}),
    "front.mp4": Muxer(_MP4, tells_last=True, options={"movflags": "faststart"}),
    "mkv": Muxer((*_MP4, "vp8", "vp9 hidden", "ffv1", "prores"), tells_last=True, same_times=True),
    "webm": Muxer(("vp8", "vp9", "vp9 hidden", "av1"), tells_last=True, same_times=True),
    "live.webm": Muxer(("vp8", "vp9"), options={"live": "1"}, same_times=True),
    "avi": Muxer(
        ("h264", "h264 b", "mpeg4", "mpeg4 b", "mjpeg", "huffyuv", "ffv1", "msmpeg4", "wmv2"), free_times=False
    ),
    "ts": Muxer(_TS, options=_COPY),
    "m2ts": Muxer(_TS[:5], options=_COPY),
    "mpg": Muxer(("mpeg1", "mpeg2", "mpeg2 b"), free_times=False),
    "vob": Muxer(("mpeg2", "mpeg2 b"), free_times=False),
    "flv": Muxer(("h264", "h264 b", "flv1", "hevc"), tells_last=True, same_times=True),
    "nut": Muxer((*_H26X, "vp9", "mpeg2 b", "mpeg4", "ffv1", "mjpeg"), same_times=False),
    "wmv": Muxer(("wmv2", "msmpeg4", "mpeg4"), format="asf"),
    "ogv": Muxer(("vp8",), free_times=False),
    "mxf": Muxer(("mpeg2", "mpeg2 b", "h264"), free_times=False),
    "gxf": Muxer(("mpeg2 pal",), free_times=False),
    "wtv": Muxer(("mpeg2", "h264")),
    "ivf": Muxer(("vp8", "vp9", "av1")),
    "h264": Muxer(("h264", "h264 b", "h264 open"), free_times=False),
    "hevc": Muxer(("hevc", "hevc open"), free_times=False),
    "m2v": Muxer(("mpeg2", "mpeg2 b"), format="mpeg2video", free_times=False),
    "m4v": Muxer(("mpeg4", "mpeg4 b"), format="m4v", free_times=False),
    "mjpeg": Muxer(("mjpeg",), free_times=False),
    "obu": Muxer(("av1",), free_times=False),
    "y4m": Muxer(("pictures",), format="yuv4mpegpipe", free_times=False),
}
"""Suffix to container."""
MPEG = ("ts", "m2ts", "mpg", "vob")
RAW = ("h264", "hevc", "m2v", "m4v", "mjpeg", "obu", "y4m")
_IN_BAND = (*MPEG, *RAW, "wtv")
JOINED = ("ts", "m2ts", "mpg", "vob", "h264", "hevc", "m2v", "m4v", "mjpeg")
"""Containers whose files can be put end to end."""


@dataclass(frozen=True, slots=True)
class Part:
    """Frames that are written in one go."""

    times: Sequence[int]
    """Of each frame in display order, in milliseconds."""
    first: int = 0
    """Number of the first frame."""
    scale: int = 1
    """Times the codec's size."""
    rate: int = SECOND // STEP
    """Frames a second given to the encoder."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A file to be written."""

    parts: tuple[Part, ...]
    """What is in it; more than one are put end to end."""
    last: int = STEP
    """Length of the last frame in milliseconds."""
    sound: tuple[float, float] | None = None
    """Begin and end of a sound track in seconds."""
    dropped: frozenset[int] = frozenset()
    """Packets left out, by their order in the file."""
    moved: dict[int, int] = field(default_factory=dict)
    """Frames whose time is wrong, and by how many milliseconds."""
    second_stream: bool = False
    """Whether a smaller video comes with it."""
    appended: bool = False
    """Whether parts follow in one stream, and not end to end."""
    change: Callable[[Path], None] | None = None
    """What is done to the bytes at last."""
    right: dict[int, int] | None = None
    """Number to time in milliseconds; None: as the parts say."""
    free: frozenset[int] = frozenset()
    """Numbers of frames whose time need only lie between those of their neighbours."""
    times_from_file: bool = False
    """Whether the times that are right are those of the plain decode."""
    end_ms: tuple[int, int] | None = None
    """Least and greatest time of the end after the first frame's; None: by the last frame's length."""
    is_cut: bool = False
    """Whether its last frame may be half there, so that what it shows cannot be compared."""
    is_damaged: bool = False
    """Whether pictures depend on what was decoded before them, and only times of a part of them can be compared."""
    slack_ms: int = 0
    """What times may differ by, on top of a tick, in streams whose frames are reordered or have no times of their
    own."""
    may_refuse: bool = False
    """Whether it may be refused where less than half is there."""

    def times(self) -> dict[int, int]:
        """Number to time of each frame, in milliseconds."""
        if self.right is not None:
            return self.right
        return {part.first + n: time for part in self.parts for n, time in enumerate(part.times)}


# kinds


def steady(start: int = 0, count: int = FRAMES, step: float = STEP) -> list[int]:
    return [start + round(step * n) for n in range(count)]


def plain(_rng: Numbers) -> Plan:
    return Plan((Part(steady()),))


def late_start(rng: Numbers) -> Plan:
    return Plan((Part(steady(int(rng.integers(2, 200)) * STEP)),))


def early_start(rng: Numbers) -> Plan:
    return Plan((Part(steady(-int(rng.integers(1, 20)) * STEP)),))


def few(rng: Numbers) -> Plan:
    return Plan((Part(steady(count=int(rng.integers(1, 4)))),))


def film_rate(rng: Numbers) -> Plan:
    step = float(rng.choice([1001 / 30, 1001 / 24, 1000 / 60, 1000 / 120]))
    return Plan((Part(steady(step=step)),), last=round(step))


def time_lapse(rng: Numbers) -> Plan:
    step = int(rng.choice([500, 1000, 2000]))
    return Plan((Part(steady(step=step)),), last=step)


def slides(rng: Numbers) -> Plan:
    times = [0, *np.cumsum(rng.integers(500, 9000, FRAMES - 1)).tolist()]
    return Plan((Part(times),), last=4000)


def burst(_rng: Numbers) -> Plan:
    half = FRAMES // 2
    once = [0, *(6_000 + 33 * n for n in range(half - 1))]
    return Plan((Part(once + [time + 10_000 for time in once]),), last=33)


def two_rates(_rng: Numbers) -> Plan:
    half = FRAMES // 2
    return Plan((Part(steady(count=half, step=50) + steady(50 * half, half, 500)),), last=500)


def jitter(rng: Numbers) -> Plan:
    return Plan((Part((np.arange(FRAMES) * STEP + rng.integers(0, 30, FRAMES)).tolist()),))


def stays(rng: Numbers) -> Plan:
    return Plan((Part(steady()),), last=int(rng.integers(3, 90)) * SECOND)


def gap(rng: Numbers) -> Plan:
    at, length = int(rng.integers(2, FRAMES - 2)), int(rng.integers(5, 200)) * STEP
    return Plan((Part([time + length * (n >= at) for n, time in enumerate(steady())]),))


def sound_first(_rng: Numbers) -> Plan:
    return Plan((Part(steady(8 * SECOND)),), sound=(0.0, 14.0))


def sound_last(_rng: Numbers) -> Plan:
    return Plan((Part(steady()),), sound=(0.0, 9.0))


def sound_late(_rng: Numbers) -> Plan:
    return Plan((Part(steady()),), sound=(1.2, 2.0))


def twice(rng: Numbers) -> Plan:
    times, free = burst(rng).parts[0].times if rng.random() < 0.5 else steady(), set()
    times = list(times)
    for n in rng.choice(np.arange(2, FRAMES - 3), int(rng.integers(1, 5)), replace=False).tolist():
        times[n + 1] = times[n]
        free |= {n, n + 1}
    return Plan((Part(times),), free=frozenset(free))


def one_ahead(rng: Numbers) -> Plan:
    n = int(rng.integers(2, FRAMES - 2))
    return Plan(
        (Part(steady()),), moved={n: int(rng.choice([100, 5000, 100_000]))}, free=frozenset({n}), end_ms=(0, 1 << 30)
    )


def losses(rng: Numbers) -> Plan:
    dropped = rng.choice(np.arange(1, FRAMES), int(rng.integers(1, 8)), replace=False)
    return Plan(
        (Part(steady()),), dropped=frozenset(dropped.tolist()), times_from_file=True, may_refuse=True, is_damaged=True
    )


def begins_amid(_rng: Numbers) -> Plan:
    return Plan((Part(steady()),), dropped=frozenset(range(12)))


def begins_without_key(rng: Numbers) -> Plan:
    return Plan((Part(steady()),), dropped=frozenset(range(int(rng.integers(1, 11)))), times_from_file=True)


def two_pictures(_rng: Numbers) -> Plan:
    return Plan((Part(steady()),), second_stream=True)


def cut(rng: Numbers) -> Plan:
    share = float(rng.choice([0.95, 0.8, 0.65, 0.55, 0.3]))

    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return Plan((Part(steady()),), change=change, may_refuse=True, times_from_file=True, is_cut=True, slack_ms=STEP)


def sizes(rng: Numbers) -> Plan:
    count = int(rng.integers(10, 38))
    parts = Part(steady(count=count)), Part(steady(STEP * count, FRAMES - count), first=count, scale=2)
    return Plan(parts, appended=True)


def _joined(rng: Numbers, starts: Sequence[float], *, rates: Sequence[float] = (STEP, STEP), scale: int = 1) -> Plan:
    counts = rng.integers(14, 40, len(starts)).tolist()
    parts, right, at, first = [], {}, 0.0, 0
    for n, (start, count) in enumerate(zip(starts, counts, strict=True)):
        times = steady(round(start), count, rates[n])
        parts.append(Part(times, first=first, scale=scale if n % 2 else 1, rate=round(SECOND / rates[n])))
        right |= {first + k: round(at + rates[n] * k) for k in range(count)}
        at, first = at + rates[n] * count, first + count
    return Plan(tuple(parts), right=right, slack_ms=2 * STEP)


def clock_back(rng: Numbers) -> Plan:
    return _joined(rng, (100_000, float(rng.choice([100_000, 40_000, 2_000, 100_013]))))


def clock_ahead(rng: Numbers) -> Plan:
    return _joined(rng, (10_000, 10_000 + float(rng.choice([15, 100, 5_000, 90_000])) * SECOND))


def clock_wraps(rng: Numbers) -> Plan:
    return Plan((Part(steady(round(MPEG_TURN) - int(rng.integers(2, 40)) * STEP - 13)),))


def three_parts(rng: Numbers) -> Plan:
    starts = rng.integers(0, 80_000_000, 3).tolist()
    return _joined(rng, starts, rates=(STEP, float(rng.choice([STEP, 100 / 3])), STEP), scale=int(rng.choice([1, 2])))


def edits(rng: Numbers) -> Plan:
    kind = rng.choice(["empty", "skip", "both", "between", "end"])
    skip = int(rng.integers(1, 30)) * STEP + (17 if kind == "between" else 0)
    skip = 0 if kind in ("empty", "end") else skip
    length = FRAMES * STEP - skip - (int(rng.integers(1, 10)) * STEP if kind == "end" else 0)
    entries = [(int(rng.integers(1, 5)) * 500, -1)] if kind in ("empty", "both") else []
    entries.append((length, skip))
    end = length if kind != "between" else length - 17
    plan = Plan((Part(steady()),), change=lambda path: remuxed.edited(path, entries), times_from_file=True)
    return replace(plan, end_ms=(end - 2 * STEP - 25, end + STEP + 25))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of oddity."""

    plan: Callable[[Numbers], Plan]
    """What is written, by chance."""
    fits: Callable[[str, str], bool] = lambda _suffix, _codec: True
    """Whether a container, by suffix, and a codec can have it."""


def _has_times(suffix: str, _codec: str) -> bool:
    return MUXERS[suffix].free_times


def _in_container(suffix: str, _codec: str) -> bool:
    return suffix not in RAW


def _has_sound(suffix: str, _codec: str) -> bool:
    return suffix in ("mp4", "mkv", "webm", "ts", "m2ts", "nut", "fragments.mp4", "front.mp4")


KINDS = {
    "steady": Kind(plain),
    "one to three frames": Kind(few),
    "starts late": Kind(late_start, lambda s, c: _has_times(s, c) or s in MPEG),
    "starts below zero": Kind(early_start, lambda s, c: _has_times(s, c) and s not in (*MPEG, "nut")),
    "23.976 to 120 a second": Kind(film_rate, _has_times),
    "time lapse": Kind(time_lapse, _has_times),
    "slides": Kind(slides, lambda s, c: _has_times(s, c) and s not in MPEG),
    "bursts": Kind(burst, _has_times),
    "two rates": Kind(two_rates, _has_times),
    "jitter": Kind(jitter, _has_times),
    "last picture stays": Kind(stays, lambda s, c: _has_times(s, c) and MUXERS[s].tells_last and " " not in c),
    "gap": Kind(gap, lambda s, c: _has_times(s, c) or (s == "avi" and " b" not in c)),
    "pictures after the sound's start": Kind(sound_first, _has_sound),
    "pictures end first": Kind(sound_last, _has_sound),
    "sound starts late": Kind(sound_late, _has_sound),
    "times twice": Kind(twice, lambda s, c: MUXERS[s].same_times and " " not in c),
    "one time ahead": Kind(one_ahead, lambda s, c: _has_times(s, c) and " " not in c and s != "nut"),
    "packets lost": Kind(losses, lambda s, c: _has_times(s, c)),
    "open GOP first": Kind(begins_amid, lambda s, c: _in_container(s, c) and ("open" in c or "mpeg2 b" in c)),
    "no key frame first": Kind(begins_without_key, lambda s, c: _has_times(s, c)),
    "two videos": Kind(two_pictures, lambda s, c: s in ("mp4", "mov", "mkv", "ts", "nut") and c in (*_H26X, *_OTHERS)),
    "cut": Kind(cut, lambda _s, c: c != "png"),
    "size changes": Kind(
        sizes, lambda s, c: s in ("mkv", "webm", "nut", "ivf", "ts") and c in ("vp8", "vp9", "mjpeg", "mpeg2")
    ),
    "clock back": Kind(clock_back, lambda s, _c: s in MPEG),
    "clock ahead": Kind(clock_ahead, lambda s, _c: s in MPEG),
    "clock wraps": Kind(clock_wraps, lambda s, _c: s in MPEG),
    "parts with other rates and sizes": Kind(three_parts, lambda s, _c: s in MPEG),
    "edit list": Kind(edits, lambda s, _c: s in ("mp4", "mov", "3gp", "f4v")),
}
"""Name to oddity."""


# writing


def write(plan: Plan, path: Path, *, suffix: str, codec: str, folder: Path) -> None:
    """Write a file.

    Args:
        plan: what is in it.
        path: where.
        suffix: key of `MUXERS`.
        codec: key of `CODECS`.
        folder: where encoded frames are kept.
    """
    groups = [plan.parts] if plan.appended else [(part,) for part in plan.parts]
    data = b""
    for parts in groups:
        _mux(plan, parts, path, suffix=suffix, codec=codec, folder=folder)
        data += path.read_bytes()
    path.write_bytes(data)
    if plan.change is not None:
        plan.change(path)


def _mux(plan: Plan, parts: Sequence[Part], path: Path, *, suffix: str, codec: str, folder: Path) -> None:
    muxer = MUXERS[suffix]
    if codec == "pictures":
        clips.render_video(path, codec="wrapped_avframe", count=len(parts[0].times), fps=25)
        return
    with av.open(str(path), "w", format=muxer.format, options=muxer.options) as made:
        packets: list[Any] = []
        stream: Any = None
        for part in parts:
            in_band = suffix in _IN_BAND and codec.startswith(("h264", "hevc", "mpeg4"))
            source = encoded(codec, replace(part, times=tuple(part.times)), in_band, folder)
            with av.open(str(source)) as given:
                stream = stream or _added(made, given, muxer)
                packets += _timed(given, part, plan, stream, last=part is plan.parts[-1])
        if plan.second_stream:
            packets += _second(made, folder)
        if plan.sound:
            packets += _tones(made, *plan.sound)
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for n, packet in enumerate(packets):
            if n not in plan.dropped:
                made.mux(packet)


def _added(made: Any, given: Any, muxer: Muxer) -> Any:
    template = given.streams.video[0]
    stream = made.add_stream_from_template(template, opaque=template.codec_context.name == "libdav1d" or None)
    stream.time_base = MILLISECOND if muxer.free_times else Fraction(STEP, SECOND)
    return stream


def _timed(given: Any, part: Part, plan: Plan, stream: Any, *, last: bool) -> list[Any]:
    packets = [packet for packet in given.demux(video=0) if packet.size]
    ranks = np.argsort(np.argsort([packet.pts for packet in packets])).tolist()
    times = list(part.times)
    if len(times) != len(packets):
        raise ValueError(f"{len(packets)} packets of {len(times)} frames")
    delay = max(n - rank for n, rank in enumerate(ranks))
    step = times[1] - times[0] if len(times) > 1 else STEP
    decoding = [times[0] - step * n for n in range(delay, 0, -1)] + times
    for n, (packet, rank) in enumerate(zip(packets, ranks, strict=True)):
        packet.stream, packet.time_base = stream, MILLISECOND
        packet.pts, packet.dts = times[rank] + plan.moved.get(rank, 0), decoding[n]
        end = times[rank + 1] if rank + 1 < len(times) else times[rank] + (plan.last if last else STEP)
        packet.duration = end - times[rank]
    return packets


def _second(made: Any, folder: Path) -> list[Any]:
    """A stream of half the width whose numbers are others."""
    source = encoded("mpeg4", Part(tuple(steady()), first=200), True, folder)
    with av.open(str(source)) as given:
        stream = made.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size][:2]
        for n, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, MILLISECOND
            packet.pts = packet.dts = n * STEP
    return packets


def _tones(made: Any, begin: float, end: float) -> list[Any]:
    stream = made.add_stream("libopus", rate=48_000)
    packets = []
    for start in range(round(begin * 48_000), round(end * 48_000), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        packets += stream.encode(frame)
    return packets + stream.encode()


def encoded(codec: str, part: Part, in_band: bool, folder: Path) -> Path:
    """Numbered frames in a file that keeps the codec.

    Args:
        codec: key of `CODECS`.
        part: which frames.
        in_band: whether key frames come with the codec's headers.
        folder: where files are kept.
    """
    kind, count = CODECS[codec], len(part.times)
    height, width = (side * part.scale for side in kind.size)
    suffix = "mov" if codec in _NOT_IN_NUT else "nut"
    path = folder / f"{codec}-{count}-{part.first}-{part.scale}-{part.rate}-{in_band}.{suffix}"
    if path.exists():
        return path
    numbered = (clips.numbered_frame(part.first + n, height=height, width=width) for n in range(count))
    settings: dict[str, Any] = {"codec": kind.encoder, "options": kind.options, "pix_fmt": kind.pix_fmt}
    settings |= {"fps": part.rate, "height": height, "width": width, "frames": numbered}
    return clips.render_video(path, **settings, prepare=_with_headers_in_band if in_band else None)


def _with_headers_in_band(stream: Any) -> None:
    stream.codec_context.flags &= ~Flags.global_header


def all_files() -> list[tuple[str, str, str]]:
    """Kind, container and codec of all files that can be made."""
    return [
        (name, suffix, codec)
        for name, kind in KINDS.items()
        for suffix, muxer in MUXERS.items()
        for codec in muxer.codecs
        if kind.fits(suffix, codec)
    ]


def planned(name: str, suffix: str, rng: Numbers) -> Plan:
    """What is written for a kind; what a container does not tell is left out."""
    plan = KINDS[name].plan(rng)
    return plan if MUXERS[suffix].tells_last else replace(plan, last=min(plan.last, 10 * SECOND))
