"""Checks for names that a run chooses itself, in a folder that may contain anything: nothing is written through a link.

A path that the user names is different: if it is a link, it is followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import DataError


def check_file(path: Path, what: str) -> None:
    """Check that a file of this name can be written, or replaced, without touching anything else.

    Args:
        path: a name that the run chose; its parent folders are not checked.
        what: its description in messages.

    Raises:
        DataError: a link, a folder, or anything but a regular file is there.
    """
    mode = _mode(path, what)
    if mode is None or stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise DataError(_link(path, what))
    kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise DataError(f"{what} {str(path)!r} is {kind}, where a file must go: move it away")


def check_folder(path: Path, what: str) -> None:
    """Check that a folder of this name exists, or can be created.

    Raises:
        DataError: a link, or something other than a folder, is there.
    """
    mode = _mode(path, what)
    if mode is None or stat.S_ISDIR(mode):
        return
    if stat.S_ISLNK(mode):
        raise DataError(_link(path, what))
    raise DataError(f"{what} {str(path)!r} is not a folder, where a folder must go: move it away")


def check_folders(path: Path, base: Path, what: str) -> None:
    """`check_folder` for a folder and its parents, up to `base`, which is not checked itself."""
    for folder in reversed([path, *path.parents]):
        if folder != base and folder.is_relative_to(base):
            check_folder(folder, what)


def check_tree(root: Path, what: str) -> None:
    """Check that a folder, if it exists, has only files and folders at any depth: no links, and nothing that blocks
    when opened, such as a pipe.

    Raises:
        DataError: it has something else, or it is not a folder.
    """
    check_folder(root, what)
    for folder, _, _ in os.walk(root):
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    check_file(Path(entry.path), "a file of the run")


def check_sole_name(path: Path, what: str) -> None:
    """Check that a file that is changed in place has no other name, under which somebody may use it.

    Raises:
        DataError: it has one, or it is not a regular file.
    """
    check_file(path, what)
    if os.path.lexists(path) and path.lstat().st_nlink > 1:
        raise DataError(
            f"{what} {str(path)!r} has a second name elsewhere (a hard link), and would be changed there too: "
            "remove it, or replace it by a copy"
        )


def _mode(path: Path, what: str) -> int | None:
    """The mode of what exists there; None: nothing."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DataError(f"cannot write {what} {str(path)!r}: {exc.strerror or exc}") from exc


def _link(path: Path, what: str) -> str:
    try:
        target = f" to {os.readlink(path)!r}"  # noqa: PTH115 - as it is written
    except OSError:
        target = ""
    return (
        f"{what} {str(path)!r} is a link{target}, and nothing is written through links in the folder: "
        "remove it, or replace it by its target"
    )
