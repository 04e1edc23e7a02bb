"""Find captions that were corrected by hand in an output before it is rebuilt, and put them into the new one.

The journal has digests of what was written (`WrittenRow`): a row on disk with another digest was edited. Rows are
matched by their videos and time windows, so that they may have been moved.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data import Target, open_source
from ...data.base import writing
from ...data.delimited import DelimitedSource
from ...data.jsonl import JsonlSource
from ...data.links import check_file, check_folders
from ...data.videofolder import CAPTION, FILE_NAME, caption_lines, place_of, table_row, text_name
from ...data.webdataset import KEY, without_bytes
from ...errors import DataError, SettingsError
from ...rows.data_juicer_rows import DataJuicerRows
from ...rows.fields import FieldNames
from ...rows.forms import RowForm
from ...rows.one_video_rows import OneVideoRows
from ...types import Sample
from .journal import Journal
from .own_files import kept_name
from .written_rows import WrittenRow

DIGEST_BYTES = 12
LARGEST_GROUP = 1000
"""Most rows of one video and time window that are distinguished; beyond that, none is."""
ODD_VALUES = (RecursionError, ValueError, TypeError, OverflowError)
"""Exceptions from values that cannot be digested: endless nesting, integers with thousands of digits."""
NOT_SAID = "null"
"""In place of the captions of a row on disk that has no field for them."""
INSIDE = "://"
"""Prefix for a video known by name alone; no path starts with it."""
ORIGINAL = -1
"""Index of the original row, before those generated from it."""


@dataclass
class Found:
    """How an output differs from what was written."""

    edited: int = 0
    """Captions that were edited."""
    other_fields: int = 0
    """Rows with another change."""
    added: int = 0
    """Rows that were not written."""
    missing: int = 0
    """Rows that were written and are missing."""
    unclear: int = 0
    """Edited captions that cannot be assigned to a row."""
    unreadable: str | None = None
    """Why it can no longer be read."""

    @property
    def is_clean(self) -> bool:
        """Whether its content is what was written, however it is formatted."""
        return not (self.edited or self.other_fields or self.added or self.missing or self.unclear or self.unreadable)

    @property
    def has_more_than_captions(self) -> bool:
        """Whether anything would be lost if only the edited captions were kept."""
        return bool(self.other_fields or self.added or self.unclear or self.missing or self.unreadable)

    def text(self) -> str:
        """The differences in words, such as `2 captions edited, 1 row missing`."""
        counts = {
            "caption edited": self.edited,
            "edited caption that cannot be assigned": self.unclear,
            "row with other fields changed": self.other_fields,
            "row added": self.added,
            "row missing": self.missing,
        }
        texts = [_counted(count, what) for what, count in counts.items() if count]
        return ", ".join([*texts, *([f"it cannot be read to its end: {self.unreadable}"] if self.unreadable else [])])


@dataclass(frozen=True)
class Digests:
    """Digests that recognise rows: of a row in an output, and of one about to be written."""

    target: Target
    """The output."""
    form: RowForm
    """The rows' form."""

    @property
    def names(self) -> FieldNames:
        """How the fields are called."""
        return self.form.names

    def key(self, row: Sample) -> bytes:
        """Of the video, the time window and the `id` of a row; in a videofolder of one as it is in the table."""
        windows = [_number(row.get(name)) for name in self.names.window_keys]
        return digest([self.video(row), windows, _text(row.get("id"))])

    def other_key(self, row: Sample) -> bytes | None:
        """The same with the name of the video alone, which is all that a saved data set has of one that is inside."""
        video = row.get(self.form.column)
        path = video.get("path") if isinstance(video, Mapping) else video
        if not self.is_saved_dataset or isinstance(self.form, DataJuicerRows) or not isinstance(path, str):
            return None
        return self.key({**row, self.form.column: {"path": INSIDE + Path(path).name}})

    def key_there(self, row: Sample) -> bytes:
        """The key of a row on the disk: one of both."""
        other = self.other_key(row) if isinstance(row.get(self.form.column), Mapping) else None
        return other or self.key(row)

    def video(self, row: Sample) -> Any:
        """What names the video: in a videofolder the text beside it, else its path, or a digest of its bytes."""
        if self.is_videofolder:
            with suppress(SettingsError):  # a time window that is none
                return text_name(row, self.target.layout) if row.get(FILE_NAME) else None
            return row[FILE_NAME]
        value = _parsed(row.get(self.form.column))
        videos = [_video(video) for video in (value if isinstance(value, list) else [value])]
        return [self._path(video, self.target.layout.root) for video in videos] if self.is_saved_dataset else videos

    def _path(self, video: Any, root: Any) -> Any:
        """What names a video in a saved data set, where paths are relative to it: the file itself."""
        if not isinstance(video, str) or "://" in video:
            return video
        path = Path(root if isinstance(root, Path) else "", video).absolute()
        return str(path.parent.resolve() / path.name)

    def at_home(self, row: Sample) -> Sample:
        """A row of an output whose paths are relative to it, with what they lead to."""
        video = row.get(self.form.column) if self.is_saved_dataset else None
        return row if not isinstance(video, str) else {**row, self.form.column: self._path(video, self.target.path)}

    def as_written(self, row: Sample) -> Sample:
        """A row on its way to the output as it is there: in a videofolder that of the table."""
        if not self.is_videofolder:
            return row
        place = self.place(row)
        return table_row(row, place and place[0], captions_of(row.get(self._caption_key)), self.target.layout)

    def place(self, row: Sample) -> tuple[str, str] | None:
        """Where the video and the captions of a row go in a videofolder, relative to its table; None: nowhere."""
        layout = self.target.layout
        if not self.is_videofolder or layout.video_field is None or row.get(layout.video_field) in (None, ""):
            return None
        with suppress(DataError, SettingsError):
            place = place_of(row, self.target.path.parent, layout)
            return place.name, place.text
        return None

    @property
    def captions_field(self) -> str | None:
        """The field that captions are in."""
        return self.form.caption_key

    def as_called_now(self, row: Sample, earlier: Collection[str]) -> Sample:
        """A row of an output whose captions may be in a field of an earlier name."""
        field = self.captions_field
        name = next((name for name in earlier if name in row), None)
        if field is None or field in row or name is None:
            return row
        return {field if one == name else one: value for one, value in row.items()}

    def has_captions(self, row: Sample) -> bool:
        """Whether a row in the output has anything about captions."""
        return not isinstance(self.form, OneVideoRows) or self._caption_key in row or self.is_videofolder

    @cached_property
    def is_videofolder(self) -> bool:
        """Whether captions are stored next to the videos."""
        return self.target.format.table is not None

    @cached_property
    def is_saved_dataset(self) -> bool:
        """Whether paths in the output are relative to it."""
        return self.target.format.has_relative_paths

    def value(self, row: Sample) -> Any:
        """The part of a row in the output that may have been corrected by hand."""
        if isinstance(self.form, DataJuicerRows):
            given = {self.names.text_key: row.get(self.names.text_key)}
            if self.names.caption_key is None or self.names.caption_key not in row:
                return given
            return given | {self.names.caption_key: captions_of(row.get(self.names.caption_key)) or None}
        captions = captions_of(row.get(self._caption_key))
        if not self.is_videofolder:
            return captions
        if self._caption_key != CAPTION and row.get(CAPTION) is not None:  # the first stands there, too
            captions = captions_of([row[CAPTION]]) + captions[1:]
        return [" ".join(one.split()) for one in captions]

    def said(self, value: Any) -> bytes:
        """A digest of `value`, whatever its fields are called, or of the captions of a text file."""
        if isinstance(value, dict):
            return digest([one for one in value.values() if one is not None])
        return digest([one for one in value if one] if isinstance(value, list) else value)

    def rest(self, row: Sample) -> bytes:
        """A digest of the fields that are neither video nor caption."""
        hidden = self._not_rest
        rest = {name: value for name, value in row.items() if name not in hidden}
        if self.target.format.captioned_rows is not None:  # where bytes are members of their own
            rest = {name: without_bytes(value) for name, value in rest.items()}
        return digest(rest)

    def places(self, made: Iterable[Sample]) -> Iterator[tuple[int, Sample]]:
        """The rows that a row became, each with its place."""
        first = ORIGINAL if isinstance(self.form, DataJuicerRows) and self.names.keep_original else 0
        yield from enumerate(made, start=first)

    @cached_property
    def _caption_key(self) -> str:
        return self.form.caption_key or ""

    @cached_property
    def _not_rest(self) -> set[str | None]:
        names = self.names
        made = {names.failure_key, names.finish_reason_key, names.reasoning_key, KEY, names.caption_key}
        if isinstance(self.form, DataJuicerRows):
            return {*made, self.form.column, self.names.text_key}
        video = {FILE_NAME, CAPTION} if self.is_videofolder else set()
        return {*made, *video, self.form.column, self._caption_key}

    def written(self, number: int, source: Sample, made: Sequence[Sample]) -> Iterator[WrittenRow]:
        """What is kept of the rows that a row became."""
        with suppress(*ODD_VALUES):
            key, text = self.key(self.as_written(source)), (self.place(source) or (None, None))[1]
            if self.is_saved_dataset and (other := self.other_key(source)) is not None:
                text = other.hex()
            for place, row in self.places(map(self.as_written, made) if self.is_videofolder else made):
                yield WrittenRow(number, place, key, self.said(self.value(row)), self.rest(row), text)


class Edits:
    """The captions that were edited by hand in the output of a run.

    Args:
        journal: the run's.
        digests: recognises its rows.
        discard: whether edits are dropped.
    """

    def __init__(self, journal: Journal, digests: Digests, *, discard: bool) -> None:
        self._journal = journal
        self._digests = digests
        self._discard = discard
        self._edits: dict[bytes, dict[int, dict[int, Any]]] = {}
        self._seen: dict[bytes, int] = {}
        self._looked_at: Any = None
        self.found: Found | None = None
        """How the output differed when it was last looked at; None: it did not."""
        self.kept_name: Path | None = None
        """New name of an output that had more than edited captions."""
        self.is_unknown_before = False
        """Whether no digests were kept of that output."""
        self.texts_kept = 0
        """Number of text files of a videofolder that were kept."""

    # before

    def look(self) -> Found | None:
        """Compare the output with what was written, and keep the edits; None: it is unchanged."""
        path = self._digests.target.path
        made, self._looked_at = self._journal.fact("made"), state_of(path)
        if self._discard or self._looked_at is None or self.is_unknown or not self._may_differ(made):
            return None
        self._journal.written.index_written()
        found = self._compared(path)
        self.found = None if found.is_clean else found
        return self.found

    @property
    def is_unknown(self) -> bool:
        """Whether an output exists of which no digests were kept."""
        is_known = self._journal.fact("made") is not None or self._journal.fact("joining")
        return self._looked_at is not None and not is_known

    def _may_differ(self, made: Any) -> bool:
        return made is None or bool(made["state"] != self._looked_at) or self._has_new_texts(made["ns"])

    def _has_new_texts(self, since_ns: int) -> bool:
        """Whether a text file of a videofolder is newer than the output, or gone."""
        if not self._digests.is_videofolder:
            return False
        for row in self._journal.written.written_texts():
            try:
                if row.said != NOTHING and os.lstat(self._text(row)).st_mtime_ns > since_ns:
                    return True
            except OSError:
                return True
        return False

    def _text(self, row: WrittenRow) -> Path:
        """The file with a row's captions.

        Raises:
            DataError: the journal, which others may have filled, names one that is none of the folder's.
        """
        folder, name = self._digests.target.path.parent, str(row.text)
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.endswith(".txt") or "\0" in name:
            raise DataError(f"the journal is damaged (it has captions in {name!r}); start from scratch (--overwrite)")
        check_folders((folder / name).parent, folder, "the folder")
        check_file(folder / name, "the caption file")
        return folder / name

    def _compared(self, path: Path) -> Found:
        found = Found()
        with closing(sqlite3.connect("")) as rows:  # on the disk, and without a name
            rows.execute("CREATE TABLE rows (place INTEGER PRIMARY KEY, key BLOB, said BLOB, rest BLOB, value TEXT)")
            count = self._read(path, rows, found)
            rows.execute("CREATE INDEX by_key ON rows (key)")
            for (key,) in rows.execute("SELECT DISTINCT key FROM rows WHERE value IS NOT NULL").fetchall():
                self._compare_group(key, rows, found)
        known = self._journal.written
        counts = {known.count_written(), known.count_making()} if not found.edited else set()
        if count not in counts and not found.unreadable:
            found.missing = max(0, known.count_written() - (count - found.added))
        if self._digests.is_videofolder:
            found.missing = 0
            self._look_at_texts(found)
        return found

    def _read(self, path: Path, rows: sqlite3.Connection, found: Found) -> int:
        """Bring digests of the rows on the disk to a table, and what they say where that was not written; rows up to
        the first that cannot be read."""
        count = 0
        try:
            for row in self._rows(path, found):
                value = self._digests.value(row)
                key, said, rest = self._digests.key_there(row), self._digests.said(value), self._digests.rest(row)
                known = self._journal.written.is_known(key, said, rest)
                new = None if known else json.dumps(value if self._digests.has_captions(row) else None, default=str)
                rows.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (count, key, said, rest, new))
                count += 1
        except DataError as exc:
            found.unreadable = str(exc)
        except Exception as exc:  # whatever the file has become, the run must continue
            found.unreadable = f"{type(exc).__name__}: {exc}"
        rows.commit()
        return count

    def _rows(self, path: Path, found: Found) -> Iterator[Sample]:
        """The rows of the output as they are on the disk now.

        Raises:
            DataError: it cannot be read.
        """
        earlier = self._earlier_fields()
        if self._digests.is_videofolder:
            for row in DelimitedSource(path) if path.suffix == ".csv" else JsonlSource(path):
                yield self._with_list(self._digests.as_called_now(row, earlier), found)
        elif (captioned := self._digests.target.format.captioned_rows) is not None:
            for row, text in captioned(path):
                yield self._with_text(self._digests.as_called_now(row, earlier), text, found)
        else:
            for row in open_source(path):
                yield self._digests.at_home(self._digests.as_called_now(row, earlier))

    def _earlier_fields(self) -> list[str]:
        """The fields that captions may be in where the output was written with another setting."""
        made, joining = self._journal.fact("made"), self._journal.fact("joining")
        names = [joining, made.get("captions_field") if isinstance(made, dict) else None]
        return [name for name in names if isinstance(name, str)]

    def _with_list(self, row: Sample, found: Found) -> Sample:
        """A row of a videofolder's table, where a first caption stands twice, with the one that was edited."""
        field = self._digests.target.layout.caption_field
        captions = captions_of(row.get(field)) if field not in (None, CAPTION) else []
        other = {**row, CAPTION: captions[0]} if captions and CAPTION in row else row
        value, listed = self._digests.value(row), self._digests.value(other)
        if value == listed:
            return row
        known = {one.said for rows in self._journal.written.known_rows(self._digests.key(row)) for one in rows}
        if self._digests.said(value) in known:
            return other
        found.unclear += self._digests.said(listed) not in known
        return row

    def _with_text(self, row: Sample, text: str | None, found: Found) -> Sample:
        """A sample of a shard, with the captions of its text where that was edited and its row was not."""
        field = self._digests.target.layout.caption_field
        if field is None or text is None:
            return row
        captions, lines = captions_of(row.get(field)), captions_of(text.splitlines())
        lines = [line for line in lines if line]
        if lines == [line for one in captions for line in one.splitlines() if line.strip()]:
            return row
        key = self._digests.key(row)
        known = {one.said for rows in self._journal.written.known_rows(key) for one in rows}
        if self._digests.said(captions) in known:
            return {**row, field: lines}
        found.unclear += self._digests.said(lines) not in known
        return row

    def _compare_group(self, key: bytes, rows: sqlite3.Connection, found: Found) -> None:
        """Compare the rows on disk with one key with those that were written."""
        here = rows.execute(
            f"SELECT said, rest, value FROM rows WHERE key = ? ORDER BY place LIMIT {LARGEST_GROUP + 1}", (key,)
        ).fetchall()
        written, making = self._journal.written.known_rows(key)
        written = written or making
        if max(len(here), len(written)) > LARGEST_GROUP:
            found.unclear += len(here)
            return
        made = {(row.said, row.rest) for row in making}
        known = {(row.said, row.rest) for row in written}
        here = [one for one in here if one[:2] in known or one[:2] not in made]
        pairs, alone, left = aligned(written, here)
        if alone and left:
            found.unclear += len(alone)
        else:
            found.added += len(alone)
        found.other_fields += sum(row.rest != rest for row, (_, rest, _) in pairs)
        changed = [(row, value) for row, (said, _, value) in pairs if row.said != said]
        edited = [(row, value) for row, value in changed if value not in (None, NOT_SAID)]
        found.unclear += len(changed) - len(edited)
        nth = _places_among_equals(written)
        edits = [(row.key, nth[row.row], row.place, json.loads(value)) for row, value in edited]
        self._journal.written.add_edits(edits)
        found.edited += len(edits)
        found.unclear += sum(self._is_contradicted(row, json.loads(value)) for row, value in edited)

    def _is_contradicted(self, row: WrittenRow, value: Any) -> bool:
        """Whether an edit of a videofolder's table has a text file that was edited otherwise."""
        lines = caption_lines(self._text(row)) if row.text is not None and self._digests.is_videofolder else None
        return lines not in (None, value) and self._digests.said(lines) != row.said

    def _look_at_texts(self, found: Found) -> None:
        """Count text files that were edited, or are gone; which are kept is decided when they are written."""
        made = (self._journal.fact("made") or {"ns": 0})["ns"]
        for row in self._journal.written.written_texts():
            if row.said == NOTHING:
                continue
            with suppress(OSError):
                if os.stat(self._text(row)).st_mtime_ns <= made:  # noqa: PTH116 - a `Path` remembers its parts
                    continue
            lines = caption_lines(self._text(row))
            if lines is None:
                found.missing += 1
            elif self._digests.said(lines) != row.said and self._journal.written.edit(row.key) is None:
                found.edited += 1

    # while rows are made

    def begin(self, first_row: int) -> None:
        """Prepare for the rows from this one on."""
        for key, nth, place, value in self._journal.written.edits():
            self._edits.setdefault(key, {}).setdefault(nth, {})[place] = value
        if self._edits:
            self._journal.written.index_written()
        self._seen = {key: self._journal.written.count_making_rows(key, first_row) for key in self._edits}

    def applied(self, source: Sample, made: list[Sample]) -> tuple[list[Sample], int]:
        """A row's output rows with their manual edits, and how many were changed."""
        if not self._edits:
            return made, 0
        try:
            key = self._digests.key(self._digests.as_written(source))
        except ODD_VALUES:
            return made, 0
        if key not in self._edits:
            return made, 0
        nth, self._seen[key] = self._seen[key], self._seen[key] + 1
        edits = self._edits[key].get(nth, {})
        placed = dict(self._digests.places(made))
        changed = 0
        for place, value in edits.items():
            row = placed.get(place)
            said = None if row is None else self._digests.value(self._digests.as_written(row))
            if said == value or (said == [] and self._digests.is_videofolder):  # of a failed one `keep` decides
                continue
            placed[place] = self._with(source if row is None else row, value)
            changed += 1
        return [placed[place] for place in sorted(placed)], changed

    def _with(self, row: Sample, value: Any) -> Sample:
        if isinstance(self._digests.form, DataJuicerRows):
            return {**row, **value}
        return {**row, self._digests.form.caption_key or "": value or None}

    # at the end

    def make_way(self) -> None:
        """Rename an output that has more than edited captions, before its name is taken."""
        path = self._digests.target.path
        if self._digests.is_videofolder:
            self._journal.written.index_written()
        state = state_of(path)
        if self._discard or state is None:
            return
        late = state != self._looked_at
        if late or self.is_unknown or (self.found is not None and self.found.has_more_than_captions):
            self.is_unknown_before = self.is_unknown
            self.kept_name = _kept(path)

    def keep(self, row: Sample, text: Path, captions: list[str]) -> list[str]:
        """See `Layout.keep`."""
        lines = caption_lines(text)
        if captions and (lines is None or lines == [" ".join(one.split()) for one in captions if one]):
            return captions
        key = self._digests.key(row)
        edit = self._journal.written.edit(key)
        said = NOTHING if lines is None else self._digests.said(lines)
        is_found = edit is not None and edit == (lines or [""])  # by a join that was ended
        if lines is None or (not is_found and self._is_ours(key, said)):
            if not captions and edit is None and lines is not None:
                self._journal.written.mark_made(
                    key, said
                )  # what an earlier session wrote stays, and stays known as such
            if captions or edit is None:
                return captions
            lines, said = edit, self._digests.said(edit)
        elif not is_found:
            self._journal.written.add_edits([(key, 0, 0, lines or [""])])
        self._journal.written.mark_made(key, said)
        self.texts_kept += 1
        return lines or [""]

    def _is_ours(self, key: bytes, said: bytes) -> bool:
        """Whether the run has written these captions of a row, or is about to."""
        return any(one.said == said for rows in self._journal.written.known_rows(key) for one in rows)

    def made(self, rows_out: int) -> dict[str, Any] | None:
        """What is kept of the output that has its name now; None: an earlier version wrote rows of it, of which no
        digests are there."""
        path = self._digests.target.path
        if self._journal.written.count_making() != rows_out:
            return None
        field = self._digests.captions_field
        return {"state": state_of(path), "ns": path.stat().st_mtime_ns, "captions_field": field}


Here = tuple[bytes, bytes, str | None]
"""Digests of the captions and the other fields of a row on the disk, and what it says where that was not written."""


def aligned(
    written: Sequence[WrittenRow], here: Sequence[Here]
) -> tuple[list[tuple[WrittenRow, Here]], list[Here], list[WrittenRow]]:
    """Which row on the disk is which of those that were written with the same key.

    Returns:
        Pairs; rows on the disk without a partner; rows that were written without one.
    """
    alone, left = list(here), list(written)
    known = {row.said for row in written}
    if len(alone) == len(left) and all(
        row.rest == one[1] and (row.said == one[0] or one[0] not in known) for row, one in zip(left, alone, strict=True)
    ):
        return list(zip(left, alone, strict=True)), [], []
    pairs: list[tuple[WrittenRow, Here]] = []
    for is_same in (_is_as_written, _has_same_rest, _says_the_same):
        for one in list(alone):
            partners = [row for row in left if is_same(row, one)]
            rivals = [other for other in alone if other[1] == one[1]] if is_same is _has_same_rest else partners
            if partners and len(partners) == len(rivals):
                pairs.append((partners[0], one))
                left.remove(partners[0])
                alone.remove(one)
    if len(alone) == len(left):
        return [*pairs, *zip(left, alone, strict=True)], [], []
    return pairs, alone, left


def _places_among_equals(written: Sequence[WrittenRow]) -> dict[int, int]:
    """Which of the rows of the input with its key each is, by its index."""
    keys = dict(sorted((row.row, row.key) for row in written))
    seen = Counter[bytes]()
    places = {}
    for number, key in keys.items():
        places[number], seen[key] = seen[key], seen[key] + 1
    return places


def _is_as_written(row: WrittenRow, one: Here) -> bool:
    return (row.said, row.rest) == one[:2]


def _has_same_rest(row: WrittenRow, one: Here) -> bool:
    return row.rest == one[1]


def _says_the_same(row: WrittenRow, one: Here) -> bool:
    return row.said == one[0]


def state_of(path: Path) -> Any:
    """Plain values that change when an output changes; None: it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not path.is_dir():
        return [status.st_size, status.st_mtime_ns]
    marks = [[str(one.relative_to(path)), one.stat().st_size, one.stat().st_mtime_ns] for one in _files(path)]
    return digest(marks).hex()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kept(path: Path) -> Path:
    """Give an output a second name, or rename it if it is a folder."""
    path = path.resolve() if path.is_dir() else path  # a link given as the output keeps leading to it
    number = next(number for number in range(1, 10**6) if not os.path.lexists(kept_name(path, number)))
    target = kept_name(path, number)
    with writing(target):
        if path.is_dir():
            path.rename(target)
            return target
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copy2(path, target)
    return target


def captions_of(value: Any) -> list[str]:
    """Captions as a list, in whatever way a format or a person has written them."""
    if value is None:
        return []
    if isinstance(value, str):
        parsed = _parsed(value.lstrip())
        if isinstance(parsed, list):
            return captions_of(parsed)
        return [_lines(value)] if value.strip() else []
    return [_lines(one if isinstance(one, str) else str(one)) for one in value] if isinstance(value, list) else []


def _lines(text: str) -> str:
    """A text without what an editor may change unasked: line ends, and blanks around it."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


_EMPTY: tuple[Any, ...] = (None, "", [], {})
_EMPTY_JSON = ("null", '""', "[]", "{}")
_quoted = json.encoder.encode_basestring_ascii
_dumps = json.JSONEncoder(sort_keys=True, check_circular=False, default=str).encode


def digest(value: Any) -> bytes:
    """A digest of plain values that does not depend on the format they were written to and read from."""
    return hashlib.blake2b(_plain_json(value).encode("ascii"), digest_size=DIGEST_BYTES).digest()


def _plain_json(value: Any) -> str:
    """`plain(value)` as JSON with sorted names, made in one go: a run makes some ten digests of each row."""
    kind = type(value)
    if kind is str and value[:1] not in ("[", "{"):
        return _quoted(_plain_text(value))
    if kind is int:
        return f'"{value}"'
    if value is None:
        return "null"
    if kind is list:
        return f"[{', '.join([_plain_json(part) for part in value])}]"
    if kind is dict:
        parts = {str(name): _plain_json(part) for name, part in value.items()}
        pairs = [f"{_quoted(name)}: {parts[name]}" for name in sorted(parts) if parts[name] not in _EMPTY_JSON]
        return f"{{{', '.join(pairs)}}}"
    return _dumps(plain(value))


def plain(value: Any) -> Any:
    """A value as every format gives it back: null and empty fields left out, nested values that are JSON parsed."""
    if type(value) is str:
        return _plain_text(value)
    if type(value) is int:
        return str(value)
    if value is None or type(value) is float:
        return _plain_scalar(value)
    if type(value) is list:
        return [plain(part) for part in value]
    if isinstance(value, (dict, Mapping)):
        parts = {str(name): plain(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part not in _EMPTY}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return _plain_text(value) if isinstance(value, str) else _plain_scalar(value)


def _plain_text(value: str) -> Any:
    if value[:1] in ("[", "{"):
        parsed = _parsed(value)
        if parsed is not value:
            return plain(parsed)
    if value.isascii() and "\n" not in value and "\r" not in value:
        return value.strip()
    return _lines(value.encode("utf-8", "backslashreplace").decode())


def _plain_scalar(value: Any) -> Any:
    """Numbers and times as the texts that tables hold."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value.total_seconds())
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"bytes {hashlib.blake2b(value, digest_size=DIGEST_BYTES).hexdigest()}"
    if isinstance(value, (int, float, decimal.Decimal)):
        return str(value)
    return str(value)


NOTHING = digest([])
"""Of no captions."""


def _parsed(value: Any) -> Any:
    """A value that a table holds as JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return list(value) if isinstance(value, tuple) else value


def _video(video: Any) -> Any:
    """What names a video."""
    if isinstance(video, Mapping) and video.get("path") is not None:
        return video["path"]
    return video.get("bytes") if isinstance(video, Mapping) else video


def _number(value: Any) -> Any:
    """Seconds, as a number, a text or several."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_number(one) for one in value]
    try:
        return None if value == "" else str(float(value))
    except (TypeError, ValueError, OverflowError):
        return _text(value)


def _text(value: Any) -> Any:
    """What every format gives back of a value; None where it is empty."""
    if value is None:
        return None
    made = plain(value)
    return None if made in _EMPTY else made


def _counted(count: int, what: str) -> str:
    many = "" if count == 1 else "s"
    return f"{count:,} {what.replace('caption', f'caption{many}').replace('row', f'row{many}')}"
