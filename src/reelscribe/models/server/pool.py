"""Several servers of one model: which request goes where, what is retried, and when a server is left out.

A single server is a pool of one. Knows nothing about the content of requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ...errors import ModelError
from ...printable import logger
from .chat_answer import ChatAnswer
from .http_client import ChatClient, HopelessError, RefusedError, TroubleError, backoff

FAILURES_IN_A_ROW = 3
"""Failures in a row that may be the requests' fault after which a server is left out."""

Admit = Callable[[ChatClient], Awaitable[None]]
"""Checks that a server may be used; raises if not."""

log = logger(__name__)


@dataclass(eq=False)
class Server:
    """One server, and its record."""

    client: ChatClient
    is_admitted: bool = True
    """Whether it was checked to serve the model and accept the frames; before that it gets no request."""
    held: int = 0
    """Its current requests."""
    sent: int = 0
    answered: int = 0
    failed: int = 0
    """Failed tries."""
    left_out: int = 0
    """How often it was left out."""
    failures_in_a_row: int = 0
    rests_in_a_row: int = 0
    rests_until: float = 0.0
    """When it is retried; 0: it is in use."""
    hopeless: str | None = None
    """Its refusal of all requests."""

    def is_in_use(self, now: float) -> bool:
        """Whether it accepts requests; one that returns gets a single one at first."""
        rested = not self.rests_until or (self.rests_until <= now and not self.held)
        return self.is_admitted and rested

    def fail(self, trouble: TroubleError) -> bool:
        """Count a failed try; returns whether the server is left out from now on."""
        now = time.monotonic()
        self.failed += 1
        self.failures_in_a_row += 1
        is_out = not trouble.blames or self.failures_in_a_row >= FAILURES_IN_A_ROW or bool(self.rests_until)
        if not is_out or now < self.rests_until:  # many requests may report one failure
            return False
        is_new = not self.rests_until
        self.rests_in_a_row += 1
        self.left_out += is_new
        self.rests_until = now + max(trouble.wait_seconds, backoff(self.rests_in_a_row))
        return is_new

    def succeed(self) -> bool:
        """Count an answer; returns whether the server was left out until now."""
        was_out = bool(self.rests_until)
        self.answered += 1
        self.failures_in_a_row = self.rests_in_a_row = 0
        self.rests_until, self.hopeless = 0.0, None
        return was_out


@dataclass
class _Trial:
    """The tries of one request."""

    began: float = field(default_factory=time.monotonic)
    tries: int = 0
    blamed: int = 0
    failed_at: set[Server] = field(default_factory=set)


class ServerPool:
    """Servers that share the requests.

    Args:
        clients: the servers.
        max_held: requests at one server at once.
        max_tries: failed tries after which a request is given up, if others are answered meanwhile.
        give_up_seconds: time without any answer from any server after which the run stops.
    """

    def __init__(self, clients: Sequence[ChatClient], *, max_held: int, max_tries: int, give_up_seconds: float) -> None:
        self.servers = [Server(client) for client in clients]
        self.max_held = max_held
        """Requests at one server at once; may be set between streams."""
        self._waiting: list[asyncio.Future[None]] = []
        self._max_tries = max_tries
        self._give_up_seconds = give_up_seconds
        self._last_answer = time.monotonic()
        self._changed = asyncio.Event()

    def leave_out(self, absent: Sequence[ChatClient], admit: Admit) -> None:
        """Start without some servers, in the loop that runs them; each is used as soon as `admit` passes, and no
        request waits for that."""
        for server in self.servers:
            if server.client in absent:
                server.is_admitted = False
                self._waiting.append(asyncio.ensure_future(self._let_in(server, admit)))

    async def _let_in(self, server: Server, admit: Admit) -> None:
        tries, told = 0, ""
        while not server.is_admitted:
            tries += 1
            await asyncio.sleep(backoff(tries))
            try:
                await admit(server.client)
            except (TroubleError, RefusedError):
                continue
            except ModelError as exc:
                if told != str(exc):
                    log.warning("the server %s stays left out: %s", server.client.base_url, exc)
                told = str(exc)
                continue
            server.is_admitted = True
            log.warning("the server %s is available now", server.client.base_url)
            self._tell()

    async def ask(self, body: bytes) -> ChatAnswer:
        """Send one chat request, as often and to as many servers as needed.

        Raises:
            RefusedError: a server refuses it, or all fail on it repeatedly while they answer others.
            ModelError: no server answers any request.
        """
        trial = _Trial()
        while True:
            try:
                return await self._try(trial, body)
            except TroubleError as trouble:
                trial.tries += 1
                trial.blamed += trouble.blames
                if self._has_another(trial):
                    continue
                await self._judge(trial, trouble)
                await asyncio.sleep(max(trouble.wait_seconds, backoff(trial.tries)))

    async def _try(self, trial: _Trial, body: bytes) -> ChatAnswer:
        server = await self._take(trial)
        try:
            answer = await server.client.ask(body)
        except RefusedError:
            self._count_answer(server)
            raise
        except TroubleError as trouble:
            self._count_failure(server, trouble, trial)
            raise
        except HopelessError as exc:
            server.hopeless = str(exc)
            if all(one.hopeless for one in self.servers if one.is_admitted):
                raise
            for_all = TroubleError(str(exc), blames=False)
            self._count_failure(server, for_all, trial)
            raise for_all from exc
        else:
            self._count_answer(server)
            return answer
        finally:
            server.held -= 1
            self._tell()

    async def _take(self, trial: _Trial) -> Server:
        """A slot at the server with the fewest requests."""
        while (server := self._free(trial)) is None:
            await self._wait()
        server.held += 1
        server.sent += 1
        return server

    def _free(self, trial: _Trial) -> Server | None:
        servers = self._in_use() or [server for server in self.servers if server.is_admitted]
        servers = [server for server in servers if server not in trial.failed_at] or servers
        free = [server for server in servers if server.held < self.max_held]
        return min(free, key=lambda server: (server.held, server.rests_until, server.sent), default=None)

    def _in_use(self) -> list[Server]:
        now = time.monotonic()
        return [server for server in self.servers if server.is_in_use(now)]

    def _has_another(self, trial: _Trial) -> bool:
        """Whether a server in use has not failed on a request yet."""
        return any(server not in trial.failed_at for server in self._in_use())

    async def _wait(self) -> None:
        """Wait until a slot is free, or a server may be retried."""
        now, changed = time.monotonic(), self._changed
        ends = [server.rests_until - now for server in self.servers if server.rests_until > now]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(ends, default=None)):
                await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _count_answer(self, server: Server) -> None:
        self._last_answer = time.monotonic()
        if server.succeed() and len(self.servers) > 1:
            log.warning("the server %s answers again", server.client.base_url)

    def _count_failure(self, server: Server, trouble: TroubleError, trial: _Trial) -> None:
        trial.failed_at.add(server)
        if server.fail(trouble) and len(self.servers) > 1:
            log.warning(
                "the server %s is left out for now, and the others take its share: %s", server.client.base_url, trouble
            )

    async def _judge(self, trial: _Trial, trouble: TroubleError) -> None:
        """Give up, or allow a retry."""
        now = time.monotonic()
        others_fare_better = self._last_answer > trial.began
        blamed = trial.blamed >= self._max_tries and (others_fare_better or await self._is_there())
        if blamed or (others_fare_better and now - trial.began > self._give_up_seconds):
            raise RefusedError(f"given up after {trial.tries} tries; last error: {trouble}")
        if now - max(trial.began, self._last_answer) > self._give_up_seconds:
            raise ModelError(f"{self._none} for {self._give_up_seconds:g} seconds; last error: {trouble}")

    async def _is_there(self) -> bool:
        """Whether a server answers anything at all."""
        return any(await asyncio.gather(*(server.client.is_there() for server in self.servers)))

    @property
    def _none(self) -> str:
        addresses = [server.client.base_url for server in self.servers]
        if len(addresses) == 1:
            return f"the server {addresses[0]} has answered no request"
        return f"none of the servers {', '.join(addresses)} has answered a request"

    def counts(self) -> list[str]:
        """One line per server; none if there is only one."""
        if len(self.servers) == 1:
            return []
        answered = sum(server.answered for server in self.servers)
        return [_counts(server, answered) for server in self.servers]

    async def close(self) -> None:
        """Close all connections."""
        for waiting in self._waiting:
            waiting.cancel()
        for server in self.servers:
            await server.client.close()


def _counts(server: Server, of_all: int) -> str:
    share = f" ({100 * server.answered / of_all:.0f} %)" if of_all else ""
    told = [f"{server.answered:,} requests answered{share}"]
    if server.failed:
        told.append(f"{server.failed:,} tries failed")
    if server.left_out:
        told.append(f"left out {server.left_out:,} times")
    return f"server {server.client.base_url}: {', '.join(told)}"
