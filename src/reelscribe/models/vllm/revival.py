"""An engine that is restarted when it dies, and the requests that were in flight (0015).

Knows no library: an engine is anything that answers requests and raises an exception when it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from ...errors import ModelError
from ...printable import logger
from ...types import CaptionRequest, CaptionResult, Clip, Failure

log = logger(__name__)


WATCH_SECONDS = 1.0
"""Interval of the checks that the engine working on a request is alive."""

T = TypeVar("T")


class EngineDiedError(Exception):
    """The engine is dead and no longer answers."""


async def unless_dead(work: Coroutine[Any, Any, T], is_dead: Callable[[], bool]) -> T:
    """The result of `work`, as long as the engine lives.

    For engines that do not notify all their requests of their death.

    Raises:
        EngineDiedError: the engine is dead and `work` has not finished.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=WATCH_SECONDS)
            if not task.done() and is_dead():
                raise EngineDiedError
    finally:
        task.cancel()
    return task.result()


class Engine(Protocol):
    """Something that answers many requests at once, until it dies."""

    async def answer(self, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        """Answer one request.

        Raises:
            EngineDiedError: the engine died before it answered.
        """

    def close(self) -> None:
        """Stop it, dead or alive."""


class RevivingEngine:
    """An engine and its successors.

    When the engine dies it is restarted, and the requests that were in flight are sent again, each alone: so a video
    that kills the engine twice is identified with certainty, and fails.

    Args:
        start: starts an engine; blocks until it is ready.
        max_deaths_in_a_row: deaths without an answer in between after which the set-up counts as broken.
    """

    def __init__(self, start: Callable[[], Engine], *, max_deaths_in_a_row: int) -> None:
        self._start = start
        self._max_deaths_in_a_row = max_deaths_in_a_row
        self._deaths_in_a_row = 0
        self._engine: Engine | None = start()
        self._broken: ModelError | None = None
        self._closed = False
        self._room = _Room()
        self.deaths = 0
        """Engines that died so far."""

    async def answer(self, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        """Answer one request, across deaths of the engine.

        Raises:
            ModelError: the engine dies repeatedly.
        """
        for room in (self._room.shared, self._room.alone):
            try:
                async with room():
                    return await self._try(request, clip)
            except EngineDiedError:
                continue
        died = Failure(
            "engine_died", "the engine died twice while it worked on this video, the second time on it alone"
        )
        return CaptionResult(request.id, failure=died)

    async def _try(self, request: CaptionRequest, clip: Clip | None) -> CaptionResult:
        engine = self._living()
        try:
            result = await engine.answer(request, clip)
        except EngineDiedError:
            self._bury(engine)
            raise
        self._deaths_in_a_row = 0
        return result

    def _living(self) -> Engine:
        if self._closed:
            raise ModelError("the captioner is closed")
        if self._broken is not None:
            raise self._broken
        if self._engine is None:
            log.warning("the engine died and is restarted; what it was working on is sent again")
            try:
                self._engine = self._start()
            except ModelError as exc:
                self._broken = exc
                raise
        return self._engine

    def _bury(self, engine: Engine) -> None:
        """Count a death once, however many requests report it."""
        if engine is not self._engine:
            return
        self._engine = None
        self.deaths += 1
        self._deaths_in_a_row += 1
        engine.close()
        if self._deaths_in_a_row > self._max_deaths_in_a_row:
            self._broken = ModelError(
                f"the engine died {self._deaths_in_a_row} times without an answer in between; its output above says "
                "why (most often memory: try a smaller max_num_seqs, max_model_len or gpu_memory_utilization)"
            )
            raise self._broken

    async def close(self) -> None:
        """Stop the running engine, if there is one; no other follows it."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class _Room:
    """A lock for many holders at once, or for one exclusively; exclusive requests take precedence."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._together = 0
        self._wanting = 0
        self._taken = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._wanting and not self._taken)
            self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            await self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._wanting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._together and not self._taken)
                self._taken = True
        finally:
            self._wanting -= 1
            if not self._taken:
                await self._tell()
        try:
            yield
        finally:
            self._taken = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
