"""Bad videos of every kind, each made by a function, with what must become of it.

Nothing is downloaded: files are rendered by `clips` and then broken, or written byte by byte. A trick file tries to
make the decoder open a second one, its victim: a pipe that nobody writes to, so that whoever opens it waits for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

import clips

MAX_PIXELS = 1 << 20
"""The limit for frames, height x width, with which the zoo is read."""
TEN_YEARS = 10 * 365 * 86400
GOOD = None
"""Outcome of what is odd, but can be read."""

Make = Callable[[Path], Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a clip of two frames a second of a readable video holds."""

    frames: int = 4
    """How many."""
    last_seconds: float = 1.9
    """Time of the last one; the first comes at zero."""
    duration_seconds: float = 2.0
    """Of the whole video."""


@dataclass(frozen=True, slots=True)
class Animal:
    """One bad video."""

    kind: str | None
    """Kind of its failure; None: it gives a clip."""
    make: Make
    """Makes it in an empty folder, and returns the video's value."""
    shown: Shown = Shown()
    """What comes of it, where it gives a clip; twenty frames at ten a second, unless it says otherwise."""


# pieces


def written(data: bytes, name: str = "x.mp4") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def rendered(name: str = "x.mp4", **settings: Any) -> Make:
    return lambda folder: clips.render_video(folder / name, **settings)


def changed(name: str, change: Callable[[bytearray], bytes | bytearray], **settings: Any) -> Make:
    """A rendered file, its bytes changed."""

    def make(folder: Path) -> Path:
        path = clips.render_video(folder / name, **settings)
        path.write_bytes(change(bytearray(path.read_bytes())))
        return path

    return make


def cut(name: str, share: float, **settings: Any) -> Make:
    return changed(name, lambda data: data[: int(len(data) * share)], count=40, options={"g": "10"}, **settings)


MJPEG = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
FRONT = {"container_options": {"movflags": "faststart"}}
"""An mp4 with its index in front."""


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of an mp4 file."""
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def put(data: bytearray, mark: bytes, offset: int, value: bytes) -> bytearray:
    """Overwrite bytes behind a mark."""
    at = data.index(mark) + len(mark) + offset
    data[at : at + len(value)] = value
    return data


def replaced(old: bytes, new: bytes) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        assert old in data
        return bytes(data).replace(old, new)

    return change


def named(name: str | bytes) -> Make:
    """A good video with an odd name."""

    def make(folder: Path) -> str:
        good = clips.render_video(folder / "good.mp4")
        path = os.path.join(os.fsencode(folder), os.fsencode(name))  # noqa: PTH118 (bytes)
        os.rename(good, path)  # noqa: PTH104
        return os.fsdecode(path)

    return make


def value(video: Any) -> Make:
    return lambda folder: video


# files that are none


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.mp4")
    return folder / "x.mp4"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(folder)  # the names of sockets are short
        try:
            one.bind("x.mp4")
        finally:
            os.chdir(here)
    return folder / "x.mp4"


def link(target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "x.mp4").symlink_to(target)
        return folder / "x.mp4"

    return make


def fifo_behind_a_link(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return link("pipe")(folder)


def folder_of_videos(folder: Path) -> Path:
    clips.render_video(folder / "inside.mp4")
    return folder


def locked(folder: Path) -> Path:
    path = clips.render_video(folder / "x.mp4")
    path.chmod(0)
    return path


# damage


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def blank(data: bytearray, share: float) -> bytearray:
    """The last share of an mp4's media data overwritten."""
    at = data.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", data, at)
    first = at + 8 + int((size - 8) * (1 - share))
    data[first : at + size] = bytes(at + size - first)
    return data


def boxes_in_boxes(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(b"moov", data)
    return box(b"ftyp", b"isom", bytes(4), b"isom") + data


def packed_index(data: bytes, *, told: int) -> bytes:
    """An mp4 whose index is packed with zlib."""
    packed = box(b"cmvd", struct.pack(">I", told), zlib.compress(data))
    index = box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed))
    return box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + index + box(b"mdat", bytes(64))


def no_frames_written(folder: Path) -> Path:
    with av.open(str(folder / "x.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        container.start_encoding()
    return folder / "x.mp4"


def ts_of_sizes(folder: Path) -> Path:
    """The size of frames changes in the middle."""
    parts = [clips.render_video(folder / f"{n}.ts", height=64 * n, width=96 * n) for n in (1, 2)]
    return written(b"".join(part.read_bytes() for part in parts), "x.ts")(folder)


def with_pts(*pts: int) -> Make:
    ticks = {"pts": pts, "time_base": Fraction(1, 1000), "count": len(pts)}
    return rendered("x.mkv", codec="mjpeg", pix_fmt="yuvj420p", **ticks)


def remuxed(times: Callable[[int], int], suffix: str = "mkv") -> Make:
    """A file whose packets have these pts and dts in milliseconds."""

    def make(folder: Path) -> Path:
        source_path = clips.render_video(folder / "source.avi", codec="mjpeg", pix_fmt="yuvj420p")
        path = folder / f"x.{suffix}"
        with av.open(str(source_path)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for index, packet in enumerate(one for one in source.demux(video=0) if one.size):
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = times(index)
                target.mux(packet)
        return path

    return make


# lies


def giant_table(folder: Path) -> Path:
    """A file of 700 bytes whose index speaks of 200 million frames."""
    count = 200_000_000
    entry = box(
        b"mp4v",
        bytes(6),
        b"\0\1",
        bytes(16),
        struct.pack(">HH", 96, 64),
        bytes(12),
        b"\0\1",
        bytes(32),
        b"\0\x18\xff\xff",
    )
    tables = [
        box(b"stsd", bytes(4), struct.pack(">I", 1), entry),
        box(b"stts", bytes(4), struct.pack(">III", 1, count, 1)),
        box(b"stsc", bytes(4), struct.pack(">IIII", 1, 1, count, 1)),
        box(b"stsz", bytes(4), struct.pack(">II", 1, count)),
        box(b"stco", bytes(4), struct.pack(">II", 1, 600)),
    ]
    media = [
        box(b"mdhd", bytes(12), struct.pack(">II", 1000, 1000), bytes(4)),
        box(b"hdlr", bytes(8), b"vide", bytes(13)),
        box(b"minf", box(b"stbl", *tables)),
    ]
    moov = box(b"moov", box(b"trak", box(b"mdia", *media)))
    return written(box(b"ftyp", b"isom", bytes(4), b"isom") + moov + box(b"mdat", bytes(64)))(folder)


def larger_than_told(name: str, side: int) -> Make:
    return changed(name, small_in_avi, height=side, width=side, count=4, **MJPEG)


def small_in_avi(data: bytearray) -> bytearray:
    """The header of an AVI file says 96 x 64."""
    put(data, b"avih", 4 + 32, struct.pack("<II", 96, 64))
    return put(data, b"strf", 4 + 4, struct.pack("<ii", 96, 64))


# tricks: each names the victim, by a relative and an absolute path


def trick(text: str, name: str) -> Make:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / "victim.ts")
        (folder / name).write_text(text.format(folder=folder))
        return folder / name

    return make


def trick_bytes(text: str) -> Make:
    def make(folder: Path) -> bytes:
        os.mkfifo(folder / "victim.ts")
        return text.format(folder=folder).encode()

    return make


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{folder}/victim.ts\n#EXTINF:2,\nvictim.ts\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{folder}/victim.ts'\nduration 2\nfile victim.ts\n"
DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file:{folder}/victim.ts'
    "</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
SMOOTH = (
    '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Type="video" Url="file:{folder}/victim.ts"/>'
    "</SmoothStreamingMedia>"
)
VOBSUB = "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\n"
RTSP = "[Reference]\nRef1=file:{folder}/victim.ts\n"


def other_file_in_mov(kind: bytes) -> Make:
    """The data of the frames are said to lie in another file (`dref`)."""

    def make(folder: Path) -> Path:
        os.mkfifo(folder / "victim.ts")
        path = clips.render_video(folder / "x.mov")
        data = bytearray(path.read_bytes())
        at = data.index(b"dref") + 16
        name = f"file://{folder}/victim.ts".encode() + b"\0" if kind == b"url " else _alias(folder)
        entry = struct.pack(">I4sI", 12 + len(name), kind, 0) + name
        path.write_bytes(_grown(data, at - 4, 12, entry))
        return path

    return make


def _alias(folder: Path) -> bytes:
    """The record of an alias as QuickTime writes it: volume, and the path in a field behind it."""
    path = b"x" + f"{folder}/victim.ts".replace("/", ":").encode()
    head = bytes(4) + struct.pack(">HH", 150, 2) + bytes(2) + b"\1x".ljust(28, b"\0") + bytes(12)
    head += b"\1x".ljust(64, b"\0") + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    field = struct.pack(">hh", 2, len(path)) + path + b"\0" * (len(path) % 2)
    return head + field + struct.pack(">hh", -1, 0)


def _grown(data: bytearray, at: int, size: int, entry: bytes) -> bytes:
    """The file with an entry in place of another; the boxes around it grow."""
    more = len(entry) - size
    for kind in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(kind, 0, at) - 4
        (old,) = struct.unpack_from(">I", data, start)
        struct.pack_into(">I", data, start, old + more)
    return bytes(data[:at] + entry + data[at + size :])


def pictures_by_pattern(folder: Path) -> Path:
    """A name that a reader of image sequences takes for a pattern."""
    os.mkfifo(folder / "1.png")
    return written(b"no picture", "%d.png")(folder)


ENCRYPTED = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
IVF = b"DKIF\0\0\x20\0VP90\xff\xff\xff\xff" + struct.pack("<IIII", 25, 1, 9, 0)

ZOO: dict[str, Animal] = {
    # not there, or no file
    "missing": Animal("not_found", lambda folder: folder / "gone.mp4"),
    "below a file": Animal("not_found", lambda folder: rendered()(folder) / "x.mp4"),
    "dangling link": Animal("not_found", link("gone")),
    "link loop": Animal("unreadable", link("x.mp4")),
    "folder": Animal("unreadable", folder_of_videos),
    "pipe": Animal("unreadable", fifo),
    "pipe behind a link": Animal("unreadable", fifo_behind_a_link),
    "socket": Animal("unreadable", unix_socket),
    "device that never ends": Animal("unreadable", link("/dev/zero")),
    "terminal": Animal("unreadable", value("/dev/tty")),
    "standard input": Animal("unreadable", value("/dev/stdin")),
    # names and values
    "null byte": Animal("unreadable", value("x\0.mp4")),
    "name of 5000 letters": Animal("unreadable", value("x" * 5000 + ".mp4")),
    "path of a megabyte": Animal("unreadable", value("x/" * 500_000)),
    "name with a line end": Animal(GOOD, named("a\nb\r.mp4")),
    "name that is no UTF-8": Animal(GOOD, named(b"\xff\xfe\x80.mp4")),
    "name that is an option": Animal(GOOD, named("-i.mp4")),
    "name with a pattern": Animal(GOOD, named("%03d*?.mp4")),
    "name of a protocol": Animal(GOOD, named("concat:a|b.mp4")),
    "name with a wrong suffix": Animal(GOOD, named("x.m3u8")),
    "missing name that is no text": Animal("not_found", value("/\udcff\udcfe\n.mp4")),
    "empty path": Animal("bad_sample", value("")),
    "number": Animal("bad_sample", value(7)),
    "nothing": Animal("bad_sample", value(None)),
    "mapping without a video": Animal("bad_sample", value({"path": None, "bytes": None})),
    # addresses
    "http address": Animal("not_allowed", value("http://127.0.0.1:1/x.mp4")),
    "https address": Animal("not_allowed", value("https://127.0.0.1:1/x.mp4")),
    "bucket": Animal("not_allowed", value("s3://bucket/x.mp4")),
    "stream": Animal("not_allowed", value("rtmp://127.0.0.1/x")),
    "file of another machine": Animal("unreadable", value("file://other/x.mp4")),
    "FFmpeg's pipe": Animal("not_found", value("pipe:0")),
    "FFmpeg's descriptor": Animal("not_found", value("fd:0")),
    "FFmpeg's concat": Animal("not_found", value("concat:/etc/passwd|/etc/hosts")),
    "FFmpeg's part of a file": Animal("not_found", value("subfile,,start,0,end,9,,:/etc/passwd")),
    "FFmpeg's data": Animal("not_found", value("data:video/mp4;base64,AAAA")),
    # contents that are no video
    "empty": Animal("unreadable", written(b"")),
    "one byte": Animal("unreadable", written(b"\0")),
    "noise": Animal("unreadable", written(noise(50_000))),
    "zeros": Animal("unreadable", written(bytes(100_000))),
    "ones": Animal("unreadable", written(b"\xff" * 100_000)),
    "text": Animal("unreadable", written(b"This is not a video. " * 500)),
    "page": Animal("unreadable", written(b"<!doctype html><title>404</title>" + b"<p>Not found</p>" * 99)),
    "pointer of a large file": Animal("unreadable", written(b"version https://git-lfs.github.com/spec/v1\n")),
    "empty bytes": Animal("unreadable", value(b"")),
    "noise in memory": Animal("unreadable", value(noise(50_000, 1))),
    "sound only": Animal("no_video_stream", lambda folder: clips.render_sound(folder / "x.m4a")),
    "sound with a cover": Animal("no_video_stream", lambda folder: clips._with_cover(folder / "x.m4a")),
    # cut and damaged
    **{f"cut at {share:.0%}": Animal("unreadable", cut("x.mp4", share)) for share in (0.01, 0.1, 0.5)},
    "cut in its index": Animal("no_frames", cut("x.mp4", 0.9)),
    "cut behind its index": Animal(GOOD, cut("x.mp4", 0.99), Shown(8, 3.9, 4.0)),
    "index in front, cut at 10%": Animal("no_video_stream", cut("x.mp4", 0.1, **FRONT)),
    "index in front, cut at 40%": Animal("unreadable", cut("x.mp4", 0.4, **FRONT)),
    "index in front, cut at 95%": Animal(GOOD, cut("x.mp4", 0.95, **FRONT), Shown(6, 3.3, 3.4)),
    "Matroska cut at 1%": Animal("unreadable", cut("x.mkv", 0.01)),
    "Matroska cut at 55%": Animal("unreadable", cut("x.mkv", 0.55)),
    "Matroska cut at 90%": Animal(GOOD, cut("x.mkv", 0.9), Shown(8, 3.4, 3.5)),
    "transport stream cut at 60%": Animal(GOOD, cut("x.ts", 0.6), Shown(4, 2.3, 2.4)),
    "index missing": Animal("unreadable", changed("x.mp4", replaced(b"moov", b"mewl"))),
    "index that calls itself free": Animal(GOOD, changed("x.mp4", replaced(b"moov", b"free"))),
    "data missing": Animal("unreadable", changed("x.mp4", lambda data: data[data.index(b"moov") - 4 :])),
    "data blank": Animal("no_frames", changed("x.mp4", lambda data: blank(data, 1.0), count=40)),
    "end of the data blank": Animal(
        GOOD, changed("x.mp4", lambda data: blank(data, 0.2), count=40), Shown(6, 2.7, 2.8)
    ),
    "boxes in boxes": Animal("unreadable", written(boxes_in_boxes(5000))),
    "index that says it unpacks to 2 GB": Animal("unreadable", written(packed_index(b"moov" * 99, told=2**31 - 1))),
    "index that unpacks to 256 MB": Animal("unreadable", written(packed_index(bytes(1 << 28), told=1 << 28))),
    "box of 2 GB": Animal(GOOD, changed("x.mp4", lambda data: put(data, b"avcC", -8, b"\x7f\xff\xff\xff"))),
    "table of 2 GB": Animal("unreadable", changed("x.mp4", lambda data: put(data, b"stss", 4, b"\x20\0\0\1"))),
    "no frames": Animal("unreadable", no_frames_written),
    # odd, but videos
    "one frame": Animal(GOOD, rendered(count=1), Shown(2, 0.0, 0.1)),
    "size changes": Animal(GOOD, ts_of_sizes, Shown(8, 3.9, 4.0)),
    "times below zero": Animal(GOOD, remuxed(lambda n: 100 * n - 1000)),
    "times that repeat": Animal(GOOD, remuxed(lambda n: n // 2), Shown(4, 0.0095, 0.01)),
    "all at once": Animal(GOOD, remuxed(lambda n: 0), Shown(4, 0.001, 0.001)),
    "length of nothing": Animal(GOOD, changed("x.mp4", lambda data: put(data, b"mdhd", 12 + 4, bytes(4)))),
    # lies
    "ten years by the header": Animal(
        GOOD, changed("x.mp4", lambda data: put(data, b"mdhd", 12, struct.pack(">II", 1, TEN_YEARS))),
        Shown(2, 0.0, 1024.0),
    ),
    "ten years by the header (mkv)": Animal(
        "too_long", changed("x.mkv", replaced(b"00:00:02.000000000", b"87600:00:02.000000"))
    ),
    "ten years by the frames": Animal("too_long", remuxed(lambda n: n * TEN_YEARS * 50)),
    "200 million frames": Animal("too_long", giant_table),
    "30,000 x 30,000 (y4m)": Animal("unreadable", written(b"YUV4MPEG2 W30000 H30000 F25:1\nFRAME\n", "x.y4m")),
    "65,535 x 65,535 (gif)": Animal("too_large", written(b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(99), "x.gif")),
    "65,535 x 65,535 (ivf)": Animal("too_large", written(IVF + bytes(99), "x.ivf")),
    "30,000 x 30,000 (avi)": Animal(
        GOOD, changed("x.avi", lambda data: put(data, b"strf", 4 + 4, struct.pack("<ii", 30_000, 30_000)), **MJPEG)
    ),
    "pictures over the limit": Animal("too_large", rendered(height=1088, width=1920, count=2)),
    "pictures over what the header says": Animal("too_large", larger_than_told("x.avi", 1536)),
    "pictures far over what the header says": Animal("no_frames", larger_than_told("x.avi", 4096)),
    "unknown codec": Animal("unreadable", changed("x.mp4", replaced(b"avc1", b"zzzz"))),
    "unknown codec (mkv)": Animal("unreadable", changed("x.mkv", replaced(b"V_MPEG4/ISO/AVC", b"V_UNHEARD/OFYET"))),
    "encrypted": Animal("unreadable", rendered(container_options=ENCRYPTED)),
    # tricks
    **{
        f"playlist ({name})": Animal("unreadable", trick(HLS, name)) for name in ("x.mp4", "x.m3u8", "x.ts")
    },
    "playlist in memory": Animal("unreadable", trick_bytes(HLS)),
    "concat script": Animal("unreadable", trick(CONCAT, "x.mp4")),
    "ffconcat": Animal("unreadable", trick(CONCAT, "x.ffconcat")),
    "concat in memory": Animal("unreadable", trick_bytes(CONCAT)),
    "DASH": Animal("unreadable", trick(DASH, "x.mpd")),
    "DASH named mp4": Animal("unreadable", trick(DASH, "x.mp4")),
    "session description": Animal("unreadable", trick(SDP, "x.sdp")),
    "session description named mp4": Animal("unreadable", trick(SDP, "x.mp4")),
    "smooth streaming": Animal("unreadable", trick(SMOOTH, "x.ism")),
    "reference": Animal("unreadable", trick(RTSP, "x.asx")),
    "subtitles with pictures elsewhere": Animal("unreadable", trick(VOBSUB, "victim.idx")),
    "sequence of pictures": Animal("unreadable", pictures_by_pattern),
    "data in another file (url)": Animal(GOOD, other_file_in_mov(b"url ")),
    "data in another file (alias)": Animal("no_frames", other_file_in_mov(b"alis")),
}  # fmt: skip
"""Name of a bad video to what must become of it."""

if hasattr(os, "geteuid") and os.geteuid() != 0:  # nothing is locked for root
    ZOO["locked"] = Animal("unreadable", locked)


def housed(folder: Path) -> dict[str, Any]:
    """The videos of the zoo, each made in a folder of its own."""
    made = {}
    for index, (name, animal) in enumerate(ZOO.items()):
        room = folder / str(index)
        room.mkdir()
        made[name] = animal.make(room)
    return made
