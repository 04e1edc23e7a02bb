"""The folder of a run: its path, its content, and a check that nothing in it links elsewhere. Independent of the
journal."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from ...data.links import check_file, check_folder, check_sole_name, check_tree
from ...data.videofolder import NAMES as TABLE_NAMES

DATABASE = "journal.sqlite"
OWNER = "owner.json"
ERRORS_LOG = "errors.log"
"""Tracebacks of errors in this package, each with its row."""
PARTS = "parts"
PIECES = "pieces"
"""Parts of videos waiting for the output, and records of those already in it."""
REPLACES = "replaces"
"""A file that marks that the run may replace videos of the same name."""
KEPT_FROM_UPLOADS = Path(".cache", "huggingface", "reelscribe")
"""Folder in a data set that uploads to the hub, and `datasets`, ignore."""


def run_folder(output: Path) -> Path:
    """Folder of the journal and parts of a run: next to the output; if the output is the table of a data set folder,
    where uploads of that folder ignore it.

    >>> run_folder(Path("out.jsonl")), run_folder(Path("clips/metadata.jsonl"))
    (PosixPath('.out.jsonl.run'), PosixPath('clips/.cache/huggingface/reelscribe/metadata.jsonl.run'))
    """
    output = settled(output)
    beside = output.with_name(f".{output.name}.run")
    if output.name not in TABLE_NAMES or os.path.lexists(beside):  # runs of earlier versions resume where they are
        return beside
    return output.parent / KEPT_FROM_UPLOADS / f"{output.name}.run"


def check_run_folder(folder: Path) -> None:
    """Check that nothing in a run's folder, whose parent may be untrusted, links elsewhere.

    Raises:
        DataError: it, a folder created for it, or something in it is a link.
    """
    above = [place for place in folder.parents if place.name in KEPT_FROM_UPLOADS.parts]
    for place in reversed(above if folder.parent.name == KEPT_FROM_UPLOADS.name else []):
        check_folder(place, "the folder")
    check_tree(folder, "the folder of the run")
    for name in (DATABASE, ERRORS_LOG):
        check_sole_name(folder / name, "the journal" if name == DATABASE else "the log")
    for name in (OWNER, *(DATABASE + end for end in ("-wal", "-shm", "-journal"))):
        check_file(folder / name, "a file of the run")


def settled(output: Path) -> Path:
    """A canonical name for an output: links are resolved, and on case-insensitive file systems the name is
    lower-cased."""
    if output.is_symlink():
        output = Path(os.path.realpath(output))
    return output.with_name(output.name.casefold()) if _ignores_case(output.parent) else output


def _ignores_case(folder: Path) -> bool:
    """Whether a folder also exists under its name in the other case, so that its content will too."""
    folder = Path(os.path.realpath(folder))
    other = folder.with_name(folder.name.swapcase())
    if other == folder:
        return folder != folder.parent and _ignores_case(folder.parent)
    try:
        return other.samefile(folder)
    except OSError:
        return False


def adopt_earlier_folder(output: Path) -> None:
    """Rename the folder of a run that was started under another name of its output, such as a link."""
    earlier, folder = output.with_name(f".{output.name}.run"), run_folder(output)
    if earlier == folder or not (earlier / DATABASE).exists() or folder.exists():
        return
    with suppress(OSError):
        earlier.rename(folder)


def keep_from_git(folder: Path) -> None:
    """Make git ignore the folder, which only concerns this machine."""
    with suppress(FileExistsError), open_new(folder / ".gitignore") as file:
        file.write("*\n")


def open_new(path: Path) -> IO[str]:
    """Create a file; an existing one, or a link, is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o666), "w", encoding="utf-8")  # noqa: PTH123 - a descriptor


def remove_empty_parents(folder: Path) -> None:
    """Remove the folders created for a run's folder, if they are empty."""
    for place in folder.parents:
        if place.name not in KEPT_FROM_UPLOADS.parts or folder.parent.name != KEPT_FROM_UPLOADS.name:
            return
        with suppress(OSError):
            place.rmdir()
