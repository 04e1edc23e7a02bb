"""Names of the members of a tar shard, from the keys and fields of rows: safe to extract on any system, and grouped by
`webdataset` as they were written.

Anything unsafe is percent-encoded, so that `urllib.parse.unquote(name, errors="surrogatepass")` gives a key or a field
back, unless it was too long and was cut. Pure functions over names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from .folder import DOUBTFUL_SUFFIXES, VIDEO_SUFFIXES

KEY_BYTES, FIELD_BYTES = 190, 54
"""Longest folder, or base of a name, and longest field: with a number and a dot they fit into the 255 bytes that file
systems allow."""
PATH_BYTES = 1000
"""Longest key with its folders."""
EMPTY_FIELD = "%empty"
"""Stands for a field without a name."""
RESERVED = ("json", "txt", EMPTY_FIELD)
"""Names of members that the format itself defines."""
_VIDEOS = frozenset(VIDEO_SUFFIXES) - DOUBTFUL_SUFFIXES
"""Names that would be read as the sample's video."""

# Control characters, line separators and lone surrogates; characters reserved on Windows; and a percent sign that
# would be taken for the start of an escape.
_UNSAFE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\:*?\"<>|]|%(?=[0-9A-Fa-f]{2})"
_KEY = re.compile(
    _UNSAFE
    + r"|(?<![^/])/|/(?![^/])"  # a slash at an end, or next to another: an absolute name, an unnamed folder
    + r"|\."  # `.`, `..`; the first dot of a base ends the key; and a folder with a dot could be named like a member
    + r"| (?=/)"  # Windows drops spaces at the end of a name
    + r"|\A_(?=_[^/]*__/)"  # skipped by `webdataset`, as metadata
    + r"|(?<![^/])[cpanl](?=(?:on|rn|ux|ul|om[0-9¹²³]|pt[0-9¹²³]) *(?:[./]|\Z))",  # Windows devices
    re.IGNORECASE,
)
_FIELD = re.compile(_UNSAFE + r"|/|\A_|[. ]\Z|_(?=_\Z)")
_NOT_PLAIN = re.compile(r"[^a-z0-9]")
_ENDS_INSIDE_ESCAPE = re.compile(r"%[0-9A-Fa-f]?\Z")


def key_name(key: str) -> str:
    """The name of a sample's members up to their first dot: the key itself if that is safe.

    >>> key_name("clips/a"), key_name("/etc/../a.b")
    ('clips/a', '%2Fetc/%2E%2E/a%2Eb')
    """
    name = "/".join(_cut(part, KEY_BYTES) for part in _KEY.sub(_escape, key).split("/"))
    return name if len(name.encode()) <= PATH_BYTES else _cut(name.replace("/", "%2F"), KEY_BYTES)


def field_names(fields: Iterable[str], *, video: str | None = None) -> dict[str, str]:
    """The names of the members of one row's fields after that dot: the fields themselves if that is safe, and readers
    that ignore case or Unicode forms can distinguish them.

    Args:
        fields: those with members, and those that are null: `fields_by_suffix` does not know which is which.
        video: the name of the video's member.
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
    """The field for each suffix that `webdataset` may return for the members of these fields."""
    found: dict[str, str] = {}
    for field in sorted(fields, key=_is_odd):
        found[_wholly_escaped(field)] = field
        found.setdefault(_field_name(field).lower(), field)
    return found


def unclear_fields(names: Mapping[str, str], nulls: Iterable[str]) -> set[str]:
    """The fields that are not determined by the suffixes of their members, given that null fields are also candidates.

    Args:
        names: fields with members, and the members' names.
        nulls: fields that are null.
    """
    unclear = {field for field, name in names.items() if name != field or field != field.lower()}
    meant = fields_by_suffix({*unclear, *nulls})
    return unclear | {field for field in names if meant.get(field, field) != field}


def _is_odd(field: str) -> tuple[bool, str]:
    return _field_name(field) != field.lower(), field


def folded(name: str) -> str:
    """A key that is equal for names that are one file on systems that ignore case and Unicode forms."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _field_name(field: str) -> str:
    low = field.lower()
    if not field or low in RESERVED or f".{low.rpartition('.')[2]}" in _VIDEOS:
        return _wholly_escaped(field)
    return _cut(_FIELD.sub(_escape_low, field), FIELD_BYTES)


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _escape_low(found: re.Match[str]) -> str:
    """The same in lower case: `webdataset` lower-cases suffixes."""
    return _escape(found).lower()


def _wholly_escaped(field: str) -> str:
    """A field with its first letter and everything but lower-case letters and digits escaped: a unique name."""
    if not field:
        return EMPTY_FIELD
    first = re.sub(r"(?s).", _escape_low, field[:1])
    return _cut(first + _NOT_PLAIN.sub(_escape_low, field[1:]), FIELD_BYTES)


def _cut(name: str, most_bytes: int) -> str:
    """A name that is short enough: the end of a longer one is replaced by its digest."""
    data = name.encode()
    if len(data) <= most_bytes:
        return name
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    head = data[: most_bytes - len(digest) - 1].decode(errors="ignore")
    return f"{_ENDS_INSIDE_ESCAPE.sub('', head)}-{digest}"


class DistinctNames:
    """Numbers for repeated names, including those that differ only in case or Unicode form.

    It keeps 64 bits of each name: on a chance collision a name gets an unnecessary number.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._others: set[int] = set()
        self._numbers: dict[int, int] = {}

    def distinct(self, name: str) -> tuple[str, bool]:
        """The name, with a number if a similar one came before; and whether exactly this name did."""
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
