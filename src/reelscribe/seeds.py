"""Seeds from content: the same sample gets the same randomness whatever its batch, order or engine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_seed(*parts: Any) -> int:
    """A 63-bit seed that depends on the values of the parts alone, on every machine and in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = _canonical(part)
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "big") >> 1


def _canonical(part: Any) -> bytes:
    if isinstance(part, bytes):
        return b"bytes:" + hashlib.blake2b(part, digest_size=16).digest()
    if isinstance(part, dict):
        return b"".join(_canonical(key) + b"=" + _canonical(part[key]) + b";" for key in sorted(part, key=str))
    return json.dumps(part, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
