"""WebDataset: tar shards whose members share a key for each sample, such as `a.mp4`, `a.txt`, `a.json`.

In: a row is `__key__`, the fields of the `.json` member, the video as `{"path", "bytes"}`, the `.txt` member as `text`,
and any other member under its suffix. Out: the row as `.json`, its captions as `.txt`, and its video if asked.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self

from ..errors import DataError
from ..record import Sample
from ..stores import AnyPath, StoredPath
from ..video.signatures import HEAD_BYTES
from .base import DEFAULT_LAYOUT, Layout, reading, writing
from .folder import IMAGE_SUFFIXES, VIDEO_FIELD, VIDEO_SUFFIXES, is_video
from .jsonl import encode_row
from .temporary import FileSink, TemporaryFile, TemporaryFolder

KEY = "__key__"
"""Field with the key of a sample."""
TEXT_FIELD = "text"
"""Field of the `.txt` member."""
_JSON, _TEXT = "json", "txt"
_SPACE = " \t\r\n"


class TarSource:
    """The samples of a shard, or of several, one behind the other."""

    def __init__(self, path: AnyPath, files: Sequence[AnyPath] | None = None) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._files = [path] if files is None else list(files)
        self.images = False
        """Whether the still picture of a sample without a video is its video."""

    def __iter__(self) -> Iterator[Sample]:
        for path in self._files:
            yield from _samples(path, images=self.images)

    def fields(self) -> list[str] | None:
        """Unknown: samples may differ."""
        return None

    def count(self) -> int | None:
        """Unknown: a tar file has no index."""
        return None

    def schema(self) -> Any:
        """None: values are of any kind."""
        return None

    def files(self) -> Sequence[AnyPath]:
        """The shards."""
        return self._files


def _samples(path: AnyPath, *, images: bool) -> Iterator[Sample]:
    from webdataset.tariterators import group_by_keys

    with reading(path):
        try:
            with path.open("rb") as file:
                for sample in group_by_keys(_members(file, path)):
                    yield _row(sample, path, images=images)
        except (tarfile.TarError, ValueError) as exc:
            raise DataError(f"cannot read {str(path)!r} as a tar shard: {exc.args[0] if exc.args else exc}") from exc


def _members(file: Any, path: AnyPath) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import tar_file_iterator

    if not file.peek(1):
        return
    for member in tar_file_iterator(file):
        yield {**member, "__url__": str(path)}


def _row(sample: dict[str, Any], path: AnyPath, *, images: bool) -> Sample:
    row: Sample = {KEY: sample[KEY]}
    members = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
    if _JSON in members:
        row |= _fields(members.pop(_JSON), where=f"{path}:{sample[KEY]}.json")
    still = _still(members) if images and not row.get(VIDEO_FIELD) else None
    for suffix, data in members.items():
        if suffix == still or is_video(_last(suffix), partial(_head, data)):
            row[_video_name(row)] = {"path": f"{sample[KEY]}.{suffix}", "bytes": data}
        elif suffix == _TEXT:
            row.setdefault(TEXT_FIELD, data.decode("utf-8", "replace").strip(_SPACE) if data else "")
        else:
            row.setdefault(suffix, data)
    return row


def _last(suffix: str) -> str:
    return f".{suffix.rpartition('.')[2]}"


def _head(data: bytes) -> bytes:
    return data[:HEAD_BYTES]


def _still(members: Mapping[str, bytes]) -> str | None:
    """The suffix of the first still picture, where there is one and no video."""
    if any(is_video(_last(suffix), partial(_head, data)) for suffix, data in members.items()):
        return None
    return next((suffix for suffix in members if _last(suffix) in IMAGE_SUFFIXES), None)


def _video_name(row: Sample) -> str:
    """`video`; a second one of the same sample would be lost silently, so it has another name."""
    return (
        VIDEO_FIELD
        if not isinstance(row.get(VIDEO_FIELD), dict) or row[VIDEO_FIELD].get("bytes") is None
        else (f"{VIDEO_FIELD}_{len(row)}")
    )


def _fields(data: bytes, *, where: str) -> Sample:
    try:
        value = json.loads(data)
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
    """Writes one shard; the same rows are the same bytes."""

    def __init__(self, path: Path, *, layout: Layout = DEFAULT_LAYOUT, **_unused: Any) -> None:
        self.path = path
        self._layout = layout
        self._temporary = TemporaryFile(path)
        self._prefix = f"{path.stem}-" if path.stem.isdigit() else ""
        self._file: Any = None
        self._tar: Any = None
        self._last = ("", 0)
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
        self._text_members(row)

    def write(self, row: Sample) -> None:
        """Write the members of one sample."""
        members = self._text_members(row) | self._video_member(row)
        with writing(self.path):
            self._tar.write({KEY: self._key(row), **members})
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

    def _key(self, row: Sample) -> str:
        """The row's own key, made different from the one before it; a number where it has none."""
        own = row.get(KEY)
        if not isinstance(own, str) or not own:
            return f"{self._prefix}{self._rows:06}"
        key = own.replace(".", "_")
        self._last = (key, self._last[1] + 1 if key == self._last[0] else 0)
        return f"{key}-{self._last[1]}" if self._last[1] else key

    def _text_members(self, row: Sample) -> dict[str, bytes]:
        video_field = self._layout.video_field or VIDEO_FIELD
        rest = {name: value for name, value in row.items() if name not in (KEY, video_field)}
        members = {name: value for name, value in rest.items() if isinstance(value, bytes)}
        plain = {name: without_bytes(value) for name, value in row.items() if name != KEY and name not in members}
        members[_JSON] = encode_row(plain, number=self._rows, path=self.path)
        captions = row.get(self._layout.caption_field or "")
        return members | ({_TEXT: "\n".join(captions).encode("utf-8", "backslashreplace")} if captions else {})

    def _video_member(self, row: Sample) -> dict[str, bytes]:
        """The video under its suffix, if videos are wanted; a file that is missing is left out, like its caption."""
        video = row.get(self._layout.video_field or VIDEO_FIELD) if self._layout.with_videos else None
        name, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
        if isinstance(name, bytes):
            name, data = "video.mp4", name
        if not isinstance(name, str) or (suffix := Path(name).suffix.lower()) not in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
            return {}
        data = self._file_bytes(name) if data is None else data
        return {} if data is None else {suffix[1:]: data}

    def _file_bytes(self, name: str) -> bytes | None:
        """What a file holds; None where it is missing, or lies elsewhere than on this machine."""
        if "://" in name or (isinstance(self._layout.root, StoredPath) and not name.startswith("/")):
            return None
        path = Path(self._layout.root if isinstance(self._layout.root, Path) else "", name)
        if not path.is_file():
            return None
        with reading(path):
            return path.read_bytes()


def without_bytes(value: Any) -> Any:
    """A video value with its bytes left out: they are a member of their own, or stay behind."""
    if isinstance(value, bytes):
        return None
    if isinstance(value, dict) and set(value) == {"path", "bytes"}:
        return {"path": value["path"], "bytes": None}
    return value


def join_tar(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """One shard of the members of several."""
    temporary = TemporaryFile(output)
    temporary.create()
    try:
        with writing(output), tarfile.open(temporary.path, "w", format=tarfile.PAX_FORMAT) as joined:
            for part in parts:
                with tarfile.open(part) as members:
                    for member in members:
                        joined.addfile(member, members.extractfile(member))
                        members.members = []  # type: ignore[attr-defined]  # a list that would grow with the shard
        temporary.commit()
    finally:
        temporary.discard()


def join_shards(parts: Sequence[Path], output: Path, _layout: Layout = DEFAULT_LAYOUT) -> None:
    """A folder with a shard for each part."""
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
    """The same file under another name, or a copy where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def is_shards(folder: Path) -> bool:
    """Whether a folder holds shards and nothing else."""
    return all(path.suffix == ".tar" and path.is_file() for path in folder.iterdir())
