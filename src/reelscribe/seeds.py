"""Seeds from content: the same sample gets the same randomness whatever its batch, order or engine."""

from __future__ import annotations

import hashlib
import json
from json.encoder import encode_basestring_ascii
from typing import Any

_encode = json.JSONEncoder(sort_keys=True, default=str).encode


def content_seed(*parts: Any) -> int:
    """A 63-bit seed that depends on the values of the parts alone, on every machine and in every process."""
    texts = [_canonical(part) for part in parts]
    digest = hashlib.blake2b(b"".join([len(text).to_bytes(8, "big") + text for text in texts]), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def _canonical(part: Any) -> bytes:
    if type(part) is str:
        return encode_basestring_ascii(part).encode("ascii")
    if type(part) is int:
        return b"%d" % part
    if isinstance(part, bytes):
        return b"bytes:" + hashlib.blake2b(part, digest_size=16).digest()
    if isinstance(part, dict):
        return b"".join(_canonical(key) + b"=" + _canonical(part[key]) + b";" for key in sorted(part, key=str))
    return _encode(part).encode("utf-8", "surrogatepass")
