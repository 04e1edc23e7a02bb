"""Requests to an OpenAI-compatible server over HTTP: sent again while that can help, given up when it cannot.

Knows addresses, keys, status codes and waiting; not what the requests say.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..errors import ModelError
from .base import short_message
from .chat_api import error_text

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
BUSY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""The server, or what stands before it, has no room just now; no fault of the request."""
IMPATIENT_TRIES = 3
BROKEN_OFF = frozenset({"abort", "error"})
"""Reasons vLLM gives for the end of a text when it is shut down, or fails, in the midst of it."""
HOPELESS_STATUSES = {
    401: "it wants a key, or another one: name the variable that holds it with api_key_env",
    403: "it does not let this key in",
    404: "it has no such model or address",
}
"""Answers that every request would get."""


class RefusedError(Exception):
    """The server will not answer this request, or cannot; others may fare better."""


class _TroubleError(Exception):
    """A try that failed and may be repeated."""

    def __init__(self, what: str, *, blames: bool, wait_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.blames = blames
        """Whether the request may be the cause."""
        self.wait_seconds = wait_seconds
        """How long the server asks to wait."""


@dataclass
class _Trial:
    """What one request has been through."""

    began: float = field(default_factory=time.monotonic)
    tries: int = 0
    blamed: int = 0


class ChatClient:
    """One server, many requests.

    Args:
        base_url: address that ends before `/chat/completions`.
        key: sent as a bearer token, never written anywhere else.
        max_connections: requests at once.
        timeout_seconds: how long an answer may take.
        max_tries: failed answers after which a request is given up, if the server answers others meanwhile.
        give_up_seconds: how long the server may answer nobody.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None,
        max_connections: int,
        timeout_seconds: float,
        max_tries: int,
        give_up_seconds: float,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = key
        self._max_tries = max_tries
        self._give_up_seconds = give_up_seconds
        self._last_answer = time.monotonic()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(30.0, timeout_seconds), pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        )

    async def models(self) -> list[dict[str, Any]] | None:
        """What the server says it serves; None where it does not say.

        Raises:
            ModelError: it does not answer, or not to this key.
        """
        try:
            answer = await self._http.get(f"{self.base_url}/models")
        except httpx.HTTPError as exc:
            raise ModelError(f"no answer from the server {self.base_url}: {short_message(exc)}") from exc
        if answer.status_code in (401, 403):
            raise ModelError(self._hopeless(answer))
        try:
            found = answer.json().get("data")
        except (ValueError, AttributeError):
            return None
        return found if answer.is_success and isinstance(found, list) else None

    async def ask(self, body: bytes, *, patient: bool = True) -> dict[str, Any]:
        """Send one chat request, as often as it takes.

        Args:
            body: the request.
            patient: whether it is worth to wait for; else three failed tries count as a refusal.

        Raises:
            RefusedError: the server refuses it, or fails on it again and again while it is there for others.
            ModelError: the server answers nobody.
        """
        trial = _Trial()
        while True:
            try:
                answer = await self._try(body)
            except _TroubleError as trouble:
                trial.tries += 1
                trial.blamed += trouble.blames
                if not patient and trial.tries >= IMPATIENT_TRIES:
                    raise RefusedError(str(trouble)) from trouble
                await self._judge(trial, trouble)
                await asyncio.sleep(max(trouble.wait_seconds, _backoff(trial.tries)))
                continue
            self._last_answer = time.monotonic()
            return answer

    async def _try(self, body: bytes) -> dict[str, Any]:
        try:
            answer = await self._http.post(
                f"{self.base_url}/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise _TroubleError(short_message(exc), blames=False) from exc
        except httpx.HTTPError as exc:
            raise _TroubleError(short_message(exc), blames=True) from exc
        if answer.is_success:
            return self._parsed(answer)
        if answer.status_code in HOPELESS_STATUSES:
            raise ModelError(self._hopeless(answer))
        what = f"status {answer.status_code}: {self._told(answer)}"
        if answer.status_code in BUSY_STATUSES or answer.status_code >= 500:
            blames = answer.status_code not in BUSY_STATUSES
            raise _TroubleError(what, blames=blames, wait_seconds=_retry_after(answer))
        self._last_answer = time.monotonic()
        raise RefusedError(what)

    def _parsed(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            parsed = answer.json()
            reasons = {choice.get("finish_reason") for choice in parsed["choices"]}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise RefusedError(f"the answer is not one of the chat API: {self._scrubbed(answer.text[:200])}") from exc
        if reasons & BROKEN_OFF:
            raise _TroubleError(
                f"the server broke the text off ({', '.join(sorted(reasons & BROKEN_OFF))})", blames=True
            )
        return dict(parsed)

    async def _judge(self, trial: _Trial, trouble: _TroubleError) -> None:
        """Give up, or let it be tried again."""
        now = time.monotonic()
        others_fare_better = self._last_answer > trial.began
        blamed = trial.blamed >= self._max_tries and (others_fare_better or await self._is_there())
        if blamed or (others_fare_better and now - trial.began > self._give_up_seconds):
            raise RefusedError(f"given up after {trial.tries} tries; the last: {trouble}")
        if now - max(trial.began, self._last_answer) > self._give_up_seconds:
            raise ModelError(
                f"the server {self.base_url} has answered no request for {self._give_up_seconds:g} seconds; the last "
                f"word: {trouble}"
            )

    async def _is_there(self) -> bool:
        """Whether the server answers anything at all."""
        try:
            return (await self._http.get(f"{self.base_url}/models")).status_code < 500
        except httpx.HTTPError:
            return False

    def _hopeless(self, answer: httpx.Response) -> str:
        advice = HOPELESS_STATUSES[answer.status_code]
        return f"the server {self.base_url} says {answer.status_code}: {self._told(answer)}; {advice}"

    def _told(self, answer: httpx.Response) -> str:
        try:
            return self._scrubbed(error_text(answer.json()))
        except ValueError:
            return self._scrubbed(error_text(answer.text))

    def _scrubbed(self, text: str) -> str:
        """A text of the server without the key, should it repeat it."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def _retry_after(answer: httpx.Response) -> float:
    """Seconds the server asks to wait; 0 where it does not, or asks with a date."""
    try:
        return min(60.0, max(0.0, float(answer.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


def _backoff(tries: int) -> float:
    """Seconds before try `tries` + 1: doubled each time, and drawn, so that requests do not come back as one."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(tries - 1, 10))
