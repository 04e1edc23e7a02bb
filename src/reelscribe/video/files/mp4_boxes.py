"""The top level of an mp4 or mov file: where its media is. Only the headers of boxes are read."""

from __future__ import annotations

from ...ranges import Ranged

FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})
"""Kinds that a file begins with."""
MAX_BOXES = 16
"""Files with more are fragmented: then skipping would cost more than it saves."""
HEAD_BYTES = 16
"""Of a box: its size, its kind, and its size again where it is large."""


def media_ranges(path: Ranged) -> list[tuple[int, int]]:
    """Start and end of every `mdat` box; none if there are many boxes, or it is another type of file."""
    size, at = int(path.stat().st_size), 0
    found: list[tuple[int, int]] = []
    for _ in range(MAX_BOXES):
        if at + HEAD_BYTES > size:
            return found
        head = path.read_range(at, at + HEAD_BYTES)
        length, begin = _length(head, size - at)
        if length < begin:
            return []
        if head[4:8] == b"mdat":
            found.append((at + begin, min(at + length, size)))
        at += length
    return []


def _length(head: bytes, rest: int) -> tuple[int, int]:
    """Bytes of a box, and of its header."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        return int.from_bytes(head[8:16], "big"), 16
    return (rest, 8) if length == 0 else (length, 8)
