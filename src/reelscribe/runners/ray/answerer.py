"""A Ray cluster answers the requests of a run, before the output is built from the answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...errors import ModelError
from ...pipeline import Operator
from ...rows.plan import Planner
from ...stores import AnyPath
from ...timing import StageTimes
from ...types import CaptionRequest, CaptionResult, Clip
from ...video.processes.pool import WorkerPool
from ...video.reader import ReadLimits
from ..report.progress import LOG_SECONDS
from ..report.summary import Counts
from ..run.answerer import Known, Work, operator_servers
from ..run.identity import RunIdentity
from .answer_files import answers_in, may_be_rows, write_rows
from .driver import FileJob, answer_file, lacks_gpus
from .settings import RaySettings

ANSWER_FOLDER = "answers"
"""In the folder of the run: the cluster's answers so far."""
CHECKPOINT_FOLDER = "checkpoint"
"""In the folder of the run: which rows need no answer."""
KNOWN_FILE = "known.parquet"
"""In the checkpoint: rows that were answered before the cluster started."""
SERVED_ADVICE = (
    "more replicas of the server (repeat --server), more --ray-captioners, fewer or smaller frames, or shorter "
    "captions (--max-tokens)"
)
"""How to speed up a model that runs on servers."""
STALLED_SECONDS = 300.0
"""After this long without a row the likely reason is printed."""


class RayAnswerer:
    """Answers requests on the cluster that this process is connected to.

    Args:
        cluster: how much of the cluster to use.
        work: what is to be answered.
    """

    loads_model = False

    def __init__(self, cluster: RaySettings, work: Work) -> None:
        self._cluster = cluster
        self._work = work
        self._answers = (work.journal.folder / ANSWER_FOLDER).absolute()
        self._checkpoint = (work.journal.folder / CHECKPOINT_FOLDER).absolute()
        self._taken: set[Path] = set()
        self._is_usable = True
        self._known_videos = 0
        self._seconds = 0.0
        self._last_said = self._last_moved = time.monotonic()
        self._rows_seen = 0
        self._stages: StageTimes | None = None

    def recover(self) -> None:
        """Collect the cluster's answers from an earlier session."""
        self._is_usable = self._take_answers()

    def settle(self) -> None:
        """Drop the cluster's files of an earlier session if they may contain more than the journal now does."""
        settings = self._work.settings
        if settings.update or settings.retry is not None or not (self._is_usable and self._has_own_checkpoint()):
            self._forget_cluster()

    def make_ready(self, identity: RunIdentity, known: Known) -> Operator:
        """Let the cluster answer everything that is unanswered."""
        journal = self._work.journal
        self._known_videos = journal.answers.count()
        if not journal.fact("answered"):
            began = time.monotonic()
            self._prepare_checkpoint(known)
            self._answer(identity)
            journal.keep(answered=True)
            self._seconds = time.monotonic() - began
        return _Answered(self._work, self._forget_cluster)

    def _answer(self, identity: RunIdentity) -> None:
        operator, progress = self._work.operator, self._work.progress
        self._answers.mkdir(exist_ok=True)
        servers = operator_servers(operator)
        what = (servers and f"with {servers}") or self._work.summary.model or "with the captioner given"
        progress.say(f"captioning {what} on Ray")
        if lacks_gpus(operator, self._cluster):
            progress.say(
                "the cluster has no GPU, and each captioner waits for one; if none will be added, use --ray-gpus 0 "
                "to run the model on CPUs"
            )
        self._last_moved = time.monotonic()
        try:
            stages = answer_file(operator, self._file_job(identity), self._cluster, self._watch)
            self._stages = stages.with_advice("model", SERVED_ADVICE) if stages and servers else stages
        finally:
            self._take_answers()

    def _file_job(self, identity: RunIdentity) -> FileJob:
        settings = self._work.settings
        return FileJob(
            source=self._work.input.source.path,
            limit=settings.limit,
            max_row_bytes=settings.max_row_bytes,
            form=self._work.planner.form,
            root=self._work.root,
            identity=RunIdentity(identity.rows, identity.writing),
            answers=self._answers,
            checkpoint=self._checkpoint,
            max_failures=settings.max_failures,
            leave_out=self._work.leave_out,
        )

    def _watch(self, counts: Counts) -> None:
        now = time.monotonic()
        if counts.rows_in != self._rows_seen:
            self._rows_seen, self._last_moved = counts.rows_in, now
        if now - self._last_moved >= STALLED_SECONDS:
            self._last_moved = now
            self._work.progress.say(
                f"no row was captioned on Ray for {STALLED_SECONDS / 60:g} minutes: {self._busy_with}, or "
                "wait for a node with room for one. If a lost node will not come back, stop the command and rerun it "
                "with fewer --ray-captioners: finished work is kept"
            )
        if now - self._last_said >= LOG_SECONDS:
            self._last_said = now
            self._work.progress.say(f"{counts.rows_in:,} rows captioned on Ray, {counts.failed_rows:,} failed")

    @property
    def _busy_with(self) -> str:
        return "captioners wait for their servers" if self._work.summary.is_served else "captioners load their model"

    def _prepare_checkpoint(self, known: Known) -> None:
        """On the cluster's first session, exclude rows that the journal already answers."""
        if self._checkpoint.exists() or not self._work.journal.answers.has_any:
            return
        self._checkpoint.mkdir()
        write_rows(self._checkpoint / KNOWN_FILE, self._known_rows(known))

    def _known_rows(self, known: Known) -> Iterator[int]:
        """Rows whose videos are all answered."""
        for number, row in enumerate(self._work.input.source):
            plan = self._work.planner.plan(row, number)
            if all(known(request, row) is not None for request in plan.requests):
                yield number

    def _take_answers(self) -> bool:
        """Copy the cluster's answers into the journal; files left incomplete at the end are skipped, and their rows
        captioned again.

        Returns:
            Whether all complete files contain answers in the current format.
        """
        usable = True
        for path in sorted(self._answers.glob("*.parquet")):
            if path in self._taken:
                continue
            self._taken.add(path)
            try:
                self._work.journal.answers.add_all(answers_in(path))
            except ValueError as exc:
                usable = False
                self._work.progress.say(
                    f"{path} contains no answers of this version ({exc}): its rows are captioned again"
                )
        return usable

    def _has_own_checkpoint(self) -> bool:
        """Whether Ray may read the checkpoint: it contains row numbers and nothing else."""
        files = [path for path in self._checkpoint.rglob("*") if not may_be_rows(path)]
        for path in files:
            self._work.progress.say(f"{path} is not part of a checkpoint: rebuilding the checkpoint from the journal")
        return not files

    def _forget_cluster(self) -> None:
        """Drop the cluster's files and start over from the journal."""
        for folder in (self._answers, self._checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
        self._work.journal.keep(answered=False)

    def report(self) -> None:
        """Add the cluster's times; the pipe only looked up its answers."""
        summary = self._work.summary
        summary.engine = [f"on Ray at {self._cluster.address}"]
        summary.seconds += self._seconds
        summary.known_videos = self._known_videos
        summary.stages = self._stages

    def progress_made(self) -> str | None:
        """While the cluster answers, videos are counted, not rows."""
        journal = self._work.journal
        if not journal.answers.has_any:
            return None
        return f"{journal.answers.count():,} videos are answered and kept in {journal.folder}"

    def end(self) -> None:
        """See `_forget_cluster`."""
        self._forget_cluster()


class _Answered:
    """An operator for the pipe, without a model or readers: every request is already answered.

    Args:
        work: what was to be answered.
        on_lost: called if an answer is missing.
    """

    policy = None

    def __init__(self, work: Work, on_lost: Callable[[], None]) -> None:
        self.planner: Planner = work.planner
        self.limits: ReadLimits = work.operator.limits
        self.video_root: AnyPath | None = work.root
        self.pool: WorkerPool = work.operator.pool
        self._on_lost = on_lost

    @property
    def captioner(self) -> _Answered:
        """Itself."""
        return self

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Fail on the first request that arrives."""
        for request, _ in clips:
            self._on_lost()
            raise ModelError(f"row {request.id.row} has no answer from the cluster; rerun the command to caption it")
        yield from ()

    def close(self) -> None:
        """Nothing to free."""
