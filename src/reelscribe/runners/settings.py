"""From values a user wrote, as options or in a recipe, to an operator; what is wrong with them in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import SettingsError
from ..operator import VideoCaptioningFromVLMMapper
from ..settings import one_line, operator_settings

MAX_YAML_CHARACTERS = 2**20
"""Characters of settings, with aliases written out."""
MAX_YAML_DEPTH = 100
"""Lists and mappings inside each other in settings."""
_TOO_DEEP = f"is nested more than {MAX_YAML_DEPTH} levels deep"


def build_operator(parameters: Mapping[str, Any]) -> VideoCaptioningFromVLMMapper:
    """The operator with these parameters.

    Raises:
        SettingsError: an unknown name (close matches are named), or a value that breaks a rule.
    """
    check_names(parameters, operator_settings(), what="the operator has no parameter")
    try:
        return VideoCaptioningFromVLMMapper(**parameters)
    except ValidationError as exc:
        raise SettingsError(one_line(exc)) from exc


def check_names(names: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Stop at the first name that is not known.

    Raises:
        SettingsError: `what`, the name, and the closest known ones or all of them.
    """
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
            raise SettingsError(f"{what} {name!r}; {hint}")


def read_yaml(text: str) -> Any:
    """The value of a YAML text that a user wrote.

    Raises:
        SettingsError: it is not YAML, or too large, too deeply nested, or refers to itself again and again.
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
    except Exception as exc:  # values such as a 13th month raise what Python has for them
        raise SettingsError(f"is not YAML: {' '.join(str(exc).split())}") from exc


def _check_size(node: Any) -> None:
    """Stop where aliases stand for more than anyone writes."""
    sizes: dict[int, int | None] = {}

    def size(one: Any, depth: int) -> int:
        if depth > MAX_YAML_DEPTH:
            raise SettingsError(_TOO_DEEP)
        if id(one) in sizes:
            known = sizes[id(one)]
            if known is None:
                raise SettingsError("refers to itself with an alias, which no setting can")
            return known
        sizes[id(one)] = None
        inside: list[Any] = []
        if isinstance(one.value, list):
            for item in one.value:
                inside += item if isinstance(item, tuple) else [item]
        own = 1 + (len(one.value) if isinstance(one.value, str) else 0)
        found = own + sum(size(item, depth + 1) for item in inside)
        if found > MAX_YAML_CHARACTERS:
            raise SettingsError("stands for more than settings can be: its aliases repeat each other")
        sizes[id(one)] = found
        return found

    if node is not None:
        size(node, 0)
