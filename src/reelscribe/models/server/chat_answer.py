"""Answers of OpenAI-compatible servers as values of known types, whatever shape they come in.

What a caption is made of must fit; what only accompanies it (counts, probabilities, places) counts as not told where it
makes no sense. Nothing here sends anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationError, model_validator

MOST_TOKENS = 1 << 40
"""A count of tokens above this is none."""


class AnswerError(ValueError):
    """What came is no answer of the API; the text says what is wrong with it."""


def _count(value: Any) -> int:
    """A number of tokens or a place, also as a text; 0 where it is neither."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if 0 <= number <= MOST_TOKENS else 0


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text(value: Any) -> str:
    """A text, null, or a list of parts, of which those that are texts are joined."""
    if isinstance(value, list):
        return "".join(_part_text(part) for part in value)
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be a text, null, or a list of parts")
    return value or ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise ValueError("a part must be a text, or an object with one")
    text = part.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError("the text of a part must be a text")
    return text or ""


def _logprobs(value: Any) -> tuple[float, ...]:
    """The log-probability of each token; none where one of them is no finite number."""
    told = value.get("content") if isinstance(value, Mapping) else None
    try:
        found = tuple(float(one["logprob"]) for one in told or ())
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return ()
    return found if all(map(math.isfinite, found)) else ()


def _words(value: Any) -> tuple[str, ...]:
    """The text of each token; none where one of them has none."""
    told = value.get("content") if isinstance(value, Mapping) else None
    try:
        found = tuple(one["token"] for one in told or ())
    except (TypeError, KeyError, IndexError):
        return ()
    return found if all(isinstance(word, str) for word in found) else ()


REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Fields of a message with what the model wrote before its answer."""
REASONING_PARTS = ("thinking", "reasoning")
"""Types of such parts of a content, and what the text is called in them."""


def _reasoning(message: Mapping[str, Any]) -> str:
    """What the model wrote before its answer; empty: that is not told, or not in a form that is known."""
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
    """What the model wrote."""

    content: Annotated[str, BeforeValidator(_text)] = ""
    """The text."""
    refusal: Annotated[str, BeforeValidator(_word)] = ""
    """Why it wrote none, where it says so."""
    reasoning: str = ""
    """What it wrote before the text to find it, where the server keeps that apart."""

    @model_validator(mode="before")
    @classmethod
    def _with_reasoning(cls, value: Any) -> Any:
        return {**value, "reasoning": _reasoning(value)} if isinstance(value, Mapping) else value


class Choice(_Shape):
    """One text."""

    message: Message
    """The text, and what goes with it."""
    index: Annotated[int, BeforeValidator(_count)] = 0
    """Its place among the choices."""
    finish_reason: Annotated[str, BeforeValidator(_word)] = ""
    """Why it ended; empty: that is not told."""
    logprobs: Annotated[tuple[float, ...], BeforeValidator(_logprobs)] = ()
    """Natural-log probability of each token; empty: they are not told."""
    words: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """The text of each of these tokens; empty: it is not told."""

    @model_validator(mode="before")
    @classmethod
    def _with_words(cls, value: Any) -> Any:
        return {**value, "words": value.get("logprobs")} if isinstance(value, Mapping) else value


class AnswerUsage(_Shape):
    """What a request cost; 0 where that is not told."""

    prompt_tokens: Annotated[int, BeforeValidator(_count)] = 0
    """Tokens of the prompt."""
    completion_tokens: Annotated[int, BeforeValidator(_count)] = 0
    """Generated tokens, all choices."""


class ChatAnswer(_Shape):
    """The answer to one request."""

    choices: Annotated[list[Choice], FailFast()]
    """The texts, in the order that the server gives them in."""
    usage: Annotated[AnswerUsage, BeforeValidator(_fields)] = AnswerUsage()
    """What it cost."""

    def first(self, count: int) -> list[Choice]:
        """So many choices, by their places; fewer where fewer came."""
        return sorted(self.choices, key=lambda choice: choice.index)[:count]


class ServedModel(_Shape):
    """A model that a server lists."""

    id: str
    """Its name."""
    root: Annotated[str, BeforeValidator(_word)] = ""
    """What it was loaded from; empty: that is not told."""


Value = TypeVar("Value", bound=_Shape)


def read_json(data: bytes) -> Any:
    """Plain values.

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
    """An answer to a chat request.

    Raises:
        AnswerError: it is none.
    """
    return _read(ChatAnswer, read_json(data))


def read_models(data: bytes) -> list[ServedModel] | None:
    """The models that a server lists; None where it lists none in a form that is known."""
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
