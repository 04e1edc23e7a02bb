"""A data set through the operator on this machine: source, pipe, parts of the output, and a file of failures beside it.

Rows stream: no more of them are in memory than are on their way through the pipe. What is done goes to a journal at
once, so that a run that ends in any way can go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..batches import fields_until
from ..data import SINKS, Source, open_sink, open_source
from ..data.base import by_suffix
from ..data.rows import FieldNames, RowForm, choose_form
from ..errors import DataError, FailedSamplesError, SettingsError, TooManyFailuresError
from ..mapper import VideoCaptioningFromVLMMapper
from ..models.base import captioner_notes
from ..pipe import Results
from ..plan import RowOutcome
from ..record import CaptionRequest, CaptionResult, Sample
from ..stages import Stage, StageTimes
from .failures import FailureLimit, failure_row, failures_path, write_failures
from .identity import RunIdentity, command_of
from .journal import Journal, remove_run, run_folder
from .parts import PART_ROWS, PartedOutput
from .progress import NoProgress, Progress
from .summary import Counts, RunSummary
from .writing import Writer

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


def caption_file(
    operator: VideoCaptioningFromVLMMapper,
    input: str | Path,  # noqa: A002
    output: str | Path,
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
        input: a data file, a folder of Parquet files or of videos, or a video.
        output: a `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file; its folder is made if missing.
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
    input: str | Path,  # noqa: A002
    output: str | Path,
    *,
    progress: Progress | None,
    settings: RunSettings,
) -> RunSummary:
    """Check what can be checked at once, and run; `make_run` is `Run` or a kind of it. The rest is as for
    `caption_file`."""
    output = Path(output)
    by_suffix(SINKS, output, role="output")
    source = open_source(input)
    failures = settings.failures or failures_path(output)
    by_suffix(SINKS, failures, role="file of failures")
    check_output([output, failures], source)
    form = choose_form(islice(source, settings.limit), field_names(operator))
    check_prompt_key(operator, source, limit=settings.limit)
    _check_first_row(output, source, form)
    _check_free(output, overwrite=settings.overwrite)
    with ExitStack() as stack:
        stack.enter_context(relative_to(operator, source.folder))
        journal = stack.enter_context(_journal(output))
        watch = stack.enter_context(progress or NoProgress())
        run = make_run(operator, source, form, journal, watch, output, settings)
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
        output: Path,
        settings: RunSettings,
    ) -> None:
        self.summary = RunSummary(output=output, model=model_name(operator))
        self._operator = operator
        self._source = source
        self._form = form
        self._journal = journal
        self._progress = progress
        self._settings = settings
        self._failures = settings.failures or failures_path(output)
        self._identity = self._current_identity()
        self._waiting: dict[int, Sample] = {}
        self._stopped = False

    def run(self) -> RunSummary:
        """Do what is left to do."""
        self._agree()
        if self._journal.fact("finished") and self.summary.output.exists():
            return self._as_it_was()
        parts = PartedOutput(
            self._journal,
            self.summary.output,
            schema=self._source.schema(),
            new_fields=self._form.new_fields(),
            part_rows=self._settings.part_rows,
        )
        try:
            parts.open()
            self._make_ready()
            self._rows(parts)
            self._end(parts)
        except (Exception, KeyboardInterrupt) as exc:
            parts.close(keep=True)
            with suppress(Exception):
                exc.add_note(self._kept(goes_on=not isinstance(exc, TooManyFailuresError)))
            raise
        return self.summary

    def _current_identity(self) -> RunIdentity:
        return RunIdentity.of(self._operator, self._source, self.summary.output, limit=self._settings.limit)

    def _agree(self) -> None:
        """See that the run is the one that the journal is of, and make the journal ready.

        Raises:
            SettingsError: it is another one.
        """
        kept, settings = self._journal.fact("identity"), self._settings
        differences = self._identity.differences(kept, ignore=settings.changed) if kept is not None else []
        if differences and not settings.update:
            raise SettingsError(_other_run(self.summary.output, differences))
        if differences:
            self._progress.say(f"doing again what this affects: {'; '.join(differences)}")
            self._journal.set_aside()
        if settings.retry is not None:
            count = self._journal.forget_failures(settings.retry or None)
            self._progress.say(f"trying {count:,} failed videos again")
        self._remember()

    def _remember(self) -> None:
        command = command_of(self._operator, self._source, limit=self._settings.limit, failures=self._settings.failures)
        self._journal.keep(identity=self._identity.as_dict(), command=command)

    def _as_it_was(self) -> RunSummary:
        for part in self._journal.parts():
            self.summary.merge(part.counts)
        self.summary.is_old = True
        self.summary.failures_path = self._failures if self.summary.failed_rows else None
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
        before, self._identity = self._identity, self._current_identity()
        kept = self._journal.fact("identity")
        if self._identity == before and kept == before.as_dict():
            return
        differences = self._identity.differences(kept) if self._journal.has_answers else []
        if differences and not self._settings.update:
            raise SettingsError(_other_run(self.summary.output, differences))
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
        self._journal.finish()
        self.summary.too_many_failed = self._settings.max_failures.is_passed(self.summary, at_end=True)

    def _kept(self, *, goes_on: bool) -> str:
        """A sentence that says what is kept of a run that ends early, and perhaps that the same command goes on."""
        if not self._journal.has_answers and not self.summary.rows_in:
            return "no row was done, and nothing is written"
        rows, folder = self.summary.rows_in, self._journal.folder
        way_on = "; the same command goes on from there" if goes_on else ""
        return f"{rows:,} rows are done and kept in {folder}{way_on}"

    def answer(self, request: CaptionRequest) -> CaptionResult | None:
        """What an earlier go of this run has for a request."""
        found = self._journal.result(request.id, self._identity.digest(request))
        self.summary.known_videos += found is not None
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
        for number, row in enumerate(rows, start=first):
            self._waiting[number] = row
            yield self._form.wrap(row)

    def _take(self, outcome: RowOutcome, parts: PartedOutput) -> None:
        row = self._waiting.pop(outcome.row)
        if outcome.failures and not self._operator.skip_op_error:
            raise _stopped_at(outcome)
        made = self._form.unwrap(row, outcome)
        failed = [
            failure_row(row, outcome.row, video_index, failure, self._form) for video_index, failure in outcome.failures
        ]
        parts.write(made, failed, lambda counts: counts.add(outcome, rows_out=len(made)))
        self.summary.add(outcome, rows_out=len(made))
        self._progress.update(self.summary)
        self._check_failures()

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
    with Journal(run_folder(output)) as journal:
        try:
            yield journal
        finally:
            empty = not journal.has_answers and not journal.parts()
            journal.close()
            if empty:
                shutil.rmtree(journal.folder, ignore_errors=True)


def _check_free(output: Path, *, overwrite: bool) -> None:
    """Make way for the output, or see that nothing is in it.

    Raises:
        DataError: something is there that is no run's own.
    """
    if overwrite:
        remove_run(output)
        return
    if output.is_dir():
        raise DataError(f"cannot write {str(output)!r}: it is a folder")
    if output.exists() and not run_folder(output).exists():
        raise DataError(
            f"{str(output)!r} is there already, and no run can go on with it; name another file, or replace it "
            "(--overwrite)"
        )


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


def field_names(operator: VideoCaptioningFromVLMMapper) -> FieldNames:
    """How the operator calls the fields."""
    planner = operator.planner
    return FieldNames(
        text_key=planner.text_key,
        video_key=planner.video_key,
        prompt_key=planner.prompt_key,
        window_keys=planner.window_keys,
        caption_key=planner.caption_key,
        failure_key=planner.failure_key,
        finish_reason_key=planner.finish_reason_key,
        keep_original=planner.keep_original,
        tokens=planner.tokens,
    )


def model_name(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The model that will be loaded; None where the operator was given a living captioner."""
    return operator.spec.model if operator.spec is not None else None


def check_output(outputs: Collection[Path], source: Source) -> None:
    """Stop before an input would be replaced.

    Raises:
        DataError: a file to be written is read.
    """
    targets = {path.resolve(): path for path in outputs if path.exists()}
    for path in source.files() if targets else ():
        if path.resolve() in targets:
            raise DataError(
                f"the output {str(targets[path.resolve()])!r} would replace {str(path)!r}, which is read; name another "
                "file"
            )


def check_prompt_key(operator: VideoCaptioningFromVLMMapper, source: Source, *, limit: int | None = None) -> None:
    """Stop a run whose rows have no field `prompt_key`; rows are read up to the first that has it.

    Raises:
        SettingsError: naming the field and those there are.
    """
    wanted = operator.planner.prompt_key
    if wanted is not None:
        operator.check_fields(source.fields() or fields_until(wanted, islice(source, limit)))


def _check_first_row(output: Path, source: Source, form: RowForm) -> None:
    """Stop early where the output's format cannot hold the values of the rows."""
    sink = open_sink(output, schema=source.schema(), new_fields=form.new_fields())
    for row in islice(source, 1):
        sink.check({**row, **dict.fromkeys(form.new_fields())})


@contextmanager
def relative_to(operator: VideoCaptioningFromVLMMapper, folder: Path) -> Iterator[None]:
    """Let relative video paths be relative to a folder, unless the operator has one of its own."""
    before = operator.video_root
    operator.video_root = before or folder
    try:
        yield
    finally:
        operator.video_root = before


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
