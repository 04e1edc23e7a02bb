"""Progress of a run: a bar on a terminal, periodic lines elsewhere, nothing for Python callers."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from ...printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from .summary import RunSummary

LOG_SECONDS = 10.0
"""Interval between lines."""


class Progress(Protocol):
    """Receives the progress of a run; a context manager that spans the run."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def say(self, message: str) -> None:
        """Report a step outside the rows, such as loading the model."""

    def start(self, total: int | None) -> None:
        """Called before the first row is read, with the number of rows if known."""

    def update(self, so_far: RunSummary) -> None:
        """Called after each row."""


class NoProgress:
    """Reports nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def say(self, message: str) -> None:
        """Nothing."""

    def start(self, total: int | None) -> None:
        """Nothing."""

    def update(self, so_far: RunSummary) -> None:
        """Nothing."""


class LogProgress(NoProgress):
    """At most one line per interval, for log files and pipes.

    Args:
        echo: prints a line.
        interval_seconds: time between two lines.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        echo: Callable[[str], None],
        *,
        interval_seconds: float = LOG_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._echo = echo
        self._interval = interval_seconds
        self._clock = clock
        self._total: int | None = None
        self._began = self._last = clock()

    def say(self, message: str) -> None:
        """Print the message as a line."""
        self._echo(printable(message))

    def start(self, total: int | None) -> None:
        """Start the clock."""
        self._total = total
        self._began = self._last = self._clock()

    def update(self, so_far: RunSummary) -> None:
        """Print a line if it is due."""
        now = self._clock()
        if now - self._last >= self._interval:
            self._last = now
            self._echo(self._line(so_far, now - self._began))

    def _line(self, so_far: RunSummary, seconds: float) -> str:
        rows = f"{so_far.rows_in:,}" if self._total is None else f"{so_far.rows_in:,} of {self._total:,}"
        line = (
            f"{rows} rows, {so_far.videos:,} videos, {so_far.failed_rows:,} failed, {_rate(so_far.new_videos, seconds)}"
        )
        left = _time_left(so_far, self._total, seconds)
        return f"{line}, {left}" if left else line


class BarProgress(NoProgress):
    """A bar on a terminal, with videos done, failed, videos per second and time left."""

    def __init__(self, console: Console) -> None:
        from rich import progress as bars

        self._console = console
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[videos]:,} videos  {task.fields[failed]:,} failed"),
            bars.TextColumn("{task.fields[rate]}  {task.fields[left]}"),
            console=console,
        )
        self._task: Any = None
        self._total: int | None = None
        self._began = 0.0

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print the message above the bar."""
        self._console.print(printable(message), style="dim", markup=False)

    def start(self, total: int | None) -> None:
        """Show the bar."""
        self._total = total
        self._began = time.monotonic()
        self._task = self._bar.add_task("captioning", total=total, videos=0, failed=0, rate="", left="")
        self._bar.start()

    def update(self, so_far: RunSummary) -> None:
        """Move the bar."""
        seconds = time.monotonic() - self._began
        self._bar.update(
            self._task,
            completed=so_far.rows_in,
            videos=so_far.videos,
            failed=so_far.failed_rows,
            rate=_rate(so_far.new_videos, seconds),
            left=_time_left(so_far, self._total, seconds),
        )


def choose_progress(console: Console, echo: Callable[[str], None]) -> Progress:
    """A bar if the console is a terminal, lines otherwise."""
    return BarProgress(console) if console.is_terminal else LogProgress(echo)


def _rate(videos: int, seconds: float) -> str:
    return f"{videos / seconds:.2f} videos/s" if seconds > 0 else "- videos/s"


def _time_left(so_far: RunSummary, total: int | None, seconds: float) -> str:
    """Time left at the average speed so far: rows finish in bursts, one batch at a time, so the latest speed says
    little.

    Rows answered earlier cost next to nothing: they count neither as done nor as left.
    """
    done = so_far.rows_in - so_far.known_rows - so_far.replayed_rows
    if total is None or done <= 0:
        return ""
    left = max(0, total - so_far.rows_in - so_far.answers_left)
    minutes, rest = divmod(round(seconds / done * left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"
