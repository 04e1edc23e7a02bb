"""Parse answers of OpenAI-compatible servers into typed values, whatever shape they come in.

The parts of a caption must be valid; accompanying values (counts, probabilities, indices) count as missing if they make
no sense. Nothing here sends anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationError, model_validator

MOST_TOKENS = 1 << 40
"""A token count above this is invalid."""


class AnswerError(ValueError):
    """Not an answer of the API; the message says what is wrong with it."""


def _count(value: Any) -> int:
    """A token count or an index, also as a string; 0 if it is neither."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if 0 <= number <= MOST_TOKENS else 0


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text(value: Any) -> str:
    """A string, null, or a list of parts, of which the texts are joined."""
    if isinstance(value, list):
        return "".join(_part_text(part) for part in value)
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be a string, null, or a list of parts")
    return value or ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise ValueError("a part must be a string, or an object with one")
    text = part.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError("the text of a part must be a string")
    return text or ""


def _logprobs(value: Any) -> tuple[float, ...]:
    """The log-probability of each token; empty if one of them is not a finite number."""
    told = value.get("content") if isinstance(value, Mapping) else None
    try:
        found = tuple(float(one["logprob"]) for one in told or ())
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return ()
    return found if all(map(math.isfinite, found)) else ()


def _words(value: Any) -> tuple[str, ...]:
    """The text of each token; empty if one of them has none."""
    told = value.get("content") if isinstance(value, Mapping) else None
    try:
        found = tuple(one["token"] for one in told or ())
    except (TypeError, KeyError, IndexError):
        return ()
    return found if all(isinstance(word, str) for word in found) else ()


REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Fields of a message with the model's reasoning."""
REASONING_PARTS = ("thinking", "reasoning")
"""Types of reasoning parts in a content, and the name of their text field."""


def _reasoning(message: Mapping[str, Any]) -> str:
    """The model's reasoning; empty: not reported, or not in a known form."""
    content = message.get("content")
    parts = [one for one in content if isinstance(one, Mapping)] if isinstance(content, list) else []
    told = [message.get(name) for name in REASONING_FIELDS]
    told += [one.get(kind, one.get("text")) for one in parts for kind in REASONING_PARTS if one.get("type") == kind]
    for one in told:
        try:
            if text := _text(one):
                return text
        except ValueError:
            continue
    return ""


def _fields(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {}


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(_Shape):
    """The model's message."""

    content: Annotated[str, BeforeValidator(_text)] = ""
    """The text."""
    refusal: Annotated[str, BeforeValidator(_word)] = ""
    """Why it wrote none, if it says so."""
    reasoning: str = ""
    """Its reasoning before the text, if the server separates that."""

    @model_validator(mode="before")
    @classmethod
    def _with_reasoning(cls, value: Any) -> Any:
        return {**value, "reasoning": _reasoning(value)} if isinstance(value, Mapping) else value


class Choice(_Shape):
    """One text."""

    message: Message
    """The message."""
    index: Annotated[int, BeforeValidator(_count)] = 0
    """Its index among the choices."""
    finish_reason: Annotated[str, BeforeValidator(_word)] = ""
    """Finish reason; empty: not reported."""
    logprobs: Annotated[tuple[float, ...], BeforeValidator(_logprobs)] = ()
    """Natural-log probability of each token; empty: not reported."""
    words: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """The text of each of these tokens; empty: not reported."""

    @model_validator(mode="before")
    @classmethod
    def _with_words(cls, value: Any) -> Any:
        return {**value, "words": value.get("logprobs")} if isinstance(value, Mapping) else value


class AnswerUsage(_Shape):
    """Token usage of a request; 0 if not reported."""

    prompt_tokens: Annotated[int, BeforeValidator(_count)] = 0
    """Tokens of the prompt."""
    completion_tokens: Annotated[int, BeforeValidator(_count)] = 0
    """Generated tokens, all choices."""


class ChatAnswer(_Shape):
    """The answer to one request."""

    choices: Annotated[list[Choice], FailFast()]
    """The texts, in the server's order."""
    usage: Annotated[AnswerUsage, BeforeValidator(_fields)] = AnswerUsage()
    """Its token usage."""

    def first(self, count: int) -> list[Choice]:
        """The first choices, by their indices; fewer if fewer came."""
        return sorted(self.choices, key=lambda choice: choice.index)[:count]


class ServedModel(_Shape):
    """A model that a server lists."""

    id: str
    """Its name."""
    root: Annotated[str, BeforeValidator(_word)] = ""
    """What it was loaded from; empty: not reported."""


Value = TypeVar("Value", bound=_Shape)


def read_json(data: bytes) -> Any:
    """Parse JSON into plain values.

    Raises:
        AnswerError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise AnswerError("it is nested too deeply") from None
    except ValueError:
        raise AnswerError("it is not JSON") from None


def read_answer(data: bytes) -> ChatAnswer:
    """Parse an answer to a chat request.

    Raises:
        AnswerError: it is not one.
    """
    return _read(ChatAnswer, read_json(data))


def read_models(data: bytes) -> list[ServedModel] | None:
    """The models that a server lists; None if it has no list in a known form."""
    try:
        found = _fields(read_json(data)).get("data")
    except AnswerError:
        return None
    models = []
    for one in found if isinstance(found, list) else ():
        try:
            models.append(_read(ServedModel, one))
        except AnswerError:
            continue
    return models or None


def _read(kind: type[Value], value: Any) -> Value:
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, error["loc"]))
        what = error["msg"].removeprefix("Value error, ")
        raise AnswerError(f"{where}: {what}" if where else what) from None
    except RecursionError:
        raise AnswerError("it is nested too deeply") from None
