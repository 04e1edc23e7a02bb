"""Results of a run: plain data while it runs, a table at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data import passed_over_text
from ...errors import TooManyFailuresError
from ...printable import printable
from ...stores import AnyPath
from ...timing import StageTimes
from ...types import FAILURE_KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from ...rows.outcome import RowOutcome

EXIT_DONE = 0
EXIT_SOME_FAILED = 3
DEMONSTRATION_MODELS = ("reelscribe/shapes",)
DEMONSTRATION_NOTE = (
    "{model} is a demonstration model: it knows rendered coloured shapes; its captions of other videos are meaningless."
)


@dataclass
class Counts:
    """Counts over rows; counts of parts add up to the total."""

    rows_in: int = 0
    """Rows read."""
    rows_out: int = 0
    """Rows written."""
    videos: int = 0
    """Videos sent to the model."""
    captions: int = 0
    """Captions kept."""
    cut_captions: int = 0
    """Kept captions that were cut off at the token limit."""
    failed_rows: int = 0
    """Rows with a failure."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failed videos by kind."""
    prompt_tokens: int = 0
    """Tokens of the prompts, vision tokens included."""
    completion_tokens: int = 0
    """Generated tokens, all candidates."""
    kept_edits: int = 0
    """Manually edited captions of an earlier output that were kept."""

    def add(self, outcome: RowOutcome, *, rows_out: int, kept_edits: int = 0) -> None:
        """Count one row."""
        self.kept_edits += kept_edits
        self.rows_in += 1
        self.rows_out += rows_out
        self.videos += outcome.videos
        for kept in outcome.candidates:
            self.captions += len(kept)
            self.cut_captions += sum([one.finish_reason == "length" for one in kept])
        self.failed_rows += bool(outcome.failures)
        for _, failure in outcome.failures:
            self.failures[failure.kind] += 1
        self.prompt_tokens += outcome.usage.prompt_tokens
        self.completion_tokens += outcome.usage.completion_tokens

    def merge(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of other rows, as `as_dict` gives them."""
        for name, value in counts.items():
            if name == "failures":
                self.failures.update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**{one.name: getattr(self, one.name) for one in fields(Counts)}, "failures": dict(self.failures)}


@dataclass
class RunSummary(Counts):
    """Counts and times of one run."""

    output: AnyPath = Path()
    """Path or address of the output."""
    model: str | None = None
    """The model's name, if known."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files in the input folder that are not part of the data set, by suffix."""
    known_rows: int = 0
    """Rows in parts of the output that were finished before the run resumed."""
    known_videos: int = 0
    """Videos answered before the run resumed."""
    replayed_rows: int = 0
    """Rows, besides `known_rows`, whose videos were all answered before the run resumed."""
    answers_left: int = 0
    """Answers from before the run resumed whose rows are not processed yet."""
    remarks: list[str] = field(default_factory=list)
    """Remarks about the input and the output."""
    run_folder: Path | None = None
    """Folder of the run's journal, for `retry` and for resuming."""
    failures_path: AnyPath | None = None
    """The failures file, if there are failures."""
    errors_path: AnyPath | None = None
    """The log with tracebacks of errors in this package, if there were any."""
    is_old: bool = False
    """Whether the run was already finished."""
    too_many_failed: bool = False
    """Whether more rows failed than were allowed."""
    engine: list[str] = field(default_factory=list)
    """The captioner's notes: how it ran the model, in which form it showed the videos."""
    is_served: bool = False
    """Whether a server runs the model."""
    stages: StageTimes | None = None
    """How long each stage was busy."""
    load_seconds: float = 0.0
    """Time to load the model, or to reach its server."""
    seconds: float = 0.0
    """Time from the first row to the last, excluding loading."""

    @property
    def new_videos(self) -> int:
        """Videos sent to the model since the run was started or resumed."""
        return self.videos - self.known_videos

    @property
    def videos_per_second(self) -> float:
        """Videos per second, excluding loading and earlier work."""
        return self.new_videos / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens generated per second, excluding loading; None if answers of an earlier session are included."""
        if not self.seconds or self.known_videos:
            return None
        return self.completion_tokens / self.seconds

    @property
    def exit_code(self) -> int:
        """0: every row got its caption; 3: some failed; 4: more than allowed."""
        if self.too_many_failed:
            return TooManyFailuresError.exit_code
        return EXIT_SOME_FAILED if self.failed_rows else EXIT_DONE

    @property
    def notes(self) -> list[str]:
        """Notes for the reader of the captions."""
        notes = list(self.remarks)
        if self.is_old:
            notes.append("this run was already finished, and nothing was done; --overwrite starts from scratch, "
                         "`reelscribe retry` retries failed rows")  # fmt: skip
        if self.model in DEMONSTRATION_MODELS:
            notes.append(DEMONSTRATION_NOTE.format(model=self.model))
        return notes


def summary_lines(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """The summary as (name, value) pairs."""
    yield "rows in", f"{summary.rows_in:,}"
    if summary.passed_over:
        yield "passed over", passed_over_text(summary.passed_over)
    yield "rows out", f"{summary.rows_out:,}"
    yield "captions", f"{summary.captions:,} for {summary.videos:,} videos"
    if summary.known_videos:
        yield "before", f"{summary.known_videos:,} of these videos were done before"
    if summary.kept_edits:
        what = "caption that was" if summary.kept_edits == 1 else "captions that were"
        yield "edits", f"kept {summary.kept_edits:,} {what} edited by hand (--discard-edits drops them)"
    if summary.cut_captions:
        yield "cut", f"{summary.cut_captions:,} captions were cut at the token limit (--max-tokens)"
    yield "failed", f"{summary.failed_rows:,} rows"
    for kind, count in sorted(summary.failures.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {kind}", f"{count:,}  {FAILURE_KINDS.get(kind, '')}"
    tokens_per_second = summary.tokens_per_second
    speed = "" if tokens_per_second is None else f", {tokens_per_second:,.1f} tokens/s"
    if not summary.is_old:
        yield "speed", f"{summary.videos_per_second:.2f} videos/s{speed}"
    yield "tokens", f"{summary.prompt_tokens:,} prompt, {summary.completion_tokens:,} generated"
    if not summary.is_old:
        what = "reach the server" if summary.is_served else "load the model"
        yield "time", f"{summary.seconds:.1f} s, and {summary.load_seconds:.1f} s to {what}"
    for line in summary.engine:
        yield "engine", line
    yield "output", str(summary.output)
    if summary.failures_path is not None:
        yield "failures", str(summary.failures_path)
    if summary.run_folder is not None:
        yield "journal", f"{summary.run_folder} (`reelscribe runs` lists and removes them)"
    if summary.errors_path is not None:
        yield "errors", str(summary.errors_path)
    if summary.stages is not None:
        yield "bound", summary.stages.line()


def print_summary(summary: RunSummary, console: Console) -> None:
    """Print the summary, one line per name and value; lines are never wrapped, so that paths can be copied."""
    from rich.text import Text

    lines = list(summary_lines(summary))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        console.print(Text.assemble((f"{name:<{width}}  ", "dim"), printable(value)), soft_wrap=True)
    for note in summary.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)


def write_profile(summary: RunSummary, path: Path) -> None:
    """Write the figures of a run as one JSON object: its duration, and each stage's busy time.

    Raises:
        OSError: the file cannot be written.
    """
    stages = summary.stages.as_dict() if summary.stages is not None else {}
    figures = {
        **stages,
        "load_seconds": summary.load_seconds,
        "rows": summary.rows_in,
        "videos": summary.videos,
        "videos_per_second": summary.videos_per_second,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
