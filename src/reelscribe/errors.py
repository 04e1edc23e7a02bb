"""The exceptions that users can see.

ReelscribeError
├── SettingsError      a parameter, a recipe or a combination of settings is not usable
├── DataError          an input cannot be read or an output cannot be written
│   └── JournalBusyError another process writes this output
├── ModelError         a model cannot be loaded, or its set-up is broken
├── MissingExtraError  an optional package is not installed
├── TooManyFailuresError more rows failed than were allowed
└── FailedSamplesError some samples failed and the operator was told not to skip errors

A video that cannot be captioned is not an exception: it is a `types.Failure` on its own row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from .printable import redacted


class ReelscribeError(Exception):
    """Base of every error this package raises on purpose; its text is one clear line for the user."""

    exit_code: ClassVar[int] = 1
    """Exit code of a command that ends with it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))

    def __reduce__(self) -> tuple[Any, ...]:
        # A process pool waits for ever for an error that cannot be rebuilt from its message alone.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[ReelscribeError], args: tuple[Any, ...], state: dict[str, Any]) -> ReelscribeError:
    """An error that came from another process."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SettingsError(ReelscribeError, ValueError):
    """A setting has a value that cannot work; the message names the value, the rule and the remedy."""


class DataError(ReelscribeError):
    """An input cannot be read or an output cannot be written."""


class JournalBusyError(DataError):
    """Another process holds the journal of the run, and so writes its output."""


class ModelError(ReelscribeError):
    """A model cannot be loaded or run at all, for any video."""


class MissingExtraError(ReelscribeError, ImportError):
    """An optional package is missing; the message names the extra that provides it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'reelscribe[{extra}]'")


@contextmanager
def needing(extra: str, *, purpose: str) -> Iterator[None]:
    """A context for importing packages of an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise MissingExtraError((exc.name or extra).partition(".")[0], extra=extra, purpose=purpose) from exc


class FailedSamplesError(ReelscribeError):
    """Samples failed while `skip_op_error=False`; `batch` holds what the operator would have returned."""

    def __init__(self, message: str, *, batch: Any) -> None:
        super().__init__(message)
        self.batch = batch


class TooManyFailuresError(ReelscribeError):
    """A run was stopped because more rows failed than allowed; completed work is kept."""

    exit_code = 4
