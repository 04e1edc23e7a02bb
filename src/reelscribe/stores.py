"""Files in object stores and on servers, through fsspec: `s3://`, `gs://`, `hf://`, `https://`.

Outages are retried for as long as allowed. Credentials and endpoints come from the user's own fsspec configuration.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .errors import SettingsError
from .printable import names_user, redacted
from .ranges import Ranged

STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
"""Schemes of object stores, and the package that each needs."""
SCHEMES = {**STORES, "https": "aiohttp"}
"""Schemes that a data set can be read from."""
OUTAGE_SECONDS = 240.0
"""How long an outage is retried, unless told otherwise."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 10.0
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, ValueError,
          NotImplementedError, TypeError, ImportError, MemoryError)  # fmt: skip
"""Errors that retrying cannot fix."""
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")

T = TypeVar("T")


def scheme_of(text: str) -> str | None:
    """The scheme of an address, in lower case; None: it is a path, or a `file://` URL."""
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else None
    return None if scheme == "file" else scheme


def is_address(value: object) -> bool:
    """Whether a value is an address that is accessed through fsspec."""
    return isinstance(value, StoredPath) or (isinstance(value, str) and scheme_of(value) in SCHEMES)


def shown(url: str) -> str:
    """An address without possible secrets: a user name, and everything after a question mark."""
    parts = urlsplit(redacted(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class StoredPath(Ranged):
    """A file or a folder at an address, with the `Path` methods that reading needs; picklable."""

    url: str
    """The address."""
    seconds: float = OUTAGE_SECONDS
    """How long an outage is retried."""

    def __str__(self) -> str:
        return shown(self.url)

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(f"{self.url.rstrip('/')}/{name}", self.seconds)

    def with_name(self, name: str) -> StoredPath:
        """Another file in the same folder."""
        return self.parent / name

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return self._path.suffix

    @property
    def parent(self) -> StoredPath:
        """The folder."""
        return StoredPath(self.url.partition("?")[0].rstrip("/").rpartition("/")[0], self.seconds)

    @property
    def parents(self) -> list[StoredPath]:
        """None that matter: an output is not a folder that is read."""
        return []

    def resolve(self) -> StoredPath:
        """The address itself: there are no links."""
        return self

    def exists(self) -> bool:
        """Whether the file or folder exists."""
        return bool(self._patiently(lambda: self._fs.exists(self._key)))

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return bool(self._patiently(lambda: self._fs.isdir(self._key)))

    def stat(self) -> SimpleNamespace:
        """Size, and a value that changes with the content if the store provides one."""
        info = self._info
        change = next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "updated") if info.get(key)), "")
        return SimpleNamespace(st_size=int(info["size"] or 0), st_mtime_ns=str(change))

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        return bytes(self._patiently(lambda: self._fs.cat_file(self._key, start=start, end=end)))

    def files(self) -> list[StoredPath]:
        """All files below it, by address."""
        found = self._patiently(lambda: sorted(self._fs.find(self._key)))
        return [StoredPath(self._fs.unstrip_protocol(one), self.seconds) for one in found]

    def put(self, local: Path) -> None:
        """Upload a file, or all files of a folder; in an object store a file appears when it is complete."""
        if local.is_dir():
            for path in sorted(path for path in local.rglob("*") if path.is_file()):
                (self / path.relative_to(local).as_posix()).put(path)
            return
        self._patiently(lambda: self._fs.put_file(str(local), self._key))

    def remove(self) -> None:
        """Remove the file, if it exists."""
        if self.exists():
            self._patiently(lambda: self._fs.rm_file(self._key))

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(urlsplit(self.url).path)

    @cached_property
    def _info(self) -> dict[str, Any]:
        return dict(self._patiently(lambda: self._fs.info(self._key)))

    @property
    def _fs(self) -> Any:
        return self._place[0]

    @property
    def _key(self) -> str:
        return str(self._place[1])

    @cached_property
    def _place(self) -> tuple[Any, str]:
        import fsspec

        if scheme_of(self.url) in STORES and names_user(self.url):
            raise PermissionError(
                None, f"{self}: a user or key in an address is not used; put it where the store's client finds it"
            )
        try:
            fs, key = fsspec.url_to_fs(self.url)
        except ImportError as exc:
            scheme = scheme_of(self.url) or ""
            raise SettingsError(f"{scheme}:// needs {SCHEMES[scheme]}: pip install 'reelscribe[stores]'") from exc
        return fs, key

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "seconds": self.seconds}

    def _patiently(self, step: Callable[[], T]) -> T:
        """The result of a step, retried while the store fails.

        Raises:
            TimeoutError: it failed for too long.
            OSError: an error that retrying cannot fix.
        """
        end, wait = time.monotonic() + self.seconds, FIRST_WAIT_SECONDS
        while True:
            try:
                return step()
            except (SettingsError, *_FINAL):
                raise
            except Exception as exc:  # each store has its own exceptions
                if type(exc).__name__ in _FINAL_NAMES:
                    raise PermissionError(None, f"{self}: {exc}") from exc
                if time.monotonic() + wait > end:
                    raise TimeoutError(None, f"{self} cannot be reached: {type(exc).__name__}: {exc}") from exc
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)


AnyPath = Path | StoredPath


def can_name_a_file(value: Any) -> bool:
    """Whether a value is a string that the system accepts as a path."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def located(value: str | Path | StoredPath) -> AnyPath:
    """A path, or the stored path at an address.

    Raises:
        SettingsError: it contains a character that no path can contain.
    """
    if isinstance(value, StoredPath):
        return value
    if not can_name_a_file(str(value)):
        raise SettingsError(f"{str(value)!r} contains a character that no path can contain")
    return StoredPath(value.rstrip("/")) if isinstance(value, str) and is_address(value) else Path(value)
