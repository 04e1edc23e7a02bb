"""A data set through the operator on a Ray cluster, with the files, the journal and the exit codes of a local run.

The cluster answers requests; what becomes of the answers is done here, by the run that this machine would do alone. So
the output is the same, and a run can be begun in one place and ended in the other.
"""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...models.captioner import Captioner
from ...operator import VideoCaptioningFromVLMMapper
from ...pipeline import Results, run_pipe
from ...rows.asks import UNNAMED
from ...rows.outcome import RowOutcome
from ...timing import StageTimes
from ...types import CaptionRequest, CaptionResult, Clip, RequestId, Sample
from ..report.progress import LOG_SECONDS, Progress
from ..report.summary import Counts, RunSummary
from ..run.identity import RunIdentity
from ..run.journal import mark_of, result_of
from ..run.parts import PartedOutput
from ..run.run import Run, RunSettings, operator_servers, run_file
from .driver import ANSWERS, ROW, FileJob, answer_file, answers_type, connect, disconnect, lacks_gpus
from .settings import RaySettings

ANSWER_FOLDER = "answers"
"""In the folder of the run: what the cluster has answered so far."""
CHECKPOINT_FOLDER = "checkpoint"
"""In the folder of the run: which rows it need not be asked about."""
SERVED_ADVICE = (
    "more replicas of the server (repeat --server), more --ray-captioners, fewer or smaller frames, or shorter "
    "captions (--max-tokens)"
)
"""What lets the model do more where servers run it."""
STALLED_SECONDS = 300.0
"""After so long without a row the user is told what that may be."""
ARROW_SCHEMA, EXTENSION = b"ARROW:schema", b"ARROW:extension"
"""Under what a Parquet file keeps its Arrow schema, and what is in that where a type is one of another package."""
NEEDED = ("video", "digest", "result")
"""What every answer in a file of them has."""
KNOWN_FILE = "known.parquet"
"""In the checkpoint: rows that were answered before the cluster was asked."""


def caption_file_ray(
    operator: VideoCaptioningFromVLMMapper,
    input: str | Path,  # noqa: A002
    output: str | Path,
    *,
    cluster: RaySettings | None = None,
    progress: Progress | None = None,
    settings: RunSettings | None = None,
    **given: Any,
) -> RunSummary:
    """Caption every row of a data set on a Ray cluster and write the result here.

    The output is that of `caption_file`. Videos are read, and the output's folder is written, under the same paths on
    every node.

    Args:
        operator: the operator; relative video paths are relative to the input's folder unless it has a `video_root`.
        input: as for `caption_file`.
        output: as for `caption_file`.
        cluster: which cluster, and how much of it.
        progress: what is told about the run.
        settings: how input and output are treated.
        given: fields of `RunSettings`, instead of `settings`.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingsError: there is no such cluster, or the operator cannot travel.
        ReelscribeError: what else `caption_file` raises.
    """
    cluster = cluster or RaySettings()
    ours = connect(cluster)
    try:
        return run_file(
            partial(RayRun, cluster),
            operator,
            input,
            output,
            progress=progress,
            settings=settings or RunSettings(**given),
        )
    finally:
        if ours:
            disconnect()


class RayRun(Run):
    """A run whose requests are answered by a cluster before the output is made from the answers."""

    def __init__(self, cluster: RaySettings, *args: Any) -> None:
        super().__init__(*args)
        self._cluster = cluster
        self._answers = (self._journal.folder / ANSWER_FOLDER).absolute()
        self._checkpoint = (self._journal.folder / CHECKPOINT_FOLDER).absolute()
        self._taken: set[Path] = set()
        self._known_videos = 0
        self._cluster_seconds = 0.0
        self._last_said = self._last_moved = time.monotonic()
        self._rows_seen = 0
        self._stages: StageTimes | None = None

    def _agree(self) -> None:
        """As for any run; answers that a cluster gave are in the journal before anything of it is set aside."""
        usable = self._take_answers()
        kept = self._journal.identity()
        super()._agree()
        if kept is not None and not self._settings.update:
            # a version that was not known then may be now: answers go by what was written down
            self._identity = RunIdentity(**kept)
            self._remember()
        if self._settings.update or self._settings.retry is not None or not (usable and self._has_own_checkpoint()):
            self._forget_cluster()

    def _make_ready(self) -> None:
        """Let the cluster answer what is not answered yet."""
        self._known_videos = self._journal.count()
        if self._journal.fact("answered"):
            return
        began = time.monotonic()
        self._prepare_checkpoint()
        self._answers.mkdir(exist_ok=True)
        servers = operator_servers(self._operator)
        what = (servers and f"with {servers}") or self.summary.model or "with the captioner given"
        self._progress.say(f"captioning {what} on Ray")
        if lacks_gpus(self._operator, self._cluster):
            self._progress.say(
                "the cluster has no GPU, and each captioner waits for one; where none will come, give --ray-gpus 0, "
                "and the model runs on CPUs"
            )
        self._last_moved = time.monotonic()
        try:
            stages = answer_file(self._operator, self._file_job(), self._cluster, self._watch)
            self._stages = stages.with_advice("model", SERVED_ADVICE) if stages and servers else stages
        finally:
            self._take_answers()
        self._journal.keep(answered=True)
        self._cluster_seconds = time.monotonic() - began

    def _file_job(self) -> FileJob:
        return FileJob(
            source=self._source.path,
            limit=self._settings.limit,
            max_row_bytes=self._settings.max_row_bytes,
            form=self._form,
            root=self._root,
            identity=RunIdentity(self._identity.rows, self._identity.writing),
            answers=self._answers,
            checkpoint=self._checkpoint,
            max_failures=self._settings.max_failures,
            leave_out=self.leave_out,
        )

    def _watch(self, counts: Counts) -> None:
        now = time.monotonic()
        if counts.rows_in != self._rows_seen:
            self._rows_seen, self._last_moved = counts.rows_in, now
        if now - self._last_moved >= STALLED_SECONDS:
            self._last_moved = now
            self._progress.say(
                f"no row was captioned on Ray for {STALLED_SECONDS / 60:g} minutes: {self._busy_with}, or "
                "wait for a node with room for one. Where a lost node does not come back, end the command, and give it "
                "again with fewer --ray-captioners: what is done is kept"
            )
        if now - self._last_said >= LOG_SECONDS:
            self._last_said = now
            self._progress.say(f"{counts.rows_in:,} rows captioned on Ray, {counts.failed_rows:,} failed")

    @property
    def _busy_with(self) -> str:
        return "captioners wait for their servers" if self.summary.is_served else "captioners load their model"

    def _prepare_checkpoint(self) -> None:
        """Where the cluster is asked for the first time, tell it what the journal knows already."""
        if self._checkpoint.exists() or not self._journal.has_answers:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._checkpoint.mkdir()
        path = self._checkpoint / KNOWN_FILE
        schema = pa.schema({ROW: pa.int64()})
        with pq.ParquetWriter(path.with_suffix(".unfinished"), schema) as writer:
            for rows in _batched(self._known_rows()):
                writer.write_table(pa.table({ROW: rows}, schema=schema))
        path.with_suffix(".unfinished").rename(path)

    def _known_rows(self) -> Iterator[int]:
        """Rows of which every video is answered."""
        for number, row in enumerate(self._source):
            plan = self._planner.plan(row, number)
            if all(self.answer(request, row) is not None for request in plan.requests):
                yield number

    def _take_answers(self) -> bool:
        """Put what the cluster has written into the journal; a file that was being written when it ended is not whole,
        and what should be in it is asked again.

        Returns:
            Whether all files that are whole hold answers as they are written now.
        """
        usable = True
        for path in sorted(self._answers.glob("*.parquet")):
            if path in self._taken:
                continue
            self._taken.add(path)
            try:
                self._journal.add_all(self._answers_in(path))
            except ValueError as exc:
                usable = False
                self._progress.say(f"{path} holds no answers of this version ({exc}): what it may be of is asked again")
        return usable

    def _has_own_checkpoint(self) -> bool:
        """Whether Ray may read the checkpoint: it holds numbers of rows and nothing else."""
        files = [path for path in self._checkpoint.rglob("*") if not _may_be_rows(path)]
        for path in files:
            self._progress.say(f"{path} is no part of a checkpoint: the checkpoint is made again from the journal")
        return not files

    def _answers_in(self, path: Path) -> Iterator[tuple[RequestId, bytes, CaptionResult, str | None, Any]]:
        for row, answers in _rows_in(path):
            for one in answers:
                result = result_of(RequestId(row, one["video"], one.get("ask") or UNNAMED), one["result"])
                failed = one.get("lack") if result.failure is None else result.failure.kind
                yield result.request_id, one["digest"], result, failed, mark_of(one["result"])

    def _forget_cluster(self) -> None:
        """Begin anew with what the journal has."""
        for folder in (self._answers, self._checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
        self._journal.keep(answered=False)

    def _stream(
        self, rows: Iterable[Sample], emit: Callable[[RowOutcome], None], *, results: Results, first_row: int
    ) -> StageTimes:
        """Make the rows of the output; every request is answered."""
        return run_pipe(
            _Answered(self._operator, self._forget_cluster),
            rows,
            emit,
            planner=self._planner,
            root=self._root,
            results=results,
            first_row=first_row,
        )

    def _rows(self, parts: PartedOutput) -> None:
        super()._rows(parts)
        self.summary.seconds += self._cluster_seconds
        self.summary.known_videos = self._known_videos
        self.summary.stages = self._stages

    def _notes(self) -> list[str]:
        return [f"on Ray at {self._cluster.address}"]

    def _done(self) -> str:
        """While the cluster answers, videos are counted, not rows."""
        if self.summary.rows_in or not self._journal.has_answers:
            return super()._done()
        return f"{self._journal.count():,} videos are answered, and kept in {self._journal.folder}"

    def _end(self, parts: PartedOutput) -> None:
        super()._end(parts)
        self._forget_cluster()


class _Answered:
    """The operator for the pipe, without a model: every request has its answer already."""

    def __init__(self, operator: VideoCaptioningFromVLMMapper, on_lost: Callable[[], None]) -> None:
        self.planner = operator.planner
        self.limits = operator.limits
        self.video_root = operator.video_root
        self.pool = operator.pool
        self.policy = None
        self.captioner: Captioner = _NoAnswer(on_lost)


@dataclass
class _NoAnswer:
    """A captioner for requests that should have had an answer."""

    on_lost: Callable[[], None]
    policy: None = None

    def caption(self, clips: Iterable[tuple[CaptionRequest, Clip | None]]) -> Iterator[CaptionResult]:
        """Stop at the first one."""
        for request, _ in clips:
            self.on_lost()
            raise ModelError(f"row {request.id.row} has no answer from the cluster; the same command asks it again")
        yield from ()

    def close(self) -> None:
        """Nothing to free."""


def _rows_in(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Row and answers of a file of them; nothing of one that is not whole.

    Raises:
        ValueError: it holds something else.
    """
    import pyarrow.parquet as pq

    if not _is_whole(path):
        return
    _check_answers(path)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[ROW, ANSWERS]):
            for row, answers in zip(*(batch[name].to_pylist() for name in (ROW, ANSWERS)), strict=True):
                if row is None or any(one[name] is None for one in answers or () for name in NEEDED):
                    raise ValueError("a row without a number, or an answer that is null")
                yield row, answers or []


def _check_answers(path: Path) -> None:
    """See that a file holds answers, as they are written now or as they were before asks had names.

    Raises:
        ValueError: it does not.
    """
    import pyarrow as pa

    try:
        _check_columns(path, {ROW: pa.int64(), ANSWERS: answers_type()})
    except ValueError:
        _check_columns(path, {ROW: pa.int64(), ANSWERS: answers_type(with_ask=False)})


def _may_be_rows(path: Path) -> bool:
    """Whether a file of a checkpoint holds numbers of rows, or is not whole, as after a driver that was killed."""
    import pyarrow as pa

    if not _is_whole(path):
        return path.is_file()
    try:
        _check_columns(path, {ROW: pa.int64()})
    except ValueError:
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Whether this is a Parquet file with its footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return path.is_file() and pq.read_metadata(path) is not None
    except (pa.ArrowException, OSError):
        return False


def _check_columns(path: Path, columns: dict[str, Any]) -> None:
    """See that a Parquet file has these columns and no others, before Arrow, or Ray, makes anything of them.

    Raises:
        ValueError: it has not.
    """
    import pyarrow.parquet as pq

    schema = (pq.read_metadata(path).metadata or {}).get(ARROW_SCHEMA, b"")
    if EXTENSION in base64.b64decode(schema):
        raise ValueError("it has types of another package")
    found = pq.read_schema(path)
    if {field.name: field.type for field in found} != columns or len(found) != len(columns):
        raise ValueError(f"its columns are {', '.join(found.names)}")


def _batched(numbers: Iterator[int], size: int = 65536) -> Iterator[list[int]]:
    while some := list(islice(numbers, size)):
        yield some
