"""Captions as trainers of video models expect them: a `.txt` next to each clip, and `metadata.jsonl` or `metadata.csv`.

The table is in the `videofolder` layout of the `datasets` library: `file_name` relative to its folder, `caption`, and
the fields of the row. A row with a time window of its own is about a part of its video, and its files are named after
it. A video without a caption is in neither. Existing files are kept, and nothing is written through links.
"""

from __future__ import annotations

import filecmp
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, SettingsError
from ..rows.windows import has_own_window, number_of, window_of
from ..stores import StoredPath
from ..types import Sample, TimeWindow
from .base import WHOLE, Format, Layout, writing
from .delimited import join_delimited
from .jsonl import JsonlSink, JsonlSource, join_lines
from .links import check_file, check_folders
from .media import copy_video
from .pieces import Piece, piece_name, piece_suffix, waiting_path
from .temporary import TemporaryFile

METADATA = "metadata.jsonl"
"""The table, if the output is named by its folder."""
NAMES = (METADATA, "metadata.csv")
"""Names of the table."""
FILE_NAME, CAPTION = "file_name", "caption"
CARD = "README.md"
"""The card that tells `datasets` and the hub how to load the folder."""
LONGEST_NAME = 255
"""Longest name, in bytes, that file systems allow."""
WAYS_OUT = "move it away, or replace it (--overwrite)"


def metadata_path(output: Path) -> Path:
    """The table of an output that is named by it or by its folder.

    Raises:
        DataError: it is a file of another name.
    """
    if output.name in NAMES:
        return output
    if output.suffix and not output.is_dir():
        raise DataError(f"a videofolder is named by its folder, or by {' or '.join(NAMES)} in it; got {str(output)!r}")
    return output / METADATA


def join_videofolder(parts: Sequence[Path], output: Path, layout: Layout) -> None:
    """Write captions, and videos on request, to their places, then the card and the table."""
    suffixes = set[str]()
    with _lines(output) as lines:
        for part in parts:
            for row in JsonlSource(part, max_row_bytes=None):
                made = _placed(row, output.parent, layout)
                if made is not None:
                    lines.write(made)
                    suffixes.add(Path(made[FILE_NAME]).suffix)
        lines.commit()
        _write_card(output, suffixes)
        (join_delimited if output.suffix == ".csv" else join_lines)([lines.path], output)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the video and the captions of a row go."""

    source: Path
    """The video that the row names."""
    name: str
    """The video, or the part of it, relative to the folder of the table."""
    text: str
    """The captions, likewise."""
    window: TimeWindow | None = None
    """The part that is cut out; None: the video stays whole."""


def place_of(row: Sample, folder: Path, layout: Layout) -> Place:
    """Where the video and the captions of a row go.

    Raises:
        DataError: the video is not a file, or is elsewhere and not copied.
        SettingsError: the row's time window is invalid.
    """
    video = row[layout.video_field or ""]
    source, name = video_path(video, layout), planned_name(video, folder, layout)
    window, is_own = _window(row, layout)
    is_cut = layout.cut is not None and window != WHOLE
    if window == WHOLE or not (is_own or is_cut):
        return Place(source, name, sidecar(Path(name)).as_posix())
    stem = f"{Path(name).with_suffix('').as_posix()}.{piece_name(window)}"
    if not is_cut:
        return Place(source, name, f"{stem}.txt")
    return Place(source, stem + piece_suffix(Path(name).suffix, layout.cut or ""), f"{stem}.txt", window)


def _window(row: Sample, layout: Layout) -> tuple[TimeWindow, bool]:
    """The part of its video that a row is about, and whether the row itself gives it."""
    fields = layout.window_fields
    if fields is None:
        return layout.window, False
    own = {name: number_of(row.get(name)) for name in fields}
    return window_of(own, fields, default=layout.window), has_own_window(own, fields)


def text_name(row: Sample, layout: Layout) -> str:
    """Where the captions of a row of the table are, whether its video is whole, a copy or cut out."""
    stem = Path(str(row[FILE_NAME])).with_suffix("").as_posix()
    window, is_own = _window(row, layout)
    end = f".{piece_name(window)}" if is_own and window != WHOLE else ""
    return f"{stem}{'' if stem.endswith(end) else end}.txt"


def piece_of(row: Sample, folder: Path, layout: Layout) -> Piece | None:
    """The part that is cut out for a row; None: nothing is."""
    if layout.cut is None or layout.pieces is None:
        return None
    return _piece(place_of(row, folder, layout), folder.resolve(), layout)


def _piece(place: Place, base: Path, layout: Layout) -> Piece | None:
    if place.window is None or layout.cut is None or layout.pieces is None:
        return None
    target = base / place.name
    waiting = waiting_path(layout.pieces, Path(place.name), layout.cut)
    return Piece(place.source, place.window, layout.cut, target, waiting)


def check_videos(rows: Iterable[Sample], output: Path, layout: Layout, *, fresh: bool) -> None:
    """Check before captioning that all captions can be placed.

    Args:
        rows: the rows of the source.
        output: the table.
        layout: which fields hold the video and its window, and whether videos are copied or cut.
        fresh: whether no existing file is this run's own.

    Raises:
        DataError: a video is not a file, or is elsewhere; two rows share a name; another file, a link, or a folder
            already exists.
    """
    if layout.video_field is None:
        raise DataError("a videofolder needs rows with one video each; these have lists of videos")
    check = _Check(output.parent, layout, fresh=fresh)
    check_file(output, "the table")
    for row in rows:
        if row.get(layout.video_field) not in (None, ""):
            check.row(row, row[layout.video_field])


class _Check:
    """Checks whether rows can be placed, given existing files and earlier rows."""

    def __init__(self, folder: Path, layout: Layout, *, fresh: bool) -> None:
        self._folder, self._base = folder, folder.resolve()
        self._layout, self._fresh = layout, fresh
        self._texts = _Names(self._base)
        self._videos = _Names(self._base)
        self._known_ways = set[Path]()

    def row(self, row: Sample, video: Any) -> None:
        """Raise `DataError` if this row cannot be placed."""
        try:
            place = place_of(row, self._folder, self._layout)
        except SettingsError:  # the row fails, and has no place
            return
        for name in (place.name, place.text):
            if len(os.fsencode(Path(name).name)) > LONGEST_NAME:
                raise DataError(f"the name {name!r} has more than {LONGEST_NAME} bytes: rename the video")
            self._check_way((self._base / name).parent)
        self._check_text(place, video)
        self._check_video(place)

    def _check_text(self, place: Place, video: Any) -> None:
        path = self._folder / place.text
        other = self._texts.put(place.text, video)
        if other is not None:
            raise DataError(_shared(other, video, path, self._layout))
        check_file(path, "the caption file")
        if self._fresh and path.exists():
            raise DataError(f"{str(path)!r} already exists: {WAYS_OUT}")

    def _check_video(self, place: Place) -> None:
        target = self._base / place.name
        other = self._videos.put(place.name, [place.source, place.window])
        if other is not None and other != [place.source, place.window]:
            raise DataError(
                f"{str(other[0])!r} and {str(place.source)!r} would share the file {str(target)!r}: rename one"
            )
        piece = _piece(place, self._base, self._layout)
        if piece is not None:
            check_file(target, "the part of a video")
            if os.path.lexists(target) and not (piece.is_own or self._layout.replaces):
                raise DataError(f"{str(target)!r} already exists: {WAYS_OUT}")
        elif other is None and target != place.source:
            _check_copy(place.source, target, layout=self._layout, shallow=not self._fresh)

    def _check_way(self, folder: Path) -> None:
        if folder not in self._known_ways:
            check_folders(folder, self._base, "the folder")
            self._known_ways.add(folder)


class _Names:
    """Names in a folder, and their owners."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owners = dict[str, Any]()
        self._exact = dict[str, str]()

    def put(self, name: str, owner: Any) -> Any:
        """Reserve a name for an owner; returns its previous owner, or that of a name equal on this file system."""
        same = unicodedata.normalize("NFC", name).casefold()
        if name not in self._owners and same in self._exact and ignores_case(self._folder):
            name = self._exact[same]
        self._exact.setdefault(same, name)
        if name in self._owners:
            return self._owners[name]
        self._owners[name] = owner
        return None


def ignores_case(folder: Path) -> bool:
    """Whether a folder, or the place where it will be, ignores case in names."""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), None)
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=".reelscribe-A", dir=there) as file:
        return Path(file.name).with_name(Path(file.name).name.swapcase()).exists()
    return False


def _shared(other: Any, video: Any, path: Path, layout: Layout) -> str:
    if other != video:
        return f"the captions of {other!r} and {video!r} would share the file {str(path)!r}: rename one"
    fields = " and ".join(map(repr, layout.window_fields or ()))
    return (
        f"the captions of two rows of {video!r} would share the file {str(path)!r}: give each a time window of its own "
        f"({fields}), leave one out, or write another format, such as .jsonl"
    )


def _check_copy(source: Path, target: Path, *, layout: Layout, shallow: bool) -> bool:
    """Whether a video is still to be copied.

    Raises:
        DataError: another one has its name.
    """
    if not os.path.lexists(target):
        return True
    if not source.exists() or _is_same(source, target, shallow=shallow):  # a missing video fails as a row
        return False
    check_file(target, "the copy of a video")
    if not layout.replaces:  # leftovers of a resumed run need not be replaced
        ways_out = "move it away" if shallow else WAYS_OUT
        raise DataError(f"{str(target)!r} already exists, and is a different video from {str(source)!r}: {ways_out}")
    return True


def _is_same(one: Path, other: Path, *, shallow: bool) -> bool:
    """Whether two files have the same content; with `shallow` equal size and modification time are enough."""
    filecmp.clear_cache()  # it uses modification times, too
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=shallow)
    except OSError:
        return False


@contextmanager
def _lines(output: Path) -> Iterator[JsonlSink]:
    path = TemporaryFile(output).path.with_suffix(".jsonl")
    try:
        with JsonlSink(path) as lines:
            yield lines
    finally:
        path.unlink(missing_ok=True)


def _placed(row: Sample, folder: Path, layout: Layout) -> Sample | None:
    """The row of the table, once its caption is next to its video."""
    assert layout.video_field is not None
    assert layout.caption_field is not None
    captions = row[layout.caption_field] or []
    try:
        place = place_of(row, folder, layout) if row[layout.video_field] not in (None, "") else None
    except SettingsError:  # the row failed
        place = None
    if place is None:
        return None
    base = folder.resolve()
    text = base / place.text
    is_failed = not captions
    if layout.keep is not None:
        captions = layout.keep(table_row(row, place.name, [], layout), text, captions)
    if not captions:
        return None
    check_folders((base / place.name).parent, base, "the folder")
    lacking = _place_video(place, base, layout)
    if lacking is not None and is_failed:  # the text is the user's, and stays without its video
        return None
    if lacking is not None:
        raise DataError(lacking)
    if layout.keep is None or caption_lines(text) != [" ".join(one.split()) for one in captions]:
        _write_text(text, "\n".join(" ".join(one.splitlines()) for one in captions))
    return table_row(row, place.name, captions, layout)


def table_row(row: Sample, name: str | None, captions: Sequence[str], layout: Layout) -> Sample:
    """A row of the table.

    Args:
        row: the row of the output, with the fields of the video and of the captions.
        name: the video relative to the folder; None: it is not placed there.
        captions: the kept ones.
        layout: the names of its fields.
    """
    rest = {field: value for field, value in row.items() if field not in (layout.caption_field, layout.video_field)}
    made = {} if name is None else {FILE_NAME: name}
    made |= {CAPTION: captions[0]} if captions else {}
    many = {layout.caption_field: captions} if layout.caption_field is not None and len(captions) > 1 else {}
    return {**made, **_beside_ours(rest), **many}


def _beside_ours(row: Sample) -> Sample:
    """The fields of the row; those with our names are renamed."""
    made = dict(row)
    for name in (FILE_NAME, CAPTION):
        if name in made:
            other = f"original_{name}"
            while other in made:
                other = f"original_{other}"
            made[other] = made.pop(name)
    return made


def _place_video(place: Place, base: Path, layout: Layout) -> str | None:
    """Place the video, or its part, under its name in the folder; returns a message if there is none to place."""
    target, piece = base / place.name, _piece(place, base, layout)
    if piece is None:
        if target == place.source or not _check_copy(place.source, target, layout=layout, shallow=True):
            return None
        is_copied = _copy(place.source, target, layout)
        return None if is_copied else f"cannot copy {str(place.source)!r}: it is gone or no longer readable"
    if not piece.waiting.is_file():
        return (
            None if piece.is_own else f"the part {str(target)!r} was cut but is gone: start from scratch (--overwrite)"
        )
    check_file(target, "the part of a video")
    if os.path.lexists(target) and not (piece.is_own or layout.replaces):
        raise DataError(f"{str(target)!r} already exists: {WAYS_OUT}")
    with writing(target):
        piece.place()
    return None


def caption_lines(text: Path) -> list[str] | None:
    """The captions in a `.txt`, whatever its line ends and blanks; None: the file does not exist."""
    try:
        read = text.read_text("utf-8-sig", "replace")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DataError(f"cannot read {str(text)!r}: {exc.strerror or exc}") from exc
    return [" ".join(line.split()) for line in read.splitlines() if line.strip()]


def sidecar(video: Path) -> Path:
    """Where the captions of a video go."""
    return video.with_suffix(".txt")


def planned_name(video: Any, folder: Path, layout: Layout) -> str:
    """The path of a video relative to the folder, where it is or will be copied to.

    Raises:
        DataError: it is elsewhere and not copied, or is not a path.
    """
    path, base = video_path(video, layout), folder.resolve()
    if path.is_relative_to(base):
        return path.relative_to(base).as_posix()
    if not layout.with_videos:
        raise DataError(
            f"the video {str(path)!r} is outside {str(folder)!r}: name the folder with the videos as the output, "
            "or have them copied (--with-videos)"
        )
    root = (layout.root if isinstance(layout.root, Path) else path.parent).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def video_path(video: Any, layout: Layout) -> Path:
    """The file of a video value.

    Raises:
        DataError: it is not a path.
    """
    if isinstance(video, dict) and video.get("bytes") is None:
        video = video.get("path")
    if not isinstance(video, str) or "://" in video:
        raise DataError("a videofolder needs videos that are files; these are bytes, or remote")
    if isinstance(layout.root, StoredPath) and not video.startswith("/"):
        raise DataError("a videofolder needs videos that are files; these are remote")
    path = Path(layout.root if isinstance(layout.root, Path) else "", video)
    return path.parent.resolve() / path.name


def _copy(path: Path, target: Path, layout: Layout) -> bool:
    """Copy a video with its modification time; False: it is gone or no longer readable."""
    temporary = TemporaryFile(target, follow=False)
    temporary.create()
    try:
        with writing(target):
            if not copy_video(str(path), layout, temporary.path):
                return False
            status = path.stat()
            os.utime(temporary.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        temporary.commit()
    finally:
        temporary.discard()
    return True


def _write_text(path: Path, text: str) -> None:
    check_file(path, "the file")
    temporary = TemporaryFile(path, follow=False)
    temporary.create()
    try:
        with writing(path):
            temporary.path.write_text(text, "utf-8", "backslashreplace")
            temporary.path.replace(temporary.final)
    finally:
        temporary.discard()


def _write_card(output: Path, suffixes: Iterable[str]) -> None:
    """Write the card, unless the folder has one that no such run wrote.

    Without it, `datasets` chooses the most frequent format, which is text.
    """
    path = output.with_name(CARD)
    if os.path.lexists(path) and not _is_own_card(path):
        return
    patterns = [output.name, *sorted(f"**/*{suffix}" for suffix in suffixes if suffix[1:].isalnum())]
    if len(patterns) > 1:
        _write_text(path, card(patterns))


def card(patterns: Sequence[str]) -> str:
    """A data set card whose only configuration has the files of these patterns."""
    listed = "".join(f'          - "{pattern}"\n' for pattern in patterns)
    return (
        "---\nconfigs:\n  - config_name: default\n    data_files:\n      - split: train\n        path:\n"
        f"{listed}---\n\nVideos with captions, written by reelscribe: `file_name` and `caption` in `{patterns[0]}`.\n"
    )


def _is_own_card(path: Path) -> bool:
    """Whether a card is as such a run writes it, and may be rewritten."""
    try:
        text = "" if path.is_symlink() else path.read_text("utf-8")
    except (OSError, ValueError):
        return False
    patterns = re.findall(r'^          - "([^"\n]+)"$', text, re.MULTILINE)
    return bool(patterns) and text == card(patterns)


FORMAT = Format(name="videofolder", is_named=True, join=join_videofolder, table=metadata_path, holds_videos=True)
