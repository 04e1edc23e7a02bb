"""Determine which version of a model a spec would load, without loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .adapters import CONFIG, base_name
from .captioner import ModelSpec
from .chat import resolve_model
from .names import BUNDLED_MODELS, hub_arguments, local_folder, read_model_name

WEIGHED_SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".jinja", ".txt", ".model")
"""Files in a model's folder that affect its output."""
HASHED_BYTES = 1 << 20
"""Files up to this size are compared by content, larger ones by size and modification time."""


def checkpoint_revision(spec: ModelSpec) -> str | None:
    """The cached commit of a model on the hub, or a digest of a local folder's files; for an adapter joined with that
    of its base model. None if one is not cached yet.

    Raises:
        ModelError: a path that does not exist.
        SettingsError: an adapter's name is invalid.
    """
    parts = [_revision(spec.model, spec.options), *_revisions_beside(spec)]
    return None if None in parts else "+".join(map(str, parts))


def has_adapter(spec: ModelSpec) -> bool:
    """Whether a spec names an adapter, or a model that contains one, as far as is known locally."""
    folder = _folder_here(spec.model, spec.options, holding=CONFIG)
    return bool(spec.options.get("adapter")) or (folder is not None and (folder / CONFIG).is_file())


def _revisions_beside(spec: ModelSpec) -> list[str | None]:
    """Revisions of an adapter's base model, and of the adapter in `model_params`."""
    found = []
    folder = _folder_here(spec.model, spec.options, holding=CONFIG)
    base = None if folder is None else base_name(folder, spec.options)
    if base is not None:
        found.append(_revision(base.name, hub_arguments(base, spec.options)))
    if isinstance(spec.options.get("adapter"), str):
        meant = read_model_name(spec.options["adapter"])
        found.append(_revision(meant.name, hub_arguments(meant, spec.options)))
    return found


def _revision(name: str, options: Mapping[str, Any]) -> str | None:
    resolve_model(name)  # raises for a path that does not exist
    folder = local_folder(name) or BUNDLED_MODELS.get(name)
    if folder is not None:
        return _folder_digest(folder)
    cached = _folder_here(name, options, holding="config.json") or _folder_here(name, options, holding=CONFIG)
    return options.get("revision") if cached is None else cached.name


def _folder_here(name: str, options: Mapping[str, Any], *, holding: str) -> Path | None:
    """The local folder with a model's files: its own, or the cache folder with its file `holding`."""
    from huggingface_hub import try_to_load_from_cache

    folder = local_folder(name) or BUNDLED_MODELS.get(name)
    if folder is not None:
        return folder
    revision, cache = options.get("revision"), options.get("cache_dir")
    try:
        path = try_to_load_from_cache(name, holding, cache_dir=cache, revision=revision)
    except (ValueError, TypeError, OSError):  # not a hub name or a folder; reported when it is loaded
        return None
    return Path(path).parent if isinstance(path, str) else None


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
