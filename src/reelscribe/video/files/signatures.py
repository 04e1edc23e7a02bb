"""Tell from the first bytes of a file whether it is a still picture, or no video at all. Nothing is decoded."""

from __future__ import annotations

import re
from typing import IO

HEAD_BYTES = 2048
"""Bytes that are examined to tell the type of a file."""
READABLE = {
    "JPEG": ("JPEG", "MPO"),
    "PNG": ("PNG",),
    "WebP": ("WEBP",),
    "BMP": ("BMP",),
    "TIFF": ("TIFF",),
    "AVIF": ("AVIF",),
    "JPEG 2000": ("JPEG2000",),
    "PNM": ("PPM",),
}
"""Type of a still picture to Pillow's name for it; others are recognised, but not supported."""
_MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"8BPS\0[\1\2]"), "PSD"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
    (re.compile(rb"P[1-6]\s+[#\d]"), "PNM"),
    (re.compile(rb"qoif"), "QOI"),
)
_STILL_BRANDS = frozenset({b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1", b"miaf"})
_MOVING_BRANDS = frozenset({b"avis", b"msf1"})
_ANIMATED_BIT = 0x02
_TRACKER_AT = 1080
_TRACKER = re.compile(rb"M\.K\.|M!K!|FLT[48]|\dCHN|\d\dC[HN]|OCTA|CD81")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\f\r")) + b"\x7f"
_JPEG_BYTES = 32 << 20
"""Where the first picture of a JPEG file must end to be distinguished from a stream of them."""
_JPEG_MARKER = re.compile(rb"\xff+([^\0\xd0-\xd7\xff])")
_NEXT_JPEG = re.compile(rb"[\0\xff]{0,64}?\xff\xd8\xff")


def still_format(file: IO[bytes]) -> str | None:
    """The type of the single picture in a file; None: it has several, or is not a picture.

    Args:
        file: seekable; an animated WebP, PNG, AVIF or GIF, and JPEG pictures in a row are not still.
    """
    head = file.read(HEAD_BYTES)
    kind = still_kind(head)
    if kind == "PNG":
        return None if _is_animated_png(file) else kind
    if kind == "JPEG":
        return None if _is_jpeg_stream(file) else kind
    return kind


def still_kind(head: bytes) -> str | None:
    """The same from the first bytes alone, by which an animated PNG and a stream of JPEG pictures look like stills."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return None if is_animated_webp(head) else "WebP"
    if head[4:8] == b"ftyp":
        return _still_of_brands(head)
    return next((kind for magic, kind in _MAGIC if magic.match(head)), None)


def is_animated_webp(head: bytes) -> bool:
    """Whether the file is an animated WebP picture."""
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return is_extended and len(head) > 20 and bool(head[20] & _ANIMATED_BIT)


def is_source_or_music(head: bytes) -> bool:
    """Whether the file is lines of text, as source code is, or a tracker module: their suffixes are those of videos."""
    if _TRACKER.match(head, _TRACKER_AT):
        return True
    return b"\n" in head and head.translate(None, _CONTROLS) == head


def is_still_brand(brand: bytes) -> bool:
    """Whether the first brand of an ISO base media file is one of pictures."""
    return brand in _STILL_BRANDS | _MOVING_BRANDS


def _still_of_brands(head: bytes) -> str | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
    if head[8:12] not in _STILL_BRANDS or brands & _MOVING_BRANDS:
        return None
    return "AVIF" if b"avif" in brands else "HEIC"


def _is_animated_png(file: IO[bytes]) -> bool:
    at = 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return False
        if head[4:] == b"acTL":
            return True
        at += int.from_bytes(head[:4], "big") + 12


def _is_jpeg_stream(file: IO[bytes]) -> bool:
    """Whether another picture directly follows the first, and no index marks them as views of one."""
    file.seek(0)
    data, at = file.read(_JPEG_BYTES), 2
    while marker := _JPEG_MARKER.search(data, at):
        code, at = marker[1], marker.end()
        if code == b"\xd9":
            return _NEXT_JPEG.match(data, at) is not None
        if code == b"\xe2" and data[at + 2 : at + 6] == b"MPF\0":
            return False
        if code not in b"\x01\xd8":
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return False
