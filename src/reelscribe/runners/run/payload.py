"""Convert answers to the JSON text stored in the journal and in a cluster's files, and back.

The text may come from an untrusted source: anything that is not an answer is a `ValueError`.
"""

from __future__ import annotations

import json
from typing import Any

from ...types import Candidate, CaptionResult, Failure, RequestId, Usage
from .marks import UNKNOWN

_encode = json.JSONEncoder(separators=(",", ":")).encode


def payload_of(result: CaptionResult, mark: Any = UNKNOWN) -> str:
    """A result as ASCII JSON: lone surrogates are escaped, numbers survive the round trip."""
    value: dict[str, Any] = {"u": [result.usage.prompt_tokens, result.usage.completion_tokens]}
    if result.failure is not None:
        failure = result.failure
        value["f"] = [failure.kind, failure.message, failure.attempts, failure.seconds]
    else:
        value["c"] = [_candidate_values(one) for one in result.candidates]
    if mark != UNKNOWN:
        value["m"] = mark
    return _encode(value)


def _candidate_values(one: Candidate) -> list[Any]:
    """A candidate as plain values, with its reasoning if it has any."""
    values: list[Any] = [one.text, one.finish_reason, one.tokens, one.mean_logprob]
    return values if one.reasoning is None else [*values, one.reasoning, one.reasoning_tokens]


def mark_of(payload: str | bytes) -> Any:
    """The state of the video that this JSON is the answer for, or `UNKNOWN`."""
    value = json_of(payload)
    return value.get("m", UNKNOWN) if isinstance(value, dict) else UNKNOWN


_decode = json.JSONDecoder().decode


def result_of(id_: RequestId, payload: str | bytes) -> CaptionResult:
    """Parse JSON from `payload_of` as the answer to a request.

    Raises:
        ValueError: it was not written by `payload_of`.
    """
    try:
        value = _decode(payload if isinstance(payload, str) else payload.decode())
        usage = Usage(*value["u"])
        failure = Failure(*value["f"]) if "f" in value else None
        candidates = tuple([Candidate(*one) for one in value.get("c", ())])
        result = CaptionResult(id_, candidates, failure=failure, usage=usage)
    except (TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ValueError(f"not an answer: {exc}") from exc
    if not (
        type(usage.prompt_tokens) is type(usage.completion_tokens) is int
        and all(map(_is_candidate, candidates))
        and (failure is None or _is_failure(failure))
    ):
        raise ValueError("an answer with values of the wrong type")
    return result


def _is_candidate(one: Candidate) -> bool:
    """Whether the values have the right types; for values from JSON, `type` is exact."""
    return (
        type(one.text) is type(one.finish_reason) is str
        and type(one.tokens) is type(one.reasoning_tokens) is int
        and type(one.mean_logprob) in _MAYBE_NUMBER
        and type(one.reasoning) in _MAYBE_TEXT
        and not one.marks
    )


def _is_failure(failure: Failure) -> bool:
    return type(failure.message) is str and type(failure.attempts) is int and type(failure.seconds) in _NUMBER


_NUMBER = (int, float)
_MAYBE_NUMBER = (float, int, type(None))
_MAYBE_TEXT = (type(None), str)


def json_of(text: Any) -> Any:
    """Parse JSON; None if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
