"""Build the operator from user input, options or a recipe; errors are one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import SettingsError
from ..operator import VideoCaptioningFromVLMMapper
from ..settings import one_line, operator_settings

MAX_YAML_CHARACTERS = 2**20
"""Most characters of settings, with aliases expanded."""
MAX_YAML_DEPTH = 100
"""Deepest nesting of lists and mappings in settings."""
_TOO_DEEP = f"is nested more than {MAX_YAML_DEPTH} levels deep"


def build_operator(parameters: Mapping[str, Any]) -> VideoCaptioningFromVLMMapper:
    """The operator with these parameters.

    Raises:
        SettingsError: an unknown name (the message lists close matches), or an invalid value.
    """
    check_names(parameters, operator_settings(), what="the operator has no parameter")
    try:
        return VideoCaptioningFromVLMMapper(**parameters)
    except ValidationError as exc:
        raise SettingsError(one_line(exc)) from exc


def check_names(names: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Reject unknown names.

    Raises:
        SettingsError: `what`, the first unknown name, and close matches or all known names.
    """
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"
            raise SettingsError(f"{what} {name!r}; {hint}")


def read_yaml(text: str) -> Any:
    """Parse YAML written by a user.

    Raises:
        SettingsError: it is not YAML, too large, too deeply nested, or expands itself through aliases.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise SettingsError(f"is too long for settings: more than {MAX_YAML_CHARACTERS:,} characters")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(node)
        return yaml.safe_load(text)
    except (SettingsError, MemoryError):
        raise
    except RecursionError:
        raise SettingsError(_TOO_DEEP) from None
    except Exception as exc:  # values such as a 13th month raise Python's own errors
        raise SettingsError(f"is not YAML: {' '.join(str(exc).split())}") from exc


def _check_size(node: Any) -> None:
    """Reject YAML whose aliases expand to an excessive size."""
    sizes: dict[int, int | None] = {}

    def size(one: Any, depth: int) -> int:
        if depth > MAX_YAML_DEPTH:
            raise SettingsError(_TOO_DEEP)
        if id(one) in sizes:
            known = sizes[id(one)]
            if known is None:
                raise SettingsError("refers to itself through an alias, which is not allowed in settings")
            return known
        sizes[id(one)] = None
        inside: list[Any] = []
        if isinstance(one.value, list):
            for item in one.value:
                inside += item if isinstance(item, tuple) else [item]
        own = 1 + (len(one.value) if isinstance(one.value, str) else 0)
        found = own + sum(size(item, depth + 1) for item in inside)
        if found > MAX_YAML_CHARACTERS:
            raise SettingsError("expands to more than the size limit for settings: its aliases repeat each other")
        sizes[id(one)] = found
        return found

    if node is not None:
        size(node, 0)
