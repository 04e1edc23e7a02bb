"""An output in an object store: built on this machine, with its journal, and uploaded once it is complete.

The journal and its lock are local: there is no cross-machine lock on an address.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ...data import BY_NAME, Target
from ...data.base import reading, writing
from ...data.temporary import TemporaryFile
from ...errors import DataError, SettingsError
from ...stores import STORES, StoredPath, scheme_of
from .failures import FAILURES_SUFFIX
from .known_runs import state_folder
from .run_folder import run_folder


def local_place(address: StoredPath) -> Path:
    """Local path of the output for an address, with the journal next to it."""
    digest = hashlib.blake2b(address.url.encode(), digest_size=8).hexdigest()
    return state_folder() / "runs" / digest / address.name


def check_destination(address: StoredPath, *, format: str | None, overwrite: bool) -> None:  # noqa: A002
    """Reject a destination to which the output could not be uploaded.

    Raises:
        SettingsError: the scheme is not an object store's, or the format requires local videos.
        DataError: something exists there that belongs to no run, or the store cannot be reached.
    """
    if scheme_of(address.url) not in STORES:
        raise SettingsError(f"cannot write to {str(address)!r}; outputs go to {', '.join(f'{s}://' for s in STORES)}")
    if format is not None and format in BY_NAME and BY_NAME[format].table is not None:
        raise SettingsError(f"a {format} is written next to local videos; choose a local folder")
    local = local_place(address)
    is_folder = Target.of(local, format=format).is_folder
    if run_folder(local).exists() or _marker(local).exists() or (overwrite and not is_folder):
        return
    with reading(address):
        there = address.exists()
    if there:
        way_out = "remove it" if is_folder else "replace it (--overwrite)"
        raise DataError(
            f"{str(address)!r} already exists, and no run on this machine can resume it; choose another name, or "
            f"{way_out}"
        )


def upload(local: Path, address: StoredPath, *, failures: Path | None) -> StoredPath | None:
    """Upload a finished output, and its failures file, unless they are already uploaded.

    Args:
        local: the output on this machine.
        address: the destination.
        failures: the failures file, if rows failed and it is next to the output.

    Returns:
        The address of the failures file.
    """
    beside = address.with_name(address.name + FAILURES_SUFFIX)
    with writing(local):
        if _uploaded(local).get("state") != _state(local) or not address.exists():
            if failures is None:
                beside.remove()
            else:
                beside.put(failures)
            address.put(local)
            _remove_old(local, address)
            told = {"state": _state(local), "files": _names(local), "remote": _remote_state(local, address)}
            _marker(local).write_text(json.dumps(told), "utf-8")
    return beside if failures is not None else None


def bring_back(local: Path, address: StoredPath) -> None:
    """Download an output that was changed at its address, so that manual edits there are found.

    Files only: the files of a folder are not compared with those that were uploaded.
    """
    known = _uploaded(local).get("remote")
    if known is None or not local.is_file() or not address.exists() or _remote_state(local, address) == known:
        return
    temporary = TemporaryFile(local)
    temporary.create()
    try:
        with reading(address), address.open("rb") as there, temporary.path.open("wb") as here:
            shutil.copyfileobj(there, here)
        temporary.commit()
    finally:
        temporary.discard()


def _remote_state(local: Path, address: StoredPath) -> list[Any] | None:
    """Values that change when a file at an address changes; None for a folder."""
    if local.is_dir():
        return None
    status = StoredPath(address.url, address.seconds).stat()  # a new object: it caches the first answer
    return [status.st_size, status.st_mtime_ns]


def _remove_old(local: Path, address: StoredPath) -> None:
    """Remove files of an earlier folder that are not in the new one."""
    for name in set(_uploaded(local).get("files", [])) - set(_names(local)):
        (address / name).remove()


def _marker(local: Path) -> Path:
    """The file that records the last upload."""
    return local.with_name(f".{local.name}.uploaded.json")


def _uploaded(local: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_marker(local).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _state(local: Path) -> list[int]:
    """Values that change when the output is rebuilt."""
    status = local.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _names(local: Path) -> list[str]:
    """The files of a folder."""
    return sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
