"""Files whose times are odd: numbered frames that are encoded once, then written with the times a test wants.

And a stream of H.264 whose frames come as two fields, a packet each, as camcorders and broadcasts have it; no encoder
here makes those, so its bits are written one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

import clips

MILLISECOND = Fraction(1, 1000)
MPEG_CLOCK = Fraction(1, 90_000)
PLAIN = {"libx264": {"bf": "0", "g": "25"}, "mpeg2video": {"bf": "0", "g": "25", "q:v": "2"}, "libvpx-vp9": {}}
"""Encoder to options that leave frames in order."""


def numbered_packets(folder: Path, total: int, *, codec: str = "libx264", **settings: Any) -> Path:
    """Frames numbered from 0, in order, in a file that keeps any codec."""
    path = folder / f"{codec}_{total}_{len(list(folder.iterdir()))}.nut"
    options = PLAIN.get(codec, {}) | settings.pop("options", {})
    return clips.render_video(path, codec=codec, count=total, fps=25, options=options, **settings)


def retimed(
    source: Path,
    path: Path,
    times: Sequence[int],
    *,
    base: Fraction = MILLISECOND,
    lengths: Sequence[int] | None = None,
    sound: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """The packets of a file with other times.

    Args:
        source: what `numbered_packets` made.
        path: the file to write.
        times: pts and dts of each packet, in ticks of `base`.
        base: length of a tick in seconds.
        lengths: duration of each packet in ticks; None: not told.
        sound: begin and end of a sound track in seconds.
        options: the muxer's.
    """
    with av.open(str(source)) as given, av.open(str(path), "w", options=options or {}) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        tones: Any = made.add_stream("libopus", rate=48000) if sound else None
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for packet, time, length in zip(packets, times, lengths or [0] * len(times), strict=True):
            packet.stream, packet.time_base = stream, base
            packet.pts = packet.dts = time
            packet.duration = length
        mixed = packets
        if sound:
            mixed = sorted(packets + _tones(tones, *sound), key=lambda packet: packet.pts * packet.time_base)
        for packet in mixed:
            made.mux(packet)
    return path


def _tones(stream: Any, begin: float, end: float) -> list[Any]:
    packets = []
    for start in range(round(begin * 48_000), round(end * 48_000), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        packets += stream.encode(frame)
    return packets + stream.encode()


def joined(path: Path, parts: Iterable[Path]) -> Path:
    """Files one after the other, byte for byte."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


# a stream of fields

FIELD_SIDE = 64


class _Bits:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def number(self, value: int, width: int) -> _Bits:
        self.bits += [(value >> shift) & 1 for shift in range(width - 1, -1, -1)]
        return self

    def golomb(self, *values: int) -> _Bits:
        for value in values:
            width = (value + 1).bit_length()
            self.number(value + 1, 2 * width - 1)
        return self

    def samples(self, data: bytes) -> _Bits:
        self.bits += [0] * (-len(self.bits) % 8)
        self.bits += np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
        return self

    def ended(self) -> bytes:
        bits = [*self.bits, 1]
        return np.packbits(np.array(bits, np.uint8)).tobytes()


def _unit(head: int, payload: bytes) -> bytes:
    """A unit of the byte stream; three bytes that look like a start code are kept apart."""
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([head]) + bytes(out)


def _parameter_sets() -> bytes:
    blocks = FIELD_SIDE // 16
    size = _Bits().number(77, 8).number(0, 8).number(30, 8).golomb(0, 0, 0, 4, 1).number(0, 1)
    size.golomb(blocks - 1, blocks // 2 - 1).number(0, 1).number(0, 1).number(1, 1).number(0, 1).number(0, 1)
    picture = _Bits().golomb(0, 0).number(0, 2).golomb(0, 0, 0).number(0, 3).golomb(0, 0, 0).number(0, 3)
    return _unit(0x67, size.ended()) + _unit(0x68, picture.ended())


def _field(rows: NDArray[np.uint8], *, frame: int, bottom: bool, parameters: int) -> bytes:
    """One field of raw macroblocks, as a picture of its own; with unknown parameters it cannot be decoded."""
    bits = _Bits().golomb(0, 7, parameters).number(0, 4).number(1, 1).number(int(bottom), 1)
    if not bottom:
        bits.golomb(frame % 2)
    bits.number(int(bottom), 8).number(0, 1 if bottom else 2).golomb(0)
    for top in range(0, FIELD_SIDE // 2, 16):
        for left in range(0, FIELD_SIDE, 16):
            bits.golomb(25).samples(rows[top : top + 16, left : left + 16].tobytes() + b"\x80" * 128)
    begin = _unit(0x09, b"\x10") + (b"" if bottom else _parameter_sets())
    return begin + _unit(0x21 if bottom else 0x65, bits.ended())


def field_coded(
    path: Path, *, lost: Collection[int] = (), dropped: Collection[int] = (), frames: int = 40, step: int = 3600
) -> Path:
    """A transport stream of frames in two fields, frame n all of grey level `16 + 5 n`.

    Args:
        path: the file to write.
        lost: numbers of frames whose fields are there and cannot be decoded.
        dropped: numbers of frames of which the second field is missing.
        frames: how many.
        step: ticks of 1/90,000 s from frame to frame.
    """
    fields = []
    for frame in range(frames):
        grey = np.full((FIELD_SIDE, FIELD_SIDE), 16 + 5 * frame % 220, np.uint8)
        parameters = 3 if frame in lost else 0
        fields += [_field(grey[b::2], frame=frame, bottom=bool(b), parameters=parameters) for b in (0, 1)]
    raw = path.with_suffix(".h264")
    raw.write_bytes(_whole_frames())
    with av.open(str(raw), format="h264") as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for index, data in zip(count(), fields, strict=False):
            if index % 2 and index // 2 in dropped:
                continue
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, MPEG_CLOCK
            packet.pts = packet.dts = 90_000 + index * step // 2
            packet.is_keyframe = index % 2 == 0
            made.mux(packet)
    return path


def _whole_frames() -> bytes:
    """Some frames by which FFmpeg knows the stream, whatever is damaged in the one to be written."""
    grey = np.full((FIELD_SIDE, FIELD_SIDE), 128, np.uint8)
    return b"".join(_field(grey[b::2], frame=n, bottom=bool(b), parameters=0) for n in range(2) for b in (0, 1))


def appended(path: Path, parts: Iterable[Path], *, step: int = 40) -> Path:
    """The packets of several files of one codec in one stream, one every `step` milliseconds."""
    with av.open(str(path), "w") as made:
        stream: Any = None
        at = 0
        for part in parts:
            with av.open(str(part)) as given:
                stream = stream or made.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(video=0):
                    if not packet.size:
                        continue
                    packet.stream, packet.time_base = stream, MILLISECOND
                    packet.pts = packet.dts = at
                    at += step
                    made.mux(packet)
    return path


# edit lists


def edited(path: Path, entries: Sequence[tuple[int, int]]) -> Path:
    """Give the only track of an mp4 or mov file, whose index stands at its end, an edit list.

    Args:
        path: the file.
        entries: length in milliseconds, and where in the media it begins, after its own first edit; -1: nothing.
    """
    data = bytearray(path.read_bytes())
    movie = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    media = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    start = 0
    at = data.find(b"edts")
    if at >= 0:
        start = max(0, struct.unpack_from(">i", data, data.index(b"elst") + 16)[0])
        _replaced(data, at - 4, struct.unpack_from(">I", data, at - 4)[0], b"")
    table = b"".join(
        struct.pack(">IiI", length * movie // 1000, begin if begin < 0 else start + begin * media // 1000, 1 << 16)
        for length, begin in entries
    )
    table = struct.pack(">II", 0, len(entries)) + table
    box = struct.pack(">I4s", 8 + len(table), b"elst") + table
    tkhd = data.index(b"tkhd") - 4
    _replaced(data, tkhd + struct.unpack_from(">I", data, tkhd)[0], 0, struct.pack(">I4s", 8 + len(box), b"edts") + box)
    path.write_bytes(data)
    return path


def _replaced(data: bytearray, at: int, size: int, new: bytes) -> None:
    """Put bytes into the track; the boxes around it grow."""
    for kind in (b"trak", b"moov"):
        start = data.rindex(kind, 0, at) - 4
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + len(new) - size)
    data[at : at + size] = new
