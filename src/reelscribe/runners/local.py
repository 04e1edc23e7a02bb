"""A data set through the operator on this machine: source, pipe, parts of the output, and a file of failures beside it.

Rows stream: no more of them are in memory than are on their way through the pipe. What is done goes to a journal at
once, so that a run that ends in any way can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..data import SINKS, Source, Target, open_source, passed_over
from ..data.base import MAX_ROW_BYTES, by_suffix
from ..data.rows import RowForm, choose_form
from ..data.temporary import remove_leftovers
from ..errors import DataError, FailedSamplesError, SettingsError, TooManyFailuresError
from ..mapper import VideoCaptioningFromVLMMapper
from ..models.base import captioner_notes
from ..pipe import Results, WeighedRow, weight_of
from ..plan import RowOutcome
from ..record import BadRow, CaptionRequest, CaptionResult, Failure, Sample, belongs_to_row, internal_failure
from ..stages import Stage, StageTimes
from ..stores import AnyPath, StoredPath, located
from .checks import (
    check_first_row,
    check_free,
    check_outputs,
    check_prompt_key,
    check_rows,
    field_names,
    laid_out,
    relative_to,
)
from .destination import check_destination, local_place, upload
from .failures import FailureLimit, failure_row, failures_path, write_failures
from .identity import RunIdentity, command_of
from .journal import Journal, run_folder
from .parts import PART_ROWS, PartedOutput
from .progress import NoProgress, Progress
from .summary import Counts, RunSummary
from .writing import Writer

ERRORS_LOG = "errors.log"
"""In the folder of the run: tracebacks of errors of this package, each with its row."""

__all__ = ["Run", "RunSettings", "RunSummary", "caption_file", "run_file"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run treats its input and output."""

    limit: int | None = None
    """Stop after this many rows."""
    overwrite: bool = False
    """Start afresh, whatever is there."""
    update: bool = False
    """Where settings or the input have changed: do again what that affects, and keep the other captions."""
    retry: Collection[str] | None = None
    """Try failed videos again that failed in these ways (none named: in any way); None: do not."""
    changed: Collection[str] = ()
    """Parameters that may differ from those of the run that is tried again."""
    max_failures: FailureLimit = field(default_factory=FailureLimit)
    """How many rows may fail."""
    failures: Path | None = None
    """The file of failures; None: `<output>.failures.jsonl`."""
    part_rows: int = PART_ROWS
    """Rows of the input in a part of the output."""
    format: str | None = None
    """Name of a format whose output is a folder (`data.BY_NAME`); None: by the suffix of the output."""
    with_videos: bool = False
    """Whether the videos go to the output too, where its format has room for them."""
    max_row_bytes: int = MAX_ROW_BYTES
    """The largest row that is read into memory, in bytes without compression."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_row_bytes, int) or self.max_row_bytes < 1:
            raise SettingsError(f"max_row_bytes must be at least 1 byte; got {self.max_row_bytes!r}")


def caption_file(
    operator: VideoCaptioningFromVLMMapper,
    input: str | AnyPath,  # noqa: A002
    output: str | AnyPath,
    *,
    progress: Progress | None = None,
    settings: RunSettings | None = None,
    **given: Any,
) -> RunSummary:
    """Caption every row of a data set and write the result.

    What can be wrong with the input, the output and the settings is found before the model is loaded. The output, and
    the file of failures if rows failed, get their names when the last row is done. A run that was ended, in whatever
    way, goes on where it was when it is started again with the same settings; the output is then the same as that of
    a run that was not ended. One that is finished already does nothing.

    Args:
        operator: the operator; relative video paths are relative to the input's folder unless it has a `video_root`.
        input: a data file, a folder, a pattern, a video, or the address of one.
        output: a file with a suffix in `data.BY_SUFFIX`, or a folder; the folder above it is made if missing. An
            output at an address is made on this machine (`destination`) and uploaded at the end.
        progress: what is told about each row.
        settings: how input and output are treated.
        given: fields of `RunSettings`, instead of `settings`.

    Raises:
        DataError: the input cannot be read, the output cannot be written or hold the rows, another process writes it,
            or it is there and no run's own.
        SettingsError: the settings do not fit the data, such as a `prompt_key` that no row has, or differ from those
            that the run began with.
        ModelError: the model cannot be loaded or run.
        TooManyFailuresError: more rows failed than may.
        FailedSamplesError: a row failed and the operator's `skip_op_error` is false.
    """
    return run_file(Run, operator, input, output, progress=progress, settings=settings or RunSettings(**given))


def run_file(
    make_run: Callable[..., Run],
    operator: VideoCaptioningFromVLMMapper,
    input: str | AnyPath,  # noqa: A002
    output: str | AnyPath,
    *,
    progress: Progress | None,
    settings: RunSettings,
) -> RunSummary:
    """Check what can be checked at once, and run; `make_run` is `Run` or a kind of it. The rest is as for
    `caption_file`."""
    place = located(output)
    if not isinstance(place, StoredPath):
        return _run_file(make_run, operator, input, place, progress, settings)
    check_destination(place, format=settings.format, overwrite=settings.overwrite)
    local = local_place(place)
    summary = _run_file(make_run, operator, input, local, progress, settings)
    beside = failures_path(local) if settings.failures is None and summary.failures_path is not None else None
    moved = upload(local, place, failures=beside)
    summary.output, summary.failures_path = place, moved or (settings.failures and summary.failures_path)
    return summary


def _run_file(
    make_run: Callable[..., Run],
    operator: VideoCaptioningFromVLMMapper,
    input: str | AnyPath,  # noqa: A002
    output: Path,
    progress: Progress | None,
    settings: RunSettings,
) -> RunSummary:
    target = Target.of(output, format=settings.format, with_videos=settings.with_videos)
    output = target.path
    source = open_source(input, images=operator.limits.allow_images, max_row_bytes=settings.max_row_bytes)
    failures = settings.failures or failures_path(output)
    by_suffix(SINKS, failures, role="file of failures")
    check_outputs(output, failures, source)
    form = choose_form(islice(source, settings.limit), field_names(operator))
    check_prompt_key(operator, source, limit=settings.limit)
    target = laid_out(target, form, operator.video_root or source.folder, operator.limits)
    check_first_row(target, source, form, limit=settings.limit)
    check_rows(target, source, form, limit=settings.limit, overwrite=settings.overwrite)
    check_free(target, overwrite=settings.overwrite)
    with ExitStack() as stack:
        stack.enter_context(relative_to(operator, source.folder))
        journal = stack.enter_context(_journal(output))
        watch = stack.enter_context(progress or NoProgress())
        run = make_run(operator, source, form, journal, watch, target, settings)
        return run.run()


class Run:
    """Rows on their way, and what is done with each outcome."""

    def __init__(
        self,
        operator: VideoCaptioningFromVLMMapper,
        source: Source,
        form: RowForm,
        journal: Journal,
        progress: Progress,
        target: Target,
        settings: RunSettings,
    ) -> None:
        self._target = target
        self.summary = RunSummary(output=target.path, model=model_name(operator), passed_over=dict(passed_over(source)))
        self._operator = operator
        self._source = source
        self._form = form
        self._journal = journal
        self._progress = progress
        self._settings = settings
        self._failures = settings.failures or failures_path(target.path)
        self._identity = RunIdentity.of(operator, source, target, limit=settings.limit)
        self._waiting: dict[int, Sample] = {}

    def run(self) -> RunSummary:
        """Do what is left to do."""
        self._agree()
        if self._journal.fact("finished") and self._target.path.exists():
            return self._as_it_was()
        remove_leftovers(self._target.path, self._failures)
        with self._told():
            self._make_ready()
            parts = self._parts()
            try:
                self._rows(parts)
                self._end(parts)
            finally:
                parts.close(keep=True)
        return self.summary

    def _parts(self) -> PartedOutput:
        return PartedOutput(
            self._journal,
            self._target,
            schema=self._source.schema(),
            new_fields=self._form.new_fields(),
            part_rows=self._settings.part_rows,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let an exception say what is kept, and how to go on."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as exc:
            with suppress(Exception):
                exc.add_note(self._kept(exc))
            raise

    def _agree(self) -> None:
        """See that the run is the one that the journal is of, and make the journal ready.

        Raises:
            SettingsError: it is another one.
        """
        kept, settings = self._journal.identity(), self._settings
        differences = self._identity.differences(kept, ignore=settings.changed) if kept is not None else []
        if differences and not settings.update:
            raise SettingsError(_other_run(self._target.path, differences))
        if differences:
            self._progress.say(f"doing again what this affects: {'; '.join(differences)}")
            self._journal.set_aside(keep=not self._identity.is_stricter(kept))
        self._check_failures_file()
        if settings.retry is not None:
            count = self._journal.forget_failures(settings.retry or None)
            self._progress.say(f"trying {count:,} failed videos again")
        elif not self._operator.skip_op_error:  # it stopped at one, which may have been mended
            self._journal.forget_failures(None)
        self._remember()

    def _check_failures_file(self) -> None:
        """Stop before a file of failures would replace what is not one of this run.

        Raises:
            DataError: it would.
        """
        own = (str(failures_path(self._target.path).absolute()), self._journal.fact("failures"))
        path = self._failures.absolute()
        if path.exists() and str(path) not in own and not self._settings.overwrite:
            raise DataError(
                f"the file of failures {str(path)!r} is there already; name another, or replace it (--overwrite)"
            )
        self._journal.keep(failures=str(path))

    def _remember(self) -> None:
        if self._settings.changed:  # what is tried again otherwise is still the run that it was
            return
        command = command_of(
            self._operator,
            self._source,
            limit=self._settings.limit,
            failures=self._settings.failures,
            format=self._settings.format,
            with_videos=self._settings.with_videos,
            max_row_bytes=self._settings.max_row_bytes,
        )
        self._journal.keep(identity=self._identity.as_dict(), command=command)

    def _as_it_was(self) -> RunSummary:
        for part in self._journal.parts():
            self.summary.merge(part.counts)
        self.summary.is_old = True
        if self.summary.failures and not self._failures.exists():
            write_failures(self._failures, self._journal.failures())
        self.summary.failures_path = self._failures if self.summary.failures else None
        self._point_to_log()
        self.summary.too_many_failed = self._settings.max_failures.is_passed(self.summary, at_end=True)
        return self.summary

    def _make_ready(self) -> None:
        """Load the model now, so that its time is not counted as captioning."""
        began = time.monotonic()
        self._progress.say(f"loading {self.summary.model or 'the model'}")
        self._operator.start()
        self.summary.load_seconds = time.monotonic() - began
        self._check_revision()

    def _check_revision(self) -> None:
        """A model that had to be fetched shows its version only now."""
        kept = self._journal.identity()
        self._identity = self._identity.with_revision(self._operator)
        differences = self._identity.differences(kept, ignore=self._settings.changed)
        if differences and self._journal.has_answers and not self._settings.update:
            raise SettingsError(_other_run(self._target.path, differences))
        if differences and self._settings.update:
            self._journal.set_aside()
        if kept != self._identity.as_dict():
            self._remember()

    def _rows(self, parts: PartedOutput) -> None:
        """Send the rows that are not in finished parts through the pipe."""
        for part in parts.done:
            self.summary.merge(part.counts)
        first = self.summary.known_rows = parts.rows_done
        self.summary.known_videos = self.summary.videos
        if first:
            self._progress.say(f"going on behind {first:,} rows that are done")
        self._progress.start(_total(self._source, self._settings.limit))
        began = time.monotonic()
        writer: Writer[RowOutcome] = Writer(lambda outcome: self._take(outcome, parts))
        rows = islice(self._source, first, self._settings.limit)
        try:
            times = self._stream(self._wrapped(rows, first), writer.put, results=Answers(self), first_row=first)
        finally:
            writer.close()
        writer.finish()
        self.summary.seconds = time.monotonic() - began
        self.summary.stages = times.with_stage(Stage("write", writer.clock.seconds), seconds=self.summary.seconds)
        self.summary.engine = self._notes()

    def _stream(
        self, rows: Iterable[Sample], emit: Callable[[RowOutcome], None], *, results: Results, first_row: int
    ) -> StageTimes:
        """Send rows through the pipe."""
        return self._operator.run_stream(rows, emit, results=results, first_row=first_row)

    def _notes(self) -> list[str]:
        """What the summary says of the model."""
        return captioner_notes(self._operator.captioner)

    def _end(self, parts: PartedOutput) -> None:
        """Bring everything together under its final name."""
        parts.finish()
        if write_failures(self._failures, self._journal.failures()):
            self.summary.failures_path = self._failures
        self._point_to_log()
        self._journal.finish()
        self.summary.too_many_failed = self._settings.max_failures.is_passed(self.summary, at_end=True)

    def _kept(self, exc: BaseException) -> str:
        """A sentence that says what is kept of a run that ends early, and how to go on."""
        if not self._journal.has_answers and not self.summary.rows_in:
            return "no row was done, and nothing is written"
        kept = self._done()
        if isinstance(exc, TooManyFailuresError):
            return kept
        if isinstance(exc, DataError) and self._target.path.suffix == ".parquet":
            lines = run_folder(self._target.path.with_suffix(".jsonl"))
            kept = (
                f"{kept} (if Parquet cannot hold them: rename it to {lines.name}, and give a .jsonl output, --update)"
            )
        without = " without --overwrite" if self._settings.overwrite else ""
        return f"{kept}; the same command{without} goes on from there"

    def _done(self) -> str:
        return f"{self.summary.rows_in:,} rows are done and kept in {self._journal.folder}"

    def answer(self, request: CaptionRequest) -> CaptionResult | None:
        """What an earlier go of this run has for a request."""
        digest = self._identity.digest(request)
        found = self._journal.result(request.id, digest)
        if found is None:
            found = self._journal.earlier_result(request.id, digest)
            if found is None or self._operator.planner.is_worth_another_try(found):
                return None
            self.keep(request, found)
        self.summary.known_videos += 1
        return found

    def keep(self, request: CaptionRequest, result: CaptionResult) -> None:
        """Keep an answer for another go."""
        self._journal.add(request.id, self._identity.digest(request), result, failed=self._failed(result))

    def _failed(self, result: CaptionResult) -> str | None:
        """The kind of failure under which an answer is found when failures are tried again."""
        if result.failure is not None:
            return result.failure.kind
        return "empty_caption" if self._operator.planner.is_worth_another_try(result) else None

    def _wrapped(self, rows: Iterator[Sample], first: int) -> Iterator[Sample]:
        for number, row in enumerate(self._read(rows, first), start=first):
            self._waiting[number] = row
            yield self._wrap(row)

    def _read(self, rows: Iterator[Sample], first: int) -> Iterator[Sample]:
        """The rows; an error that no format knows of says where it was."""
        number = first
        try:
            for row in rows:
                yield row
                number += 1
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            failure = internal_failure(exc)
            self._log_error(number, failure)
            raise DataError(
                f"cannot read row {number} of {str(self._source.path)!r}: {failure.message}; the traceback is in "
                f"{str(self._log_path)!r}"
            ) from exc

    def _wrap(self, row: Sample) -> Sample:
        """A row as the operator takes it; one that it cannot take is its own failure."""
        try:
            sample = self._form.wrap(row)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            sample = BadRow({}, failure=internal_failure(exc))
        if isinstance(sample, BadRow):
            sample.weight = weight_of(row)
        if isinstance(sample, BadRow) or sample is row:
            return sample
        return WeighedRow(sample, row)

    def _take(self, outcome: RowOutcome, parts: PartedOutput) -> None:
        row = self._waiting.pop(outcome.row)
        if outcome.failures and not self._operator.skip_op_error:
            raise _stopped_at(outcome)
        try:
            made, failed = self._made(row, outcome)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            outcome = replace(outcome, captions=[], finish_reasons=[], failures=[(0, internal_failure(exc))])
            made, failed = self._made(BadRow(row, failure=outcome.failures[0][1]), outcome)
        for _, failure in outcome.failures:
            self._log_error(outcome.row, failure)
        parts.write(outcome, made, failed)
        self.summary.add(outcome, rows_out=len(made))
        self._progress.update(self.summary)
        self._check_failures()

    def _made(self, row: Sample, outcome: RowOutcome) -> tuple[list[Sample], list[Sample]]:
        """The rows of the output and of the file of failures for a row."""
        failures = [
            failure_row(row, outcome.row, video_index, failure, self._form) for video_index, failure in outcome.failures
        ]
        return self._form.unwrap(row, outcome), failures

    @property
    def _log_path(self) -> Path:
        return self._journal.folder / ERRORS_LOG

    def _point_to_log(self) -> None:
        """Let the summary name the log that an earlier go has written."""
        if self.summary.failures["internal_error"] and self._log_path.exists():
            self.summary.errors_path = self._log_path

    def _log_error(self, row: int, failure: Failure) -> None:
        """Keep the traceback of an error of this package where it can be sent from."""
        if failure.trace is None:
            return
        self.summary.errors_path = self._log_path
        with suppress(OSError), self._log_path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"row {row}: {failure.message}\n{failure.trace}\n")

    def _check_failures(self) -> None:
        if self._settings.max_failures.is_passed(self.summary):
            raise _too_many(self.summary)


@dataclass(frozen=True, slots=True)
class Answers:
    """The journal of a run, as the pipe sees it."""

    run: Run

    def get(self, request: CaptionRequest) -> CaptionResult | None:
        """See `pipe.Results`."""
        return self.run.answer(request)

    def put(self, request: CaptionRequest, result: CaptionResult) -> None:
        """See `pipe.Results`."""
        self.run.keep(request, result)


@contextmanager
def _journal(output: Path) -> Iterator[Journal]:
    """The journal of the run with this output; nothing of it stays where no row was done."""
    is_new = not run_folder(output).exists()
    with Journal(run_folder(output)) as journal:
        try:
            yield journal
        finally:
            if is_new and not output.exists() and not journal.has_answers and not journal.parts():
                journal.remove()


def _other_run(output: Path, differences: Collection[str]) -> str:
    return (
        f"{str(output)!r} belongs to a run with other settings: {'; '.join(differences)}. Use the earlier settings to "
        "go on, --update to do again only what this affects, or --overwrite to start afresh"
    )


def _too_many(summary: Counts) -> TooManyFailuresError:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.failures.most_common())
    return TooManyFailuresError(
        f"{summary.failed_rows:,} of {summary.rows_in:,} rows failed ({kinds}), more than --max-failures allows; "
        "with a larger limit the run goes on, and `reelscribe retry` tries them again"
    )


def model_name(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The model that will be loaded; None where the operator was given a living captioner."""
    return operator.spec.model if operator.spec is not None else None


def _total(source: Source, limit: int | None) -> int | None:
    count = source.count()
    if limit is None:
        return count
    return limit if count is None else min(limit, count)


def _stopped_at(outcome: RowOutcome) -> FailedSamplesError:
    video_index, failure = outcome.failures[0]
    return FailedSamplesError(
        f"row {outcome.row}, video {video_index}: {failure.kind}: {failure.message}; stopped because skip_op_error is "
        "false",
        batch=[],
    )
