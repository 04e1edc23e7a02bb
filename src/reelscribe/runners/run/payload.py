"""An answer as the text that the journal and the files of a cluster keep: JSON of plain values, and back.

What is read may have been written by anybody: whatever is no answer is a `ValueError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...types import Candidate, CaptionResult, Failure, RequestId, Usage
from .marks import UNKNOWN


def payload_of(result: CaptionResult, mark: Any = UNKNOWN) -> str:
    """A result as JSON in ASCII: lone surrogates are escaped, numbers come back as they were."""
    value: dict[str, Any] = {"u": [result.usage.prompt_tokens, result.usage.completion_tokens]}
    if result.failure is not None:
        failure = result.failure
        value["f"] = [failure.kind, failure.message, failure.attempts, failure.seconds]
    else:
        value["c"] = [_candidate_values(one) for one in result.candidates]
    if mark != UNKNOWN:
        value["m"] = mark
    return json.dumps(value, separators=(",", ":"))


def _candidate_values(one: Candidate) -> list[Any]:
    """A candidate as plain values; its reasoning stands there where it has some."""
    values: list[Any] = [one.text, one.finish_reason, one.tokens, one.mean_logprob]
    return values if one.reasoning is None else [*values, one.reasoning, one.reasoning_tokens]


def mark_of(payload: str | bytes) -> Any:
    """What the video was that this JSON is the answer for, or `UNKNOWN`."""
    value = json_of(payload)
    return value.get("m", UNKNOWN) if isinstance(value, dict) else UNKNOWN


def result_of(id_: RequestId, payload: str | bytes) -> CaptionResult:
    """The result that became this JSON, as the answer to a request.

    Raises:
        ValueError: it is not what `payload_of` writes.
    """
    try:
        value = json.loads(payload)
        failure = Failure(*value["f"]) if "f" in value else None
        candidates = tuple(Candidate(*one) for one in value.get("c", ()))
        result = CaptionResult(id_, candidates, failure=failure, usage=Usage(*value["u"]))
    except (TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ValueError(f"no answer: {exc}") from exc
    if not all(_is_kind(one, kinds) for one, kinds in _kinds(result)):
        raise ValueError("an answer with values of other types")
    return result


def _kinds(result: CaptionResult) -> Iterator[tuple[Any, tuple[type, ...]]]:
    """The values of a result, each with the types it may have."""
    yield result.usage.prompt_tokens, (int,)
    yield result.usage.completion_tokens, (int,)
    for one in result.candidates:
        yield from ((one.text, (str,)), (one.finish_reason, (str,)), (one.tokens, (int,)))
        yield one.mean_logprob, (int, float, type(None))
        yield from ((one.reasoning, (str, type(None))), (one.reasoning_tokens, (int,)))
    if (failure := result.failure) is not None:
        yield from ((failure.message, (str,)), (failure.attempts, (int,)), (failure.seconds, (int, float)))


def _is_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def json_of(text: Any) -> Any:
    """The value of a text of JSON; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
