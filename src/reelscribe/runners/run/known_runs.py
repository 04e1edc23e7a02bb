"""This user's runs on this machine: where each keeps its journal, its state, and removing it.

Each run is noted in the user's state folder; runs started by other users are found by searching given folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...data.links import check_file
from ...errors import DataError
from ...stores import AnyPath, StoredPath
from .journal import is_finished, remove_run_folder
from .run_folder import DATABASE, KEPT_FROM_UPLOADS, open_new, run_folder

STATE_VARIABLE = "XDG_STATE_HOME"
"""Environment variable that names the user's state folder."""
NOTES = "known"
"""Folder in it with a note of each run."""
RUNNING, UNFINISHED, FINISHED, GONE, DAMAGED = "running", "unfinished", "finished", "output gone", "unreadable"
CLEANED = frozenset({FINISHED, GONE})
"""States of runs that are removed by default."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def state_folder() -> Path:
    """Folder for this package's state that belongs to the user rather than to a data set."""
    state = os.environ.get(STATE_VARIABLE)
    return Path(state or Path.home() / ".local/state") / "reelscribe"


@dataclass(frozen=True, slots=True)
class KnownRun:
    """One run, as found on disk."""

    output: str
    """Its output: a path, or an address."""
    folder: Path
    """Folder of its journal and parts."""
    state: str
    """`running`, `unfinished`, `finished`, `output gone` (finished, but its output was removed), or `unreadable`."""
    size: int
    """Bytes in the folder."""
    age_seconds: float
    """Time since the journal changed."""

    @property
    def line(self) -> str:
        """The run as a line of a list."""
        return f"{self.state:<11}  {_size(self.size):>9}  {_age(self.age_seconds):>7}  {self.output}  ({self.folder})"


def note_run(folder: Path, output: AnyPath) -> None:
    """Note where a run is; if that cannot be written, the run is found only by searching its folder."""
    name = output.url if isinstance(output, StoredPath) else str(output.absolute())
    with suppress(OSError, RuntimeError):  # the latter: no home
        path = _note(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with open_new(temporary) as file:
            file.write(json.dumps({"output": name, "folder": str(folder.absolute())}))
        temporary.replace(path)


def known_runs(places: Sequence[Path] = ()) -> list[KnownRun]:
    """This user's runs, sorted by output; with places only those in or under them, including other users' runs.

    Args:
        places: folders, or outputs; empty: everywhere.
    """
    found = dict(_noted())
    wanted = [place.absolute() for place in places]
    for place in wanted:
        found |= {folder: output for folder, output in _found_in(place) if folder not in found}
    if wanted:
        found = {folder: output for folder, output in found.items() if _lies_in(folder, output, wanted)}
    return sorted((_known(folder, output) for folder, output in found.items()), key=lambda run: run.output)


def clean(runs: Iterable[KnownRun]) -> Iterator[tuple[KnownRun, str | None]]:
    """Remove the folders of runs that are not running; yields each with the reason if it was kept."""
    for run in runs:
        try:
            if run.state != DAMAGED and is_finished(run.folder) is None:
                raise DataError("it is running")
            remove_run_folder(run.folder)
            with suppress(OSError):
                _note(run.folder).unlink(missing_ok=True)
        except (DataError, OSError) as exc:
            yield run, str(exc)
        else:
            yield run, None


def is_noted(folder: Path) -> bool:
    """Whether this user started the run in a folder, on this machine."""
    return any(_is_same(folder, one) for one, _ in _noted())


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _note(folder: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=16).hexdigest()
    return state_folder() / NOTES / f"{digest}.json"


def _noted() -> Iterator[tuple[Path, str]]:
    """Folders of noted runs that still exist; notes of others are dropped."""
    with suppress(OSError, RuntimeError):
        for path in sorted((state_folder() / NOTES).glob("*.json")):
            with suppress(DataError, OSError, ValueError, KeyError, TypeError, RecursionError):
                check_file(path, "the note of a run")
                note = json.loads(path.read_text("utf-8"))
                folder = Path(note["folder"])
                if _is_run(folder):
                    yield folder, str(note["output"])
                elif folder.parent.is_dir():  # otherwise a disk may be unmounted
                    path.unlink()


def _is_run(folder: Path) -> bool:
    return folder.suffix == ".run" and not folder.is_symlink() and os.path.lexists(folder / DATABASE)


def _found_in(place: Path) -> Iterator[tuple[Path, str]]:
    """Folders of runs under a folder, or of the output with this name."""
    if _is_run(run_folder(place)):
        yield run_folder(place), str(place)
    for folder, names, _ in os.walk(place):
        for name in names:
            path = Path(folder, name)
            if _is_run(path):
                yield path, str(_output_of(path))


def _output_of(folder: Path) -> Path:
    """The output of a run, from the path of its folder."""
    if folder.parent.parts[-3:] == KEPT_FROM_UPLOADS.parts:
        return folder.parents[3] / folder.stem
    return folder.with_name(folder.stem.removeprefix("."))


def _lies_in(folder: Path, output: str, places: Sequence[Path]) -> bool:
    return any(
        output == str(place) or folder.is_relative_to(place) or ("://" not in output and _is_in(output, place))
        for place in places
    )


def _is_in(output: str, place: Path) -> bool:
    return Path(output).is_relative_to(place)


def _known(folder: Path, output: str) -> KnownRun:
    size, changed = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            size, changed = size + status.st_size, max(changed, status.st_mtime)
    return KnownRun(output, folder, _state(folder, output), size, max(0.0, time.time() - changed))


def _state(folder: Path, output: str) -> str:
    try:
        finished = is_finished(folder)
    except DataError:
        return DAMAGED
    if finished is None:
        return RUNNING
    if not finished:
        return UNFINISHED
    return FINISHED if "://" in output or os.path.exists(output) else GONE  # noqa: PTH110 - false for what no path can be


def _size(number: float) -> str:
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} {_UNITS[-1]}"


def _age(seconds: float) -> str:
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
