"""An output in an object store: made on this machine, with its journal, and uploaded when it is whole.

The journal and its lock are local: two machines that write one address do not see each other.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..data.base import reading, writing
from ..errors import DataError, SettingsError
from ..stores import STORES, StoredPath, scheme_of
from .failures import FAILURES_SUFFIX
from .journal import run_folder

STATE_VARIABLE = "XDG_STATE_HOME"
"""Environment variable that names the folder for what a user's programs keep."""


def local_place(address: StoredPath) -> Path:
    """Where the output for an address is made, with the journal beside it."""
    state = Path(os.environ.get(STATE_VARIABLE) or Path.home() / ".local/state")
    digest = hashlib.blake2b(address.url.encode(), digest_size=8).hexdigest()
    return state / "reelscribe/runs" / digest / address.name


def check_destination(address: StoredPath, *, format: str | None, overwrite: bool) -> None:  # noqa: A002
    """Stop before a run whose output could not be uploaded.

    Raises:
        SettingsError: the scheme is no object store's, or the format belongs beside local videos.
        DataError: something is there that is no run's own, or the store is not reached.
    """
    if scheme_of(address.url) not in STORES:
        raise SettingsError(f"cannot write to {str(address)!r}; outputs go to {', '.join(f'{s}://' for s in STORES)}")
    if format == "videofolder":
        raise SettingsError("a videofolder is written beside local videos; name a local folder")
    if overwrite or run_folder(local_place(address)).exists():
        return
    with reading(address):
        there = address.exists()
    if there:
        raise DataError(
            f"{str(address)!r} is there already, and no run can go on with it; name another file, or replace it "
            "(--overwrite)"
        )


def upload(local: Path, address: StoredPath, *, failures: Path | None, is_old: bool) -> StoredPath | None:
    """Bring a finished output, and its file of failures, to its address.

    Args:
        local: the output on this machine.
        address: where it goes.
        failures: the file of failures, if rows failed and it lies beside the output.
        is_old: whether the run had been finished before; then only what is missing is uploaded.

    Returns:
        Where the file of failures is.
    """
    with writing(local):
        beside = address.with_name(address.name + FAILURES_SUFFIX)
        if not (is_old and address.exists()):
            if failures is None:
                beside.remove()
            else:
                beside.put(failures)
            address.put(local)
    return beside if failures is not None else None
