"""WebDataset: tar shards whose members share one key per sample, such as `a.mp4`, `a.txt`, `a.json`.

In: a row is `__key__`, the fields of the `.json` member, the video as `{"path", "bytes"}`, the `.txt` member as `text`,
and any other member under its suffix. Out: the row as `.json`, its captions as `.txt`, and its video on request. If a
key or a field is not a valid member name, the `.json` has the original.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from ..stores import AnyPath
from ..types import BadRow, Sample
from ..video.files.signatures import HEAD_BYTES
from .base import (
    DEFAULT_LAYOUT,
    MAX_ROW_BYTES,
    Format,
    Layout,
    check_regular,
    reading,
    too_large,
    understanding,
    writing,
)
from .folder import IMAGE_SUFFIXES, VIDEO_FIELD, is_video
from .json_row import check_values, read_row
from .jsonl import encode_row
from .media import captioned_video, opened_video, video_suffix
from .member_names import DistinctNames, field_names, fields_by_suffix, key_name, unclear_fields
from .temporary import FileSink, TemporaryFile, TemporaryFolder

SHARD_ROWS = 1000
"""Rows of the input in a shard."""
KEY = "__key__"
"""Field with the key of a sample."""
TEXT_FIELD = "text"
"""Field of the `.txt` member."""
MAX_HEADER_BYTES = 2**20
"""Largest header before a member: a long name, or PAX records."""
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE)  # fmt: skip
_META = re.compile(r"__[^/]*__($|/)")
"""Names of members with metadata about the shard, which `webdataset` also skips."""
_JSON, _TEXT = "json", "txt"
_SPACE = " \t\r\n"


class TarSource:
    """The samples of one or more shards, in order."""

    def __init__(
        self, path: AnyPath, files: Sequence[AnyPath] | None = None, *, max_row_bytes: int = MAX_ROW_BYTES
    ) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._files = [path] if files is None else list(files)
        self.max_row_bytes = max_row_bytes
        """The largest sample that is read."""
        self.images = False
        """Whether a still picture counts as the video of a sample without one."""

    def __iter__(self) -> Iterator[Sample]:
        for path in self._files:
            yield from _samples(path, self.max_row_bytes, images=self.images)

    def fields(self) -> list[str] | None:
        """Unknown: samples may differ."""
        return None

    def count(self) -> int | None:
        """Unknown: a tar file has no index."""
        return None

    def schema(self) -> Any:
        """None: values are of any type."""
        return None

    def files(self) -> Sequence[AnyPath]:
        """The shards."""
        return self._files


def _samples(path: AnyPath, max_row_bytes: int, *, images: bool) -> Iterator[Sample]:
    from webdataset.tariterators import group_by_keys

    check_regular(path, role="tar shard")
    with understanding(path, as_="a tar shard"), path.open("rb") as file:
        for sample in group_by_keys(_members(file, path, max_row_bytes)):
            yield _row(sample, path, max_row_bytes, images=images)


class _Member(tarfile.TarInfo):
    """A member whose header is bounded, and that is not a sparse file, in which a few bytes could expand to any
    size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > MAX_HEADER_BYTES:
            shard = str(tar.name or "a tar shard")
            raise DataError(f"{shard!r} has a header of {self.size:,} bytes, too large for a name")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise DataError(_sparse(self.name))
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


def _sparse(name: str) -> str:
    return f"the member {name!r} is a sparse file, which is not supported; pack it without --sparse"


def _members(file: Any, path: AnyPath, max_row_bytes: int) -> Iterator[dict[str, Any]]:
    """Name and bytes of each file of a shard, as from `webdataset`'s `tar_file_iterator`, within the limit."""
    from webdataset.tariterators import base_plus_ext

    if not file.peek(1):
        return
    sample, size = None, 0
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as shard:
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # a list that would grow with the shard
            if not member.isreg() or _META.match(member.name):
                continue
            if member.issparse():
                raise DataError(f"{path}: {_sparse(member.name)}")
            key, _ = base_plus_ext(member.name)
            sample, size = key, member.size + (size if key == sample else 0)
            if size > max_row_bytes:
                raise too_large(f"{path}: the sample {key or member.name!r} is larger", limit_bytes=max_row_bytes)
            data = shard.extractfile(member)
            assert data is not None
            yield {"fname": member.name, "data": data.read(), "__url__": str(path)}


def _row(sample: dict[str, Any], path: AnyPath, max_row_bytes: int, *, images: bool) -> Sample:
    row: Sample = {KEY: sample[KEY]}
    members = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
    stored: Sample = {}
    if _JSON in members:
        where = f"{path}:{sample[KEY]}.json"
        check_values(members[_JSON], limit_bytes=max_row_bytes, where=where)
        stored = _fields(members.pop(_JSON), where=where)
        row |= stored
    still = _still(members) if images and not row.get(VIDEO_FIELD) else None
    fields: dict[str, str] | None = None
    for suffix, data in members.items():
        if suffix == still or is_video(_last(suffix), partial(_head, data)):
            row[_video_name(row)] = {"path": f"{sample[KEY]}.{suffix}", "bytes": data}
        elif suffix == _TEXT:
            row.setdefault(TEXT_FIELD, data.decode("utf-8", "replace").strip(_SPACE) if data else "")
        else:
            if fields is None:  # a field that its suffix does not determine is null in the row
                fields = fields_by_suffix(name for name, value in row.items() if value is None)
            field = fields.get(suffix, suffix)
            row[field] = data if row.get(field) is None else row[field]
    if not isinstance(stored, BadRow):
        return row
    added = {name: value for name, value in row.items() if name not in stored or value is not stored[name]}
    return BadRow(row, failure=stored.failure, line=stored.line, added=added)


def _last(suffix: str) -> str:
    return f".{suffix.rpartition('.')[2]}"


def _head(data: bytes) -> bytes:
    return data[:HEAD_BYTES]


def _still(members: Mapping[str, bytes]) -> str | None:
    """The suffix of the first still picture, if there is one and no video."""
    if any(is_video(_last(suffix), partial(_head, data)) for suffix, data in members.items()):
        return None
    return next((suffix for suffix in members if _last(suffix) in IMAGE_SUFFIXES), None)


def _video_name(row: Sample) -> str:
    """`video`; a second one in the same sample gets another name, so that it is not silently lost."""
    return (
        VIDEO_FIELD
        if not isinstance(row.get(VIDEO_FIELD), dict) or row[VIDEO_FIELD].get("bytes") is None
        else (f"{VIDEO_FIELD}_{len(row)}")
    )


def _fields(data: bytes, *, where: str) -> Sample:
    try:
        value = read_row(data.decode(json.detect_encoding(data), "surrogatepass"), where=where)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where} is not JSON: {exc}") from exc
    return value if isinstance(value, dict) else {_JSON: value}


def captioned_samples(path: Path) -> Iterator[tuple[Sample, str | None]]:
    """The fields and the text of each sample of a shard that `TarSink` wrote; videos are not read.

    Raises:
        DataError: it cannot be read.
    """
    with reading(path):
        try:
            with tarfile.open(path) as tar:
                key, found = "", dict[str, bytes]()
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # a list that would grow with the shard
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    own = f"{folder}{slash}{stem}"
                    if own != key and found:
                        yield _captioned(key, found, path)
                    key, found = own, (found if own == key else {})
                    if suffix in (_JSON, _TEXT):
                        file = tar.extractfile(member)
                        found[suffix] = file.read() if file is not None else b""
                if found:
                    yield _captioned(key, found, path)
        except tarfile.TarError as exc:
            raise DataError(f"cannot read {str(path)!r} as a tar shard: {exc}") from exc


def _captioned(key: str, found: dict[str, bytes], path: Path) -> tuple[Sample, str | None]:
    fields = _fields(found[_JSON], where=f"{path}:{key}.json") if _JSON in found else {}
    return {KEY: key, **fields}, found[_TEXT].decode("utf-8", "replace") if _TEXT in found else None


class TarSink(FileSink):
    """Writes one shard; equal rows give equal bytes."""

    def __init__(self, path: Path, *, layout: Layout = DEFAULT_LAYOUT, **_unused: Any) -> None:
        self.path = path
        self._layout = layout
        self._temporary = TemporaryFile(path)
        self._prefix = f"{path.stem}-" if path.stem.isdigit() else ""
        self._file: Any = None
        self._tar: Any = None
        self._names = DistinctNames()
        self._rows = 0

    def __enter__(self) -> Self:
        from webdataset.writer import TarWriter

        self._temporary.create()
        with writing(self.path):
            self._file = self._temporary.path.open("wb")
            self._tar = TarWriter(self._file, encoder=False, mtime=0, format="PAX_FORMAT")
        return self

    def _close(self) -> None:
        self.finish()

    def check(self, row: Sample) -> None:
        """See `Sink.check`."""
        self._text_members(row, key=None)

    def write(self, row: Sample) -> None:
        """Write the members of one sample."""
        name, key = self._name(row)
        members = self._text_members(row, key=None if key == name else key) | self._video_member(row)
        with writing(self.path):
            self._tar.write({KEY: name, **members})
        self._rows += 1

    def finish(self) -> None:
        """See `Sink.finish`."""
        if self._file is not None:
            tar, file, self._tar, self._file = self._tar, self._file, None, None
            with writing(self.path), closing(file):
                tar.close()

    def commit(self, name: str | None = None) -> None:
        """See `Sink.commit`."""
        self.finish()
        self._temporary.commit(name)

    def _name(self, row: Sample) -> tuple[str, str]:
        """The name of the members, and its key: the row's own, made unique; a number if it has none."""
        own = row.get(KEY)
        key = own if isinstance(own, str) and own else f"{self._prefix}{self._rows:06}"
        plain = key_name(key)
        name, is_same = self._names.distinct(plain)
        return name, key + name[len(plain) :] if is_same else key

    def _text_members(self, row: Sample, *, key: str | None) -> dict[str, bytes]:
        """The members except the video; `key` goes into the `.json` if the members' name does not give it."""
        video_field = self._layout.video_field or VIDEO_FIELD
        data = {name: value for name, value in row.items() if name not in (KEY, video_field)}
        data = {name: value for name, value in data.items() if isinstance(value, bytes)}
        nulls = [name for name, value in row.items() if value is None]
        video = video_suffix(captioned_video(row, self._layout))
        all_names = field_names([*data, *nulls], video=video) if data else {}
        names = {field: all_names[field] for field in data}
        members = {names[field]: value for field, value in data.items()}
        told = unclear_fields(names, nulls) if data else ()
        plain: Sample = {} if key is None else {KEY: key}
        for name, value in row.items():
            if name != KEY and (name not in data or name in told):
                plain[name] = without_bytes(value)
        members[_JSON] = encode_row(plain, number=self._rows, path=self.path)
        captions = self._captions(row)
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            captions = None  # a field of the user's that has this name
        return members | ({_TEXT: "\n".join(captions).encode("utf-8", "backslashreplace")} if captions else {})

    def _captions(self, row: Sample) -> Any:
        field = self._layout.caption_field
        return None if field is None else row.get(field)

    def _video_member(self, row: Sample) -> dict[str, bytes]:
        """The video under its suffix, if videos are included and it has captions; a missing one is left out."""
        video = captioned_video(row, self._layout)
        suffix = video_suffix(video)
        if suffix is None:
            return {}
        with opened_video(video, self._layout) as file:
            return {} if file is None else {suffix: file.read()}


def without_bytes(value: Any) -> Any:
    """A video value without its bytes: they are a separate member, or left out."""
    if isinstance(value, bytes):
        return None
    if isinstance(value, dict) and set(value) == {"path", "bytes"}:
        return {"path": value["path"], "bytes": None}
    return value


def join_tar(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """Join the members of several shards into one; samples with equal names are renamed."""
    temporary = TemporaryFile(output)
    temporary.create()
    names = DistinctNames()
    try:
        with writing(output), tarfile.open(temporary.path, "w", format=tarfile.PAX_FORMAT) as joined:
            for part in parts:
                _join(part, joined, names)
        temporary.commit()
    finally:
        temporary.discard()


def _join(part: Path, joined: tarfile.TarFile, names: DistinctNames) -> None:
    before, made, is_same = None, "", False
    with tarfile.open(part) as members:
        for member in members:
            folders, slash, base = member.name.rpartition("/")
            name, dot, field = base.partition(".")
            name = folders + slash + name
            if name != before:
                before, (made, is_same) = name, names.distinct(name)
            data = members.extractfile(member)
            if made != name:
                member.name, member.pax_headers = f"{made}{dot}{field}", {}
                if field == _JSON and data is not None:
                    text = _with_key(data.read(), name, made if is_same else name)
                    member.size, data = len(text), io.BytesIO(text)
            joined.addfile(member, data)
            members.members = []  # type: ignore[attr-defined]  # a list that would grow with the shard


def _with_key(row: bytes, name: str, made: str) -> bytes:
    """The `.json` of a sample whose members were renamed, with its key.

    Args:
        row: the object, as `TarSink` writes it.
        name: the members' old name.
        made: the new name, with the number that the key gets too.
    """
    text = row.decode("utf-8")
    start = f'{{"{KEY}": '
    key, end = json.JSONDecoder().raw_decode(text, len(start)) if text.startswith(start) else (name, 1)
    rest = text[end:]
    comma = "" if rest.startswith((",", "}")) else ", "
    return b"".join([start.encode(), json.dumps(key + made[len(name) :]).encode(), (comma + rest).encode()])


def join_shards(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """Make a folder with one shard per part."""
    folder = TemporaryFolder(output)
    folder.create()
    try:
        with writing(output):
            for number, part in enumerate(parts):
                _link(part, folder.path / f"{number:06}.tar")
        folder.commit()
    finally:
        folder.discard()


def _link(source: Path, target: Path) -> None:
    """Link a file under another name, or copy it if that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def captioned_shards(folder: Path) -> Iterator[tuple[Sample, str | None]]:
    """The samples of a folder of shards, as `captioned_samples` reads each."""
    for shard in sorted(folder.glob("*.tar")):
        yield from captioned_samples(shard)


def is_shards(folder: Path) -> bool:
    """Whether a folder has only shards."""
    return all(path.suffix == ".tar" and path.is_file() for path in folder.iterdir())


FORMAT = Format(
    name="tar",
    suffixes=(".tar",),
    source=TarSource,
    many="tar shards",
    written=(".tar",),
    sink=TarSink,
    part_sink=TarSink,
    part="tar",
    join=join_tar,
    part_rows=SHARD_ROWS,
    holds_videos=True,
    holds_bytes=True,
    captioned_rows=captioned_samples,
)
SHARDS_FORMAT = Format(
    name="webdataset",
    is_named=True,
    part_sink=TarSink,
    part="tar",
    join=join_shards,
    part_rows=SHARD_ROWS,
    is_own_folder=is_shards,
    holds_videos=True,
    holds_bytes=True,
    captioned_rows=captioned_shards,
)
"""A folder of such shards; it is read as one data set of files of the other."""
