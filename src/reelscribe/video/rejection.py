"""The exception for a video that gives no clip."""

from __future__ import annotations

from ..printable import printable
from ..types import Failure
from .processes.jobs import Doubt

MESSAGE_CHARS = 280
"""Characters of a message; what is longer is cut."""


class RejectedError(Exception):
    """A video that gives no clip; never leaves the package.

    Args:
        kind: a key of `FAILURE_KINDS`.
        message: one sentence for the user; unprintable characters are escaped.
        doubtful: whether it occurred while decoding, so that another try may succeed.
    """

    def __init__(self, kind: str, message: str, *, doubtful: bool = False) -> None:
        super().__init__(message)
        text = printable(message)
        self.failure = Failure(kind, text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…")
        self.outcome = Doubt(self.failure) if doubtful else self.failure


def reason(exc: BaseException) -> str:
    """An exception's message, in a few words."""
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return " ".join(str(text).split())[:120]
