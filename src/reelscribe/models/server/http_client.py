"""Requests to one OpenAI-compatible server over HTTP, each sent once.

Knows addresses, keys, status codes, and limits on the time and the size of an answer; not the content of requests, nor
when they are retried.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from dataclasses import dataclass

import httpx

from ...errors import ModelError
from ..captioner import LONGEST_MESSAGE, short_message
from .chat_answer import AnswerError, ChatAnswer, ServedModel, read_answer, read_json, read_models
from .chat_api import error_text

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
BUSY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""The server, or a proxy before it, is overloaded; not the request's fault."""
IMPATIENT_TRIES = 3
BROKEN_OFF = frozenset({"abort", "error"})
"""vLLM's finish reasons when it is shut down, or fails, in the middle of a text."""
HOPELESS_STATUSES = {
    401: "authentication failed: set api_key_env to the variable that holds a valid key",
    403: "access denied for this key",
    404: "no such model or address there",
}
"""Statuses that every request would get."""
MAX_ERROR_BYTES = 1 << 18
"""Most bytes read of an error answer."""
SHOWN_CHARS = 200
"""Characters shown of an invalid answer."""
PACKED = frozenset({"gzip", "x-gzip", "deflate"})
"""Accepted content encodings of answers."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class RefusedError(Exception):
    """The server will not or cannot answer this request; others may succeed."""


class HopelessError(ModelError):
    """The server refuses all requests in the same way."""


class TroubleError(Exception):
    """A failed try that may be repeated."""

    def __init__(self, what: str, *, blames: bool, wait_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.blames = blames
        """Whether the request may be the cause."""
        self.wait_seconds = wait_seconds
        """How long the server asks to wait, in seconds."""


@dataclass(frozen=True, slots=True)
class _Received:
    """A raw answer."""

    status: int
    headers: httpx.Headers
    data: bytes
    """The body, decompressed."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class ChatClient:
    """One server, many requests.

    Args:
        base_url: address that ends before `/chat/completions`.
        key: sent as a bearer token, never written anywhere else.
        timeout_seconds: time limit for an answer, from the connection to its last byte.
        max_answer_bytes: largest answer, decompressed.
    """

    def __init__(self, base_url: str, *, key: str | None, timeout_seconds: float, max_answer_bytes: int) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "gzip", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx.Timeout(timeout_seconds, connect=min(30.0, timeout_seconds), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def models(self, *, seconds: float | None = None) -> list[ServedModel] | None:
        """The models that the server lists; None if it has no list.

        Args:
            seconds: time limit for the answer; None: the usual one.

        Raises:
            TroubleError: it does not answer.
            HopelessError: it rejects the key.
        """
        received = await self._exchange("GET", "/models", seconds=seconds)
        if received.status in (401, 403):
            raise HopelessError(self._hopeless(received))
        return read_models(received.data) if received.is_success else None

    async def is_there(self) -> bool:
        """Whether the server answers anything at all."""
        try:
            return (await self._exchange("GET", "/models")).status < 500
        except TroubleError:
            return False
        except RefusedError:
            return True

    async def ask(self, body: bytes) -> ChatAnswer:
        """Send one chat request.

        Raises:
            TroubleError: another try may succeed.
            RefusedError: the server refuses it, or its answer is invalid.
            HopelessError: the server refuses all requests.
        """
        received = await self._exchange("POST", "/chat/completions", body)
        if received.is_success:
            return self._read(received.data)
        if received.status in HOPELESS_STATUSES:
            raise HopelessError(self._hopeless(received))
        what = f"status {received.status}: {self._told(received)}"
        if received.status in BUSY_STATUSES or received.status >= 500:
            blames = received.status not in BUSY_STATUSES
            raise TroubleError(what, blames=blames, wait_seconds=_retry_after(received.headers))
        raise RefusedError(what)

    async def ask_impatiently(self, body: bytes) -> ChatAnswer:
        """The same, tried a few times.

        Raises:
            TroubleError, RefusedError, HopelessError: as for `ask`.
        """
        for tries in range(1, IMPATIENT_TRIES):
            try:
                return await self.ask(body)
            except TroubleError as trouble:
                await asyncio.sleep(max(trouble.wait_seconds, backoff(tries)))
        return await self.ask(body)

    async def _exchange(
        self, method: str, path: str, body: bytes | None = None, *, seconds: float | None = None
    ) -> _Received:
        limit = min(seconds or self._timeout_seconds, self._timeout_seconds)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(limit),
                self._http.stream(method, f"{self.base_url}{path}", content=body, headers=headers) as answer,
            ):
                return _Received(answer.status_code, answer.headers, await self._body(answer))
        except TimeoutError as exc:
            raise TroubleError(f"no complete answer within {limit:g} seconds (timeout_seconds)", blames=True) from exc
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise TroubleError(short_message(exc), blames=False) from exc
        except httpx.HTTPError as exc:
            raise TroubleError(short_message(exc), blames=True) from exc

    async def _body(self, answer: httpx.Response) -> bytes:
        """The body, decompressed as it arrives, so that a small compressed body cannot exceed the limit.

        Raises:
            RefusedError: it is larger than allowed, or has an encoding that was not requested; of an error, the
                beginning is enough.
        """
        limit = self._max_answer_bytes if answer.is_success else MAX_ERROR_BYTES
        packing = answer.headers.get("content-encoding", "").strip().lower()
        if packing not in ("", "identity", *PACKED):
            raise RefusedError(f"the answer is encoded as {packing[:40]!r}; only gzip was requested")
        unpacker = zlib.decompressobj(_GZIP_OR_ZLIB) if packing in PACKED else None
        data = bytearray()
        async for chunk in answer.aiter_raw():
            try:
                data += unpacker.decompress(chunk, limit + 1 - len(data)) if unpacker else chunk
            except zlib.error as exc:
                raise RefusedError(f"the answer is not encoded as its header says: {exc}") from exc
            if len(data) > limit or (unpacker and unpacker.eof):
                break
        if len(data) > limit and answer.is_success:
            raise RefusedError(f"the answer is larger than {limit} bytes (max_answer_bytes)")
        del data[limit:]
        return bytes(data)

    def _read(self, data: bytes) -> ChatAnswer:
        try:
            answer = read_answer(data)
        except AnswerError as exc:
            shown = self._scrubbed(data[: 4 * LONGEST_MESSAGE].decode("utf-8", "replace"))[:SHOWN_CHARS]
            raise RefusedError(f"the answer does not follow the chat API ({exc}): {shown}") from exc
        if broken := sorted({choice.finish_reason for choice in answer.choices} & BROKEN_OFF):
            raise TroubleError(f"the server cut the text off ({', '.join(broken)})", blames=True)
        return answer

    def _hopeless(self, received: _Received) -> str:
        advice = HOPELESS_STATUSES[received.status]
        return f"the server {self.base_url} answered with status {received.status}: {self._told(received)}; {advice}"

    def _told(self, received: _Received) -> str:
        """The message of an error answer, without the key, should it repeat it."""
        text = self._scrubbed(received.data.decode("utf-8", "replace"))
        try:
            return error_text(read_json(text.encode("utf-8", "replace")))
        except AnswerError:
            return error_text(text)

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds the server asks to wait; 0 if it does not, or gives a date."""
    try:
        return min(60.0, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


def backoff(tries: int) -> float:
    """Seconds before try `tries` + 1: doubled each time, with jitter, so that requests do not return all at once."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(tries - 1, 10))
