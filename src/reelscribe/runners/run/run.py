"""Caption a data set with the operator: source, pipe, output in parts, and a failures file next to it.

Rows are streamed: only those in the pipe are in memory. Answers are journalled at once, so that a run can resume
however it ended.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...answering.tries import Final
from ...data import SINKS, Target, by_suffix, open_source, passed_over
from ...data.input import Input
from ...data.pieces import remove_waiting
from ...data.temporary import remove_leftovers
from ...errors import DataError, FailedSamplesError, SettingsError, TooManyFailuresError
from ...operator import VideoCaptioningFromVLMMapper
from ...pipeline import Operator, run_pipe
from ...rows.outcome import RowOutcome
from ...settings import RunSettings
from ...stores import AnyPath, StoredPath, located
from ...timing import Stage
from ...types import BadRow, CaptionRequest, CaptionResult, Failure, RequestId, Sample, belongs_to_row, internal_failure
from ..report.progress import NoProgress, Progress
from ..report.summary import Counts, RunSummary
from .answerer import Answerer, LocalAnswerer, MakeAnswerer, Work, model_name, operator_servers
from .checks import (
    check_copies,
    check_failures_place,
    check_first_row,
    check_free,
    check_outputs,
    check_rows,
    forget_leave,
    laid_out,
    may_replace,
    remember_leave,
)
from .cutter import Cutter
from .edits import Digests, Edits
from .failures import failure_row, failures_path, write_failures
from .identity import CHANGED_FILES, RunIdentity, command_of, input_bytes
from .journal import Journal
from .known_runs import note_run
from .marks import UNKNOWN, video_mark
from .own_files import OwnFiles, is_output
from .parts import PartedOutput
from .run_folder import ERRORS_LOG, PIECES, adopt_earlier_folder, run_folder
from .upload import bring_back, check_destination, local_place, upload
from .writer import Writer


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

    Problems with the input, the output and the settings are found before the model is loaded. The output, and the
    failures file if rows failed, get their names when the last row is done. An interrupted run resumes when it is
    started again with the same settings, and its output is identical to that of an uninterrupted run. A finished run
    does nothing.

    Args:
        operator: the operator; relative video paths are relative to the input's folder unless it has a `video_root`.
        input: a data file, a folder, a pattern, a video, or the address of one.
        output: a file with a suffix in `data.BY_SUFFIX`, or a folder; its parent folder is created if missing. An
            output at an address is built on this machine (`destination`) and uploaded at the end.
        progress: receives the progress of the run.
        settings: settings of the run.
        given: fields of `RunSettings`, instead of `settings`.

    Raises:
        DataError: the input cannot be read, the output cannot be written or hold the rows, another process is writing
            it, or it exists and belongs to no run.
        SettingsError: the settings do not fit the data, such as a `prompt_key` that no row has, or differ from those
            the run started with.
        ModelError: the model cannot be loaded or run.
        TooManyFailuresError: more rows failed than allowed.
        FailedSamplesError: a row failed and the operator's `skip_op_error` is false.
    """
    return run_file(
        LocalAnswerer, operator, input, output, progress=progress, settings=settings or RunSettings(**given)
    )


def run_file(
    make_answerer: MakeAnswerer,
    operator: VideoCaptioningFromVLMMapper,
    input: str | AnyPath,  # noqa: A002
    output: str | AnyPath,
    *,
    progress: Progress | None,
    settings: RunSettings,
) -> RunSummary:
    """Check everything that can be checked first, and run with the answerer from `make_answerer`; otherwise like
    `caption_file`."""
    place = located(output)
    if not isinstance(place, StoredPath):
        return _run_file(make_answerer, operator, input, place, progress, settings)
    check_destination(place, format=settings.format, overwrite=settings.overwrite)
    local = local_place(place)
    if not (settings.overwrite or settings.discard_edits):
        bring_back(local, place)
    try:
        summary = _run_file(make_answerer, operator, input, local, progress, settings, address=place)
    finally:
        if run_folder(local).exists():
            note_run(run_folder(local), place)
    beside = failures_path(local) if settings.failures is None and summary.failures_path is not None else None
    moved = upload(local, place, failures=beside)
    summary.output, summary.failures_path = place, moved or (settings.failures and summary.failures_path)
    return summary


def _run_file(
    make_answerer: MakeAnswerer,
    operator: VideoCaptioningFromVLMMapper,
    input: str | AnyPath,  # noqa: A002
    output: Path,
    progress: Progress | None,
    settings: RunSettings,
    *,
    address: StoredPath | None = None,
) -> RunSummary:
    target = Target.of(output, format=settings.format, with_videos=settings.with_videos, cut=settings.cut)
    output = target.path
    adopt_earlier_folder(output)
    failures = settings.failures or failures_path(output)
    own = OwnFiles.of([output, failures, *([address] if address else [])]) if run_folder(output).exists() else None
    source = open_source(
        input,
        images=operator.limits.allow_images,
        leave_out=own,
        is_output=is_output,
        max_row_bytes=settings.max_row_bytes,
    )
    by_suffix(SINKS, failures, role="failures file")
    check_outputs(output, failures, source)
    check_failures_place(failures, is_named=settings.failures is not None)
    with ExitStack() as stack:
        opened = stack.enter_context(closing(Input.open(source, operator.planner.names, limit=settings.limit)))
        operator.check_fields(opened.fields)
        target = may_replace(laid_out(target, opened, operator), overwrite=settings.overwrite)
        check_first_row(target, opened)
        check_copies(target, opened)
        check_rows(target, opened, overwrite=settings.overwrite)
        check_free(target, overwrite=settings.overwrite)
        journal = stack.enter_context(_journal(output))
        remember_leave(journal, target)
        watch = stack.enter_context(progress or NoProgress())
        work = Work(
            operator=operator,
            planner=replace(operator.planner, form=opened.form),
            root=operator.video_root or source.folder,
            input=opened,
            journal=journal,
            settings=settings,
            progress=watch,
            summary=RunSummary(
                output=target.path,
                run_folder=journal.folder,
                model=model_name(operator),
                is_served=bool(operator_servers(operator)),
                passed_over=dict(passed_over(source)),
            ),
            leave_out=own,
        )
        return Run(work, target, make_answerer(work)).run()


class Run:
    """A run: sends rows through the pipe and handles each outcome."""

    def __init__(self, work: Work, target: Target, answerer: Answerer) -> None:
        self._target = target
        self._answerer = answerer
        self._operator = operator = work.operator
        self._planner = work.planner
        self._root = work.root
        self._input = work.input
        self._source = source = work.input.source
        self._form = form = work.planner.form
        self._journal = journal = work.journal
        self._progress = work.progress
        self._settings = settings = work.settings
        self.summary = work.summary
        self._failures = settings.failures or failures_path(target.path)
        self._identity = RunIdentity.at_one_time(operator, source, target, limit=settings.limit)
        self._input_bytes = input_bytes(source)
        self._answered: dict[int, int] = {}
        self._replayed: dict[int, int] = {}
        self._asked: dict[RequestId, tuple[bytes, Any]] = {}
        self._digests = Digests(target, form)
        discard = settings.discard_edits or settings.overwrite or bool(journal.fact("discard_edits"))
        self._edits = Edits(journal, self._digests, discard=discard)
        self._discard = discard
        self._cutter = Cutter(target, operator.limits) if target.layout.cut is not None else None

    def run(self) -> RunSummary:
        """Do the remaining work."""
        self._agree()
        note_run(self._journal.folder, self._target.path)  # from now on its settings are this user's
        if self._journal.fact("finished") and not self._has_to_make():
            return self._as_it_was()
        if not self._journal.fact("finished"):
            self._look()
        self._journal.keep(discard_edits=self._discard)
        if self._discard:
            self._journal.written.drop_edits()
        remove_leftovers(self._target.path, self._failures)
        with self._told():
            asked = self._answerer.make_ready(self._identity, self.answer)
            if self._answerer.loads_model:
                self._check_revision()
            parts = self._parts()
            try:
                self._rows(parts, asked)
                self._end(parts)
            finally:
                parts.close(keep=True)
                if self._cutter is not None:
                    self._cutter.close()
        return self.summary

    def _has_to_make(self) -> bool:
        """Whether the output of a finished run must be rebuilt from its answers."""
        path = self._target.path
        if not path.exists():
            self._progress.say(f"{str(path)!r} no longer exists; rebuilding it from the journal")
            return True
        if self._settings.discard_edits:
            self._journal.make_again()
            return True
        found = self._edits.look()
        if found is None:
            return False
        if self._settings.update:
            self._say_changed("rewriting it with the edited captions")
            self._journal.make_again()
            return True
        self.summary.remarks.append(
            f"{str(path)!r} has changed since the run finished ({found.text()}); it was left as it is. To rewrite it "
            "from the journal, run the `reelscribe caption` command with --update (edited captions are kept) or "
            "--discard-edits"
        )
        return False

    def _look(self) -> None:
        """Find manual edits in an output that will be replaced."""
        found = self._edits.look()
        if found is None:
            return
        self._say_changed("captions edited by hand are kept")
        if found.edited and self._journal.parts.finished():  # which were made without the edits
            self._journal.make_again()

    def _say_changed(self, what: str) -> None:
        assert self._edits.found is not None
        self._progress.say(f"{str(self._target.path)!r} has changed ({self._edits.found.text()}); {what}")

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
        """Add a note to an exception: what is kept, and how to resume."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as exc:
            with suppress(Exception):
                self._journal.check_there()
            with suppress(Exception):
                exc.add_note(self._kept(exc))
            raise

    def _agree(self) -> None:
        """Check that the journal belongs to this run, and prepare the journal.

        Raises:
            SettingsError: it belongs to another run.
        """
        self._answerer.recover()
        written = self._journal.identity()
        kept, settings = self._kept_identity(), self._settings
        differences = self._identity.differences(kept, ignore=settings.changed) if kept is not None else []
        if differences and not settings.update:
            raise SettingsError(_other_run(self._target.path, self._explained(differences), settings))
        if settings.recheck and self._journal.answers.has_any:
            self._recheck()
        if differences:
            self._progress.say(f"redoing what this affects: {'; '.join(differences)}")
            self._journal.set_aside(keep=not self._identity.is_stricter(kept))
        elif kept is not None:
            self._identity = self._identity.with_known_revision(kept)
        self._check_failures_file()
        if settings.retry is not None:
            count = self._journal.forget_failures(settings.retry or None)
            self._progress.say(f"retrying {count:,} failed videos")
        elif not self._operator.skip_op_error:  # it stopped at a failure, which may have been fixed
            self._journal.forget_failures(None)
        self._remember()
        if written is not None and not settings.update and not self._answerer.loads_model:
            # a version unknown then may be known now: answers are matched by what was recorded
            self._identity = RunIdentity(**written)
            self._remember()
        self._answerer.settle()

    def _kept_identity(self) -> Any:
        """The run's identity in the journal, in this version's form."""
        kept = self._journal.identity()
        return kept if kept is None else self._identity.brought_up(kept, self._source)

    def _explained(self, differences: list[str]) -> list[str]:
        """The differences, with the growth of an input that has grown."""
        before = self._journal.fact("input_bytes")
        more = self._input_bytes - before if before is not None else 0
        grown = f" (by {more:,} bytes: rows were added)" if more > 0 and self._input.count is not None else ""
        return [f"{one}{grown}" if one == CHANGED_FILES else one for one in differences]

    def _recheck(self) -> None:
        """Drop the answers about videos that changed since they were captioned."""
        counts = dict.fromkeys(("replaced", "unknown", "missing"), 0)
        self._progress.say("looking for videos that were replaced since they were captioned")
        dropped = self._journal.forget(list(self._replaced(counts)))
        self._progress.say(f"{dropped:,} videos were replaced and are captioned again")
        if counts["missing"]:
            self._progress.say(f"{counts['missing']:,} videos no longer exist and keep their captions")
        if counts["unknown"]:
            self._progress.say(
                f"{counts['unknown']:,} videos cannot be compared: they are bytes or at addresses, or an earlier "
                "version captioned them"
            )

    def _replaced(self, counts: dict[str, int]) -> Iterator[RequestId]:
        """Requests whose video has changed."""
        for number, row in enumerate(islice(self._source, self._settings.limit)):
            for request in self._planner.plan(row, number).requests:
                mark = self._journal.answers.mark_at(request.id)
                now = UNKNOWN if mark == UNKNOWN else video_mark(request.video, self._root)
                if UNKNOWN in (mark, now):
                    counts["unknown"] += self._journal.answers.has(request.id)
                elif now is None and mark is not None:
                    counts["missing"] += 1
                elif mark != now:
                    yield request.id

    def _check_failures_file(self) -> None:
        """Refuse to overwrite a failures file that does not belong to this run.

        Raises:
            DataError: it would be overwritten.
        """
        own = (str(failures_path(self._target.path).absolute()), self._journal.fact("failures"))
        path = self._failures.absolute()
        if path.exists() and str(path) not in own and not self._settings.overwrite:
            raise DataError(
                f"the failures file {str(path)!r} already exists; choose another name, or replace it (--overwrite)"
            )
        self._journal.keep(failures=str(path))

    def _remember(self) -> None:
        if self._settings.changed:  # a retry with other settings is still the same run
            return
        command = command_of(
            self._operator,
            self._source,
            limit=self._settings.limit,
            failures=self._settings.failures,
            format=self._settings.format,
            with_videos=self._settings.with_videos,
            cut=self._settings.cut,
            max_row_bytes=self._settings.max_row_bytes,
        )
        self._journal.keep(identity=self._identity.as_dict(), command=command, input_bytes=self._input_bytes)

    def _as_it_was(self) -> RunSummary:
        for part in self._journal.parts.finished():
            self.summary.merge(part.counts)
        self.summary.kept_edits += self._journal.fact("texts_kept") or 0
        self.summary.is_old = True
        if self.summary.failures and not self._failures.exists():
            write_failures(self._failures, self._journal.parts.failures())
        self.summary.failures_path = self._failures if self.summary.failures else None
        self._point_to_log()
        self.summary.too_many_failed = self._settings.max_failures.is_passed(self.summary, at_end=True)
        return self.summary

    def _check_revision(self) -> None:
        """Compare the model's revision, which is only known after a download."""
        kept = self._kept_identity()
        self._identity = self._identity.with_revision(self._operator)
        differences = self._identity.differences(kept, ignore=self._settings.changed)
        if differences and self._journal.answers.has_any and not self._settings.update:
            raise SettingsError(_other_run(self._target.path, differences, self._settings))
        if differences and self._settings.update:
            self._journal.set_aside()
        if kept != self._identity.as_dict():
            self._remember()

    def _rows(self, parts: PartedOutput, asked: Operator) -> None:
        """Send the rows that are not in finished parts through the pipe."""
        for part in parts.done:
            self.summary.merge(part.counts)
        first = self.summary.known_rows = parts.rows_done
        self.summary.known_videos = self.summary.videos
        self.summary.answers_left = self._journal.answers.count(first)
        self._answered.clear()
        self._replayed.clear()
        self._edits.begin(first)
        if first:
            self._progress.say(f"resuming after {first:,} finished rows")
        self._progress.start(self._input.total)
        began = time.monotonic()
        writer: Writer[RowOutcome] = Writer(lambda outcome: self._take(outcome, parts))
        try:
            times = run_pipe(
                asked,
                self._read(first),
                writer.put,
                planner=self._planner,
                root=self._root,
                results=Answers(self),
                first_row=first,
            )
        except BaseException:
            if self._cutter is not None:  # queued cuts must not delay the end
                self._cutter.close()
            raise
        finally:
            writer.close()
        writer.finish()
        self.summary.seconds = time.monotonic() - began
        self.summary.stages = times.with_stage(Stage("write", writer.clock.seconds), seconds=self.summary.seconds)
        self._answerer.report()

    def _end(self, parts: PartedOutput) -> None:
        """Join the parts under the final name."""
        parts.end()
        self._edits.make_way()
        self._journal.keep(joining=self._digests.captions_field or True)
        parts.join(None if self._discard else self._edits.keep)
        self.summary.kept_edits += self._edits.texts_kept
        if write_failures(self._failures, self._journal.parts.failures()):
            self.summary.failures_path = self._failures
        self._point_to_log()
        made = self._edits.made(self.summary.rows_out)
        self._journal.finish(made=made, joining=False, discard_edits=False, texts_kept=self._edits.texts_kept)
        forget_leave(self._journal)
        remove_waiting(self._journal.folder / PIECES)
        self._say_what_was_kept()
        self._say_growth()
        self.summary.too_many_failed = self._settings.max_failures.is_passed(self.summary, at_end=True)
        self._answerer.end()

    def _say_what_was_kept(self) -> None:
        kept, found = self._edits.kept_name, self._edits.found
        if kept is None:
            return
        why = f" ({found.text()})" if found is not None else ""
        if self._edits.is_unknown_before:
            why = " (it is unknown what was written by the run and what by hand)"
        self.summary.remarks.append(f"the previous output had changed{why}; it is kept as {str(kept)!r}")

    def _say_growth(self) -> None:
        """Add a remark if the input has changed since the run started."""
        if isinstance(self._source.path, StoredPath) or not self._identity.has_changed(self._source):
            return
        grown = input_bytes(self._source) - self._input_bytes
        what = f"has grown by {grown:,} bytes" if grown > 0 else "has changed"
        self.summary.remarks.append(
            f"the input {str(self._source.path)!r} {what} since the run started; the output covers what it was then, "
            "and the same command with --update adds what is new"
        )

    def _kept(self, exc: BaseException) -> str:
        """A sentence on what is kept of a run that ends early, and how to resume it."""
        if not self._journal.answers.has_any and not self.summary.rows_in:
            return "no row was finished, and nothing was written"
        kept = f"{self.summary.rows_in:,} rows are finished and kept in {self._journal.folder}"
        if not self.summary.rows_in:
            kept = self._answerer.progress_made() or kept
        if isinstance(exc, TooManyFailuresError):
            return kept
        if isinstance(exc, DataError) and self._target.format.has_types and not self._target.is_folder:
            lines = run_folder(self._target.path.with_suffix(".jsonl")).name
            name = self._target.format.name.capitalize()
            kept = f"{kept} (if {name} cannot hold them: rename it to {lines}, and use a .jsonl output with --update)"
        without = " without --overwrite" if self._settings.overwrite else ""
        return f"{kept}; rerun the same command{without} to resume"

    def answer(self, request: CaptionRequest, row: Sample, *, will_ask: bool = False) -> CaptionResult | None:
        """The answer to a request about a row from an earlier session of this run, if any.

        Args:
            request: the request.
            row: the row it is about.
            will_ask: whether the model is asked if there is none; then the video's state before it is read is recorded.
        """
        digest = self._identity.digest(request)
        number = request.id.row
        found = self._journal.answers.result(request.id, digest)
        if found is not None:
            self._replayed[number] = self._replayed.get(number, 0) + 1
        else:
            found = self._earlier(request, digest)
        if found is None:
            if will_ask:
                self._asked[request.id] = digest, video_mark(request.video, self._root)
            return None
        self._answered[number] = self._answered.get(number, 0) + 1
        self._cut_ahead(request, found, row)
        return found

    def _earlier(self, request: CaptionRequest, digest: bytes) -> CaptionResult | None:
        """The answer that was set aside, if it is still valid."""
        kept = self._journal.answers.earlier(request.id, digest)
        if kept is None or self._planner.acceptance.lack(request, kept.result) is not None:
            return None
        if self._settings.recheck and kept.mark != UNKNOWN:
            now = video_mark(request.video, self._root)
            if now not in (None, kept.mark):
                return None
        failure = kept.result.failure
        self._journal.answers.adopt(request.id, digest, kept, failed=None if failure is None else failure.kind)
        return kept.result

    def keep(self, answer: Final, row: Sample) -> None:
        """Store an answer about a row for later sessions."""
        request, result, failure = answer.request, answer.result, answer.result.failure or answer.lack
        digest, mark = self._asked.pop(request.id, None) or (self._identity.digest(request), UNKNOWN)
        failed = None if failure is None else failure.kind  # under which a retry finds it
        self._journal.answers.add(request.id, digest, result, failed=failed, mark=mark)
        self._cut_ahead(request, result, row)

    def _cut_ahead(self, request: CaptionRequest, result: CaptionResult, row: Sample) -> None:
        """Start cutting out the part an answer is about, in parallel with the model."""
        if self._cutter is not None and result.failure is None:
            self._cutter.begin(request.id.row, row)

    def _with_part(self, outcome: RowOutcome) -> RowOutcome:
        """The outcome once the part of the video is cut out; if that fails, the row fails."""
        if self._cutter is None:
            return outcome
        if not outcome.candidates:
            self._cutter.forget(outcome.row)
            return outcome
        failure = self._cutter.end(outcome.row, outcome.sample)
        if failure is None:
            return outcome
        for ask in outcome.kept:
            self._journal.answers.fail(RequestId(outcome.row, 0, ask), failure)
        return outcome.failed(failure)

    def _read(self, first: int) -> Iterator[Sample]:
        """The rows from this one on; an unexpected error names its row."""
        number = first
        try:
            for row in self._input.rows(first):
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

    def _take(self, outcome: RowOutcome, parts: PartedOutput) -> None:
        outcome, row = self._with_part(outcome), outcome.sample
        if outcome.failures and not self._operator.skip_op_error:
            raise _stopped_at(outcome)
        try:
            made, failed, edits = self._made(row, outcome)
        except Exception as exc:
            if not belongs_to_row(exc):
                raise
            outcome = outcome.failed(internal_failure(exc))
            made, failed, edits = self._made(BadRow(row, failure=outcome.failures[0][1]), outcome)
        for _, failure in outcome.failures:
            self._log_error(outcome.row, failure)
        written = self._digests.written(outcome.row, row, made)
        parts.write(outcome, made, failed, written=written, kept_edits=edits)
        self.summary.add(outcome, rows_out=len(made), kept_edits=edits)
        self._count_known(outcome)
        self._progress.update(self.summary)
        self._check_failures()

    def _made(self, row: Sample, outcome: RowOutcome) -> tuple[list[Sample], list[Sample], int]:
        """The rows of the output and of the failures file for a row, and how many contain manual edits."""
        failures = [
            failure_row(row, outcome.row, video_index, failure, self._form) for video_index, failure in outcome.failures
        ]
        made, edits = self._edits.applied(row, self._form.place(row, outcome))
        return made, failures, edits

    def _count_known(self, outcome: RowOutcome) -> None:
        """Count earlier answers once their row is done, like everything else."""
        self.summary.known_videos += self._answered.pop(outcome.row, 0)
        replayed = self._replayed.pop(outcome.row, 0)
        self.summary.answers_left -= replayed
        self.summary.replayed_rows += bool(outcome.videos) and replayed == outcome.videos

    @property
    def _log_path(self) -> Path:
        return self._journal.folder / ERRORS_LOG

    def _point_to_log(self) -> None:
        """Let the summary name the log of an earlier session."""
        if self.summary.failures["internal_error"] and self._log_path.exists():
            self.summary.errors_path = self._log_path

    def _log_error(self, row: int, failure: Failure) -> None:
        """Log the traceback of an error in this package, for bug reports."""
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

    def get(self, request: CaptionRequest, row: Sample) -> CaptionResult | None:
        """See `pipeline.Results`."""
        return self.run.answer(request, row, will_ask=True)

    def put(self, answer: Final, row: Sample) -> None:
        """See `pipeline.Results`."""
        self.run.keep(answer, row)


@contextmanager
def _journal(output: Path) -> Iterator[Journal]:
    """The journal of the run with this output; removed again if no row was done."""
    is_new = not run_folder(output).exists()
    with Journal(run_folder(output)) as journal:
        try:
            yield journal
        finally:
            if is_new and not output.exists() and not journal.answers.has_any and not journal.parts.finished():
                journal.remove()


def _other_run(output: Path, differences: Collection[str], settings: RunSettings) -> str:
    told = f"{str(output)!r} belongs to a run with different settings: {'; '.join(differences)}"
    if settings.retry is not None:
        return (
            f"{told}. A retry requires the run as it was; to redo what this affects, and what failed, run the "
            "`reelscribe caption` command that wrote the output, with --update"
        )
    return (
        f"{told}. Use the earlier settings to resume, --update to redo only what this affects, or --overwrite to "
        "start from scratch"
    )


def _too_many(summary: Counts) -> TooManyFailuresError:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.failures.most_common())
    return TooManyFailuresError(
        f"{summary.failed_rows:,} of {summary.rows_in:,} rows failed ({kinds}), more than --max-failures allows; "
        "the run resumes with a larger limit, and `reelscribe retry` retries them"
    )


def _stopped_at(outcome: RowOutcome) -> FailedSamplesError:
    video_index, failure = outcome.failures[0]
    return FailedSamplesError(
        f"row {outcome.row}, video {video_index}: {failure.kind}: {failure.message}; stopped because skip_op_error is "
        "false",
        batch=[],
    )
