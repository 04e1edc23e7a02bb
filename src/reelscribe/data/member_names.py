"""Names of the members of a tar shard, from the keys and fields of rows: safe to extract on any system, and such that
`webdataset` groups members again as they were written.

What is not safe is percent-encoded, so that `urllib.parse.unquote(name, errors="surrogatepass")` gives a key or a field
back, unless it was too long and was cut. Pure functions; nothing here knows what members hold.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from .folder import DOUBTFUL_SUFFIXES, VIDEO_SUFFIXES

KEY_BYTES, FIELD_BYTES = 190, 54
"""Longest folder, or base of a name, and longest field: with a number and a dot they fit into the 255 bytes that file
systems take."""
PATH_BYTES = 1000
"""Longest key with its folders."""
EMPTY_FIELD = "%empty"
"""Stands for a field without a name."""
RESERVED = ("json", "txt", EMPTY_FIELD)
"""What members that the format itself names are called."""
_VIDEOS = frozenset(VIDEO_SUFFIXES) - DOUBTFUL_SUFFIXES
"""What would be read as the video of the sample."""

# Control characters, line separators and lone surrogates; what Windows has other uses for; and a percent sign that
# would be taken for the start of an escape.
_UNSAFE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\:*?\"<>|]|%(?=[0-9A-Fa-f]{2})"
_KEY = re.compile(
    _UNSAFE
    + r"|(?<![^/])/|/(?![^/])"  # a slash at an end, or next to another: an absolute name, a folder without one
    + r"|\."  # `.`, `..`; the first dot of a base ends the key; and a folder with one could be called like a member
    + r"| (?=/)"  # Windows drops spaces at the end of a name
    + r"|\A_(?=_[^/]*__/)"  # skipped by `webdataset`, as metadata
    + r"|(?<![^/])[cpanl](?=(?:on|rn|ux|ul|om[0-9¹²³]|pt[0-9¹²³]) *(?:[./]|\Z))",  # devices of Windows
    re.IGNORECASE,
)
_FIELD = re.compile(_UNSAFE + r"|/|\A_|[. ]\Z|_(?=_\Z)")
_NOT_PLAIN = re.compile(r"[^a-z0-9]")
_ENDS_INSIDE_ESCAPE = re.compile(r"%[0-9A-Fa-f]?\Z")


def key_name(key: str) -> str:
    """What the members of a sample are called up to their first dot: the key itself where that is safe.

    >>> key_name("clips/a"), key_name("/etc/../a.b")
    ('clips/a', '%2Fetc/%2E%2E/a%2Eb')
    """
    name = "/".join(_cut(part, KEY_BYTES) for part in _KEY.sub(_escape, key).split("/"))
    return name if len(name.encode()) <= PATH_BYTES else _cut(name.replace("/", "%2F"), KEY_BYTES)


def field_names(fields: Iterable[str], *, video: str | None = None) -> dict[str, str]:
    """What the members of the fields of one row are called after that dot: the fields themselves where that is safe,
    and readers that ignore case or forms of Unicode can tell them apart.

    Args:
        fields: those with members, and those that are null: `fields_by_suffix` does not know which is which.
        video: what the member of the video is called.
    """
    names: dict[str, str] = {}
    taken = {video}
    for field in sorted(fields, key=_is_odd):
        name = _field_name(field)
        if folded(name) in taken:
            name = _wholly_escaped(field)
        taken.add(folded(name))
        names[field] = name
    return names


def fields_by_suffix(fields: Iterable[str]) -> dict[str, str]:
    """For each suffix that `webdataset` can give for the members of these fields, the field."""
    found: dict[str, str] = {}
    for field in sorted(fields, key=_is_odd):
        found[_wholly_escaped(field)] = field
        found.setdefault(_field_name(field).lower(), field)
    return found


def unclear_fields(names: Mapping[str, str], nulls: Iterable[str]) -> set[str]:
    """The fields that the suffixes of their members do not tell, where these and the fields that are null may be meant.

    Args:
        names: fields with members, and what these are called.
        nulls: fields that are null.
    """
    unclear = {field for field, name in names.items() if name != field or field != field.lower()}
    meant = fields_by_suffix({*unclear, *nulls})
    return unclear | {field for field in names if meant.get(field, field) != field}


def _is_odd(field: str) -> tuple[bool, str]:
    return _field_name(field) != field.lower(), field


def folded(name: str) -> str:
    """What two names share that are one file on systems that ignore case and forms of Unicode."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _field_name(field: str) -> str:
    low = field.lower()
    if not field or low in RESERVED or f".{low.rpartition('.')[2]}" in _VIDEOS:
        return _wholly_escaped(field)
    return _cut(_FIELD.sub(_escape_low, field), FIELD_BYTES)


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _escape_low(found: re.Match[str]) -> str:
    """The same in small letters: `webdataset` makes all letters of a suffix small."""
    return _escape(found).lower()


def _wholly_escaped(field: str) -> str:
    """A field with its first letter escaped, and all others but small letters and digits: no other has this name."""
    if not field:
        return EMPTY_FIELD
    first = re.sub(r"(?s).", _escape_low, field[:1])
    return _cut(first + _NOT_PLAIN.sub(_escape_low, field[1:]), FIELD_BYTES)


def _cut(name: str, most_bytes: int) -> str:
    """A name that is short enough: the end of one that is not becomes a digest of it."""
    data = name.encode()
    if len(data) <= most_bytes:
        return name
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    head = data[: most_bytes - len(digest) - 1].decode(errors="ignore")
    return f"{_ENDS_INSIDE_ESCAPE.sub('', head)}-{digest}"


class DistinctNames:
    """Numbers for names that were there before, also where only their case or form of Unicode differs.

    It keeps 64 bits of each name: where they agree by chance, a name gets a number that needs none.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._others: set[int] = set()
        self._numbers: dict[int, int] = {}

    def distinct(self, name: str) -> tuple[str, bool]:
        """The name, with a number where one like it was there before; and whether this very name was."""
        mark, exact = _mark(folded(name)), _mark(name)
        if mark not in self._first:
            self._first[mark] = mark if exact == mark else exact
            return name, False
        is_same = exact == self._first[mark] or exact in self._others
        self._others.add(exact)
        return self._numbered(name, mark), is_same

    def _numbered(self, name: str, mark: int) -> str:
        while True:
            self._numbers[mark] = self._numbers.get(mark, 0) + 1
            made = f"{name}-{self._numbers[mark]}"
            if _mark(folded(made)) not in self._first:
                self._first[_mark(folded(made))] = _mark(made)
                return made


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
