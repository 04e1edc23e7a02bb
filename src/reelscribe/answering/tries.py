"""Requests on their way to a final result: answers are checked, and the request is retried or given up.

Independent of rows and of where requests come from; callers may be one thread or many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import ModelError
from ..models.captioner import Captioner
from ..types import CaptionRequest, CaptionResult, Clip, Failure, RequestId
from .acceptance import Acceptance


class Clips(Protocol):
    """The stream a captioner pulls from."""

    def __iter__(self) -> Iterator[tuple[CaptionRequest, Clip | None]]:
        """Itself."""

    def __next__(self) -> tuple[CaptionRequest, Clip | None]:
        """The next request and its clip."""

    @property
    def ended(self) -> bool:
        """Whether everything was handed out."""

    def close(self) -> None:
        """Hand out nothing more."""


@dataclass(frozen=True, slots=True)
class Final:
    """A request that is done."""

    request: CaptionRequest
    """The original request: answers are stored under it, whichever try produced them."""
    result: CaptionResult
    """Its final result."""
    lack: Failure | None = None
    """What is still wrong with it, though no try is left; None: nothing."""


@dataclass(slots=True)
class _Open:
    """A request without a final result."""

    request: CaptionRequest
    """The original request."""
    tries: int = 0
    """How often it was handed out."""
    is_out: bool = False
    """Whether an answer is due; an answer at any other time is ignored."""


class Tries:
    """Requests that have no final result yet; may be used from any thread.

    Args:
        acceptance: which answers are usable, and how many tries a video gets.

    >>> tries.hand_out(request)
    >>> tries.accept(result)  # Final(…), the request to hand out next, or None
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._lock = threading.Lock()
        self._open: dict[RequestId, _Open] = {}

    def hand_out(self, request: CaptionRequest) -> CaptionRequest:
        """Record that a request is handed out, for the first time or again, and return it."""
        with self._lock:
            one = self._open.setdefault(request.id, _Open(request))
            one.tries += 1
            one.is_out = True
        return request

    @property
    def awaits(self) -> bool:
        """Whether an answer is due."""
        with self._lock:
            return any(one.is_out for one in self._open.values())

    def accept(self, result: CaptionResult) -> Final | CaptionRequest | None:
        """Process an answer.

        Returns:
            The final result; or the request to hand out next, if the answer is unusable and a try is left; None if no
            answer was due.
        """
        with self._lock:
            one = self._open.get(result.request_id)
            if one is None or not one.is_out:
                return None
            one.is_out = False
        result, lack = self._acceptance.checked(one.request, result)
        if lack is not None and one.tries < self._acceptance.max_tries:
            return self._acceptance.next_try(one.request, tries=one.tries)
        with self._lock:
            del self._open[result.request_id]
        if result.failure is not None and one.tries > 1:
            result = replace(result, failure=replace(result.failure, attempts=one.tries))
        return Final(one.request, result, lack)

    def lost(self) -> list[CaptionResult]:
        """Failures for requests still unanswered after the captioner stopped; to be accepted like other answers."""
        failure = Failure("model_error", "the captioner stopped without answering this video")
        with self._lock:
            return [CaptionResult(id_, failure=failure) for id_, one in self._open.items() if one.is_out]


def caption(captioner: Captioner, clips: Clips, accept: Callable[[CaptionResult], None]) -> None:
    """Send clips through a captioner in one stream.

    Raises:
        ModelError: it stopped early.
    """
    answers = captioner.caption(clips)
    try:
        for result in answers:
            accept(result)
        if not clips.ended:
            raise ModelError("the captioner stopped before consuming every request; this is a bug in the captioner")
    finally:
        clips.close()
        if hasattr(answers, "close"):
            answers.close()
