"""A data set through the operator on this machine: source, pipe, sink, and a file of failures beside the output.

Rows stream: no more of them are in memory than are on their way through the pipe. They are written in a thread of
their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from ..batches import fields_until
from ..data import SINKS, Sink, Source, open_sink, open_source
from ..data.base import by_suffix
from ..data.rows import FieldNames, RowForm, choose_form
from ..errors import DataError, FailedSamplesError
from ..mapper import VideoCaptioningFromVLMMapper
from ..models.base import captioner_notes
from ..plan import RowOutcome
from ..record import Sample
from ..stages import Stage
from .failures import FailureLog, failure_row, failures_path
from .progress import NoProgress, Progress
from .summary import RunSummary
from .writing import Writer

__all__ = ["RunSummary", "caption_file", "partial_path"]


def caption_file(
    operator: VideoCaptioningFromVLMMapper,
    input: str | Path,  # noqa: A002
    output: str | Path,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Caption every row of a data set and write the result.

    What can be wrong with the input, the output and the settings is found before the model is loaded. The output, and
    `<output>.failures.jsonl` if rows failed, get their names when the last row is done. What was done when an error or
    Ctrl-C ends the run goes to `partial_path(output)`, a whole file of its format, which a note of the exception names.

    Args:
        operator: the operator; relative video paths are relative to the input's folder unless it has a `video_root`.
        input: a data file, a folder of Parquet files or of videos, or a video.
        output: a `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file; its folder is made if missing.
        limit: stop after this many rows.
        progress: what is told about each row.

    Raises:
        DataError: the input cannot be read, or the output cannot be written or hold the rows.
        SettingsError: the settings do not fit the data, such as a `prompt_key` that no row has.
        ModelError: the model cannot be loaded or run.
        FailedSamplesError: a row failed and the operator's `skip_op_error` is false.
    """
    output = Path(output)
    by_suffix(SINKS, output, role="output")
    source = open_source(input)
    check_output(output, source)
    form = choose_form(islice(source, limit), field_names(operator))
    check_prompt_key(operator, source, limit=limit)
    with ExitStack() as stack:
        sink = stack.enter_context(open_sink(output, schema=source.schema(), new_fields=form.new_fields()))
        failures = stack.enter_context(FailureLog(failures_path(output)))
        _check_first_row(sink, source, form)
        watch = stack.enter_context(progress or NoProgress())
        stack.enter_context(relative_to(operator, source.folder))
        run = _Run(operator, form, sink, failures, watch, RunSummary(output, model=model_name(operator)))
        run.load_model()
        with _kept_if_stopped(run):
            run.rows(source, limit)
            sink.finish()
        failures.commit()
        sink.commit()
    run.summary.failures_path = failures.path if run.summary.failures else None
    return run.summary


class _Run:
    """Rows on their way, and what is done with each outcome."""

    def __init__(
        self,
        operator: VideoCaptioningFromVLMMapper,
        form: RowForm,
        sink: Sink,
        failures: FailureLog,
        progress: Progress,
        summary: RunSummary,
    ) -> None:
        self.summary = summary
        self._operator = operator
        self._form = form
        self._sink = sink
        self._failures = failures
        self._progress = progress
        self._waiting: dict[int, Sample] = {}

    def load_model(self) -> None:
        """Load the model now, so that its time is not counted as captioning."""
        began = time.monotonic()
        self._progress.say(f"loading {self.summary.model or 'the model'}")
        self._operator.start()
        self.summary.load_seconds = time.monotonic() - began

    def rows(self, source: Source, limit: int | None) -> None:
        """Send the rows through the pipe."""
        self._progress.start(_total(source, limit))
        began = time.monotonic()
        writer = Writer(self._take)
        try:
            times = self._operator.run_stream(self._wrapped(islice(source, limit)), writer.put)
        finally:
            writer.close()
        writer.finish()
        self.summary.seconds = time.monotonic() - began
        self.summary.stages = times.with_stage(Stage("write", writer.clock.seconds), seconds=self.summary.seconds)
        self.summary.engine = captioner_notes(self._operator.captioner)

    def keep(self) -> str:
        """Give what is written a name, if anything is; a sentence that says which."""
        rows, path = self.summary.rows_in, partial_path(self.summary.output)
        if not rows:
            return "no row was done, and nothing is written"
        self._sink.commit(path.name)
        self._failures.commit(failures_path(path))
        return f"the {rows:,} rows that were done are in {path}"

    def _wrapped(self, rows: Iterator[Sample]) -> Iterator[Sample]:
        for number, row in enumerate(rows):
            self._waiting[number] = row
            yield self._form.wrap(row)

    def _take(self, outcome: RowOutcome) -> None:
        row = self._waiting.pop(outcome.row)
        for video_index, failure in outcome.failures:
            self._failures.write(failure_row(row, outcome.row, video_index, failure, self._form))
        if outcome.failures and not self._operator.skip_op_error:
            raise _stopped_at(outcome)
        made = self._form.unwrap(row, outcome)
        for sample in made:
            self._sink.write(sample)
        self.summary.add(outcome, rows_out=len(made))
        self._progress.update(self.summary)


@contextmanager
def _kept_if_stopped(run: _Run) -> Iterator[None]:
    """Keep what is done where the run is stopped; a run that must not skip errors leaves nothing."""
    try:
        yield
    except FailedSamplesError:
        raise
    except (Exception, KeyboardInterrupt) as exc:
        with suppress(Exception):  # such as a full disk, of which `exc` tells
            exc.add_note(run.keep())
        raise


def partial_path(output: Path) -> Path:
    """Where the rows of a run that was stopped go.

    >>> partial_path(Path("out.jsonl.gz"))
    PosixPath('out.partial.jsonl.gz')
    """
    stem, dot, suffixes = output.name.partition(".")
    return output.with_name(f"{stem}.partial{dot}{suffixes}")


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
        keep_original=planner.keep_original,
        tokens=planner.tokens,
    )


def model_name(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The model that will be loaded; None where the operator was given a living captioner."""
    return operator.spec.model if operator.spec is not None else None


def check_output(output: Path, source: Source) -> None:
    """Stop before an input would be replaced.

    Raises:
        DataError: the output, what a run that is stopped leaves, or a file of failures beside it, is read.
    """
    names = [output, partial_path(output)]
    targets = {path.resolve() for path in (*names, *map(failures_path, names)) if path.exists()}
    for path in source.files() if targets else ():
        if path.resolve() in targets:
            raise DataError(f"the output {str(output)!r} would replace {str(path)!r}, which is read; name another file")


def check_prompt_key(operator: VideoCaptioningFromVLMMapper, source: Source, *, limit: int | None = None) -> None:
    """Stop a run whose rows have no field `prompt_key`; rows are read up to the first that has it.

    Raises:
        SettingsError: naming the field and those there are.
    """
    wanted = operator.planner.prompt_key
    if wanted is not None:
        operator.check_fields(source.fields() or fields_until(wanted, islice(source, limit)))


def _check_first_row(sink: Sink, source: Source, form: RowForm) -> None:
    """Stop early where the output's format cannot hold the values of the rows."""
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
        f"row {outcome.row}, video {video_index}: {failure.kind}: {failure.message}; stopped without an output because "
        "skip_op_error is false",
        batch=[],
    )
