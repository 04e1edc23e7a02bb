"""Proof that a file was cut: parts that extend past its end. An announced length proves nothing: a picture may stay on
the screen, or start after the sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

from av.container import InputContainer
from av.video.stream import VideoStream

MAX_PARTS = 100_000
"""Most parts of a file that are examined."""
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_MXF_KEY = bytes.fromhex("060e2b34")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER_BYTES = 1 << 16


Read = Callable[[int, int], bytes]
"""Bytes of a file from one place to another; fewer at its end."""


def reaches_behind(container: InputContainer, stream: VideoStream, file: IO[bytes], *, size: int) -> bool:
    """Whether the file's own structure shows that it was once longer.

    Args:
        container: the open file.
        stream: its video, whose index counts.
        file: the same file, open for reading.
        size: its bytes.
    """
    ends = PARTS.get(container.format.name.split(",")[0])
    if ends is not None and any(end > size for end in ends(partial(_read, file))):
        return True
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _read(file: IO[bytes], begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


def _boxes(read: Read) -> Iterator[int]:
    """Ends of the boxes of an mp4 or mov file."""
    at = 0
    for _ in range(MAX_PARTS):
        head = read(at, at + 16)
        if len(head) < 8:
            return
        length, least = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, least = int.from_bytes(head[8:16], "big"), 16
        if length < least:
            return
        at += length
        yield at


def _elements(read: Read) -> Iterator[int]:
    """Ends of the elements of a Matroska file; elements without a length are descended into."""
    at = 0
    for _ in range(MAX_PARTS):
        head = read(at, at + 12)
        kind, kind_bytes = _number(head, keep_marker=True)
        length, length_bytes = _number(head[kind_bytes:], keep_marker=False)
        if not kind_bytes or not length_bytes:
            return
        at += kind_bytes + length_bytes
        unknown = length == (1 << 7 * length_bytes) - 1
        if not unknown:
            yield at + length
            if kind == _SEGMENT:
                return
        if kind != _SEGMENT and not (kind == _CLUSTER and unknown):
            at += length


def _number(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """An EBML number and its size in bytes; 0 bytes if it is invalid."""
    if not data or not data[0]:
        return 0, 0
    count = 9 - data[0].bit_length()
    if len(data) < count:
        return 0, 0
    value = int.from_bytes(data[:count], "big")
    return (value if keep_marker else value & ((1 << 7 * count) - 1)), count


def _chunks(read: Read) -> Iterator[int]:
    """Ends of the RIFF chunks of an AVI file."""
    at = 0
    for _ in range(MAX_PARTS):
        head = read(at, at + 8)
        if len(head) < 8 or head[:4] != b"RIFF":
            return
        at += 8 + int.from_bytes(head[4:], "little")
        yield at
        at += at % 2


def _tags(read: Read) -> Iterator[int]:
    """Ends of the tags of an FLV file."""
    at = int.from_bytes(read(5, 9), "big") + 4
    for _ in range(MAX_PARTS):
        head = read(at, at + 4)
        if len(head) < 4 or head[0] not in (8, 9, 18):
            return
        at += 11 + int.from_bytes(head[1:], "big") + 4
        yield at


def _klvs(read: Read) -> Iterator[int]:
    """Ends of the keys with their values of an MXF file."""
    at = 0
    for _ in range(MAX_PARTS):
        head = read(at, at + 25)
        if len(head) < 17 or not head.startswith(_MXF_KEY):
            return
        count = head[16] & 0x7F if head[16] & 0x80 else 0
        length = int.from_bytes(head[17 : 17 + count], "big") if count else head[16]
        at += 17 + count + length
        yield at


def _announced_bytes(read: Read) -> Iterator[int]:
    """The file length given in the header of an ASF or WMV file, unless it was streamed live."""
    head = read(0, _ASF_HEADER_BYTES)
    at = head.find(_ASF_FILE)
    if head.startswith(_ASF_HEADER) and at >= 0 and len(head) >= at + 92 and not head[at + 88] & 1:
        yield int.from_bytes(head[at + 40 : at + 48], "little")


PARTS: dict[str, Callable[[Read], Iterator[int]]] = {
    "mov": _boxes,
    "matroska": _elements,
    "avi": _chunks,
    "flv": _tags,
    "live_flv": _tags,
    "asf": _announced_bytes,
    "mxf": _klvs,
}
"""FFmpeg's name of a container, up to the first comma, to the function that finds the ends of its parts."""
