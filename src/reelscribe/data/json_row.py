"""Parse one JSON object to a row; one that Python or other formats cannot hold becomes a `BadRow` with its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..types import BadRow, Failure
from .base import BYTES_PER_VALUE, too_large

MAX_DEPTH = 200
"""Deepest nesting of a row: code that handles rows is recursive."""
COUNTED_BYTES = 2**20
"""In shorter lines values need not be counted."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]', re.DOTALL)


class _RepeatedError(Exception):
    """A duplicate name in an object."""


def check_values(line: bytes, *, limit_bytes: int, where: str) -> None:
    """Refuse a line whose values would take many times its bytes in memory.

    Raises:
        DataError: it has too many.
    """
    if len(line) < COUNTED_BYTES and len(line) < limit_bytes // BYTES_PER_VALUE:
        return
    if sum(line.count(mark) for mark in (b",", b"[", b"{")) > limit_bytes // BYTES_PER_VALUE:
        raise too_large(f"{where} holds more values", limit_bytes=limit_bytes)


def read_row(text: str, *, where: str) -> Any:
    """Parse a line of JSON.

    An object that is nested too deeply, has a duplicate name, or a number with too many digits becomes a `BadRow`.

    Args:
        text: the line.
        where: the position of the line, for the message.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        value = _decode(text)
    except json.JSONDecodeError:
        raise
    except _RepeatedError as exc:
        return _bad_row(text, f"{where} holds the name {exc.args[0]!r} more than once in one object")
    except RecursionError:
        return _bad_row(text, f"{where}: {_too_deep(text)}")
    except ValueError as exc:  # numbers with thousands of digits
        return _bad_row(text, f"{where}: {str(exc).partition(';')[0]}")
    if _may_be_deep(text) and _depth(text) > MAX_DEPTH:
        return _bad_row(text, f"{where}: {_too_deep(text)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        raise _RepeatedError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return made


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode


def _too_deep(text: str) -> str:
    deep = next((name for name, part in _fields(text) if _depth(part) >= MAX_DEPTH), None)
    field = "it" if deep is None else f"field {deep!r}"
    return f"{field} is nested more than {MAX_DEPTH} levels deep"


def _may_be_deep(text: str) -> bool:
    return text.count("[") + text.count("{") > MAX_DEPTH


def _bad_row(text: str, problem: str) -> Any:
    """A row with the values that can be read, and the text of those that cannot."""
    start = text.lstrip()[:1]
    if start != "{":
        raise ValueError(problem)
    fields = {name: _value(part) for name, part in _fields(text)}
    one_line = text.strip().replace("\r", " ").replace("\n", " ")  # inside strings JSON escapes them
    return BadRow(fields, failure=Failure("bad_sample", problem), line=one_line.encode("utf-8", "surrogatepass"))


def _value(part: str) -> Any:
    if _may_be_deep(part) and _depth(part) >= MAX_DEPTH:
        return part
    try:
        return json.loads(part)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        return part


def _depth(text: str) -> int:
    """The deepest nesting of lists and objects."""
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """Name and text of each field of an object.

    Raises:
        ValueError: the brackets or the names are not those of one object.
    """
    open_marks, name, start, key = list[str](), None, 0, ""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "]}" and (not open_marks or open_marks.pop() != {"]": "[", "}": "{"}[mark]):
            raise ValueError(f"unmatched closing bracket at character {token.start()}")
        if len(open_marks) == 1 and open_marks[0] == "{":
            if name is None and mark.startswith('"'):
                key = mark
            elif name is None and mark == ":":
                name, start = json.loads(key), token.end()
            elif name is not None and mark == ",":
                yield name, text[start : token.start()].strip()
                name = None
        if mark in "[{":
            open_marks.append(mark)
        if not open_marks:
            if name is not None:
                yield name, text[start : token.start()].strip()
            if text[token.end() :].strip():
                raise ValueError(f"extra data after the object, at character {token.end()}")
            return
    raise ValueError("its brackets are not closed")
