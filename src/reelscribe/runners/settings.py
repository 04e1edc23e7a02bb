"""From values a user wrote, as options or in a recipe, to an operator; what is wrong with them in one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import SettingsError
from ..mapper import VideoCaptioningFromVLMMapper


def parameter_names() -> list[str]:
    """The operator's parameters that plain values can set, in the order of its signature."""
    names = inspect.signature(VideoCaptioningFromVLMMapper).parameters
    return [name for name in names if name != "captioner"]


def build_operator(parameters: Mapping[str, Any]) -> VideoCaptioningFromVLMMapper:
    """The operator with these parameters.

    Raises:
        SettingsError: an unknown name (close matches are named), or a value that breaks a rule.
    """
    check_names(parameters, [*parameter_names(), "captioner"], what="the operator has no parameter")
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


def one_line(exc: ValidationError) -> str:
    """What pydantic found, as `parameter: rule; got value`.

    >>> one_line(error)
    "caption_num: input should be greater than 0; got 0"
    """
    return " | ".join(
        f"{'.'.join(map(str, error['loc']))}: {_rule(error['msg'])}; got {error['input']!r}" for error in exc.errors()
    )


def _rule(message: str) -> str:
    """Pydantic's sentence in the middle of ours."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
