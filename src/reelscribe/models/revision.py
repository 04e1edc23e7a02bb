"""Which version of a model a spec would load, without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ModelError
from .base import ModelSpec
from .names import understood
from .prompting import resolve_model

WEIGHED_SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".jinja", ".txt", ".model")
"""Files of a model's folder that decide what it writes."""
HASHED_BYTES = 1 << 20
"""Files up to this size are told apart by what is in them, larger ones by size and time of change."""


def model_revision(spec: ModelSpec) -> str | None:
    """The commit of a model on the hub, as the cache has it, or a digest of a local folder's files.

    None where it cannot be known: a server's model, or one that is not in the cache yet.
    """
    if spec.backend not in ("hf", "vllm"):
        return None
    try:
        folder = Path(resolve_model(spec.model))
    except ModelError:  # told when it is loaded
        return None
    if folder.is_dir():
        return _folder_digest(folder)
    return _cached_commit(spec)


def _cached_commit(spec: ModelSpec) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    revision = spec.options.get("revision")
    cache = spec.options.get("cache_dir")
    try:
        path = try_to_load_from_cache(spec.model, "config.json", cache_dir=cache, revision=revision)
    except (ValueError, TypeError):  # no name on the hub, or no folder; reported when it is loaded
        return None
    return Path(path).parent.name if isinstance(path, str) else revision


def _folder_digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in WEIGHED_SUFFIXES:
            digest.update(path.name.encode("utf-8", "surrogateescape"))
            digest.update(_file_mark(path))
    return digest.hexdigest()


def _file_mark(path: Path) -> bytes:
    status = path.stat()
    if status.st_size <= HASHED_BYTES:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    return f"{status.st_size} {status.st_mtime_ns}".encode()
