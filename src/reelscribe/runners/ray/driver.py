"""The stages of a job on Ray Data: rows are planned and videos read by tasks anywhere, and captioned by actors.

What crosses processes is plain: the operator's parameters, rows as they are, and frames as bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ... import errors
from ...data import LeaveOut
from ...errors import ModelError, ReelscribeError, SettingsError
from ...errors import TooManyFailuresError as TooMany
from ...operator import VideoCaptioningFromVLMMapper
from ...rows.forms import RowForm
from ...settings import FailureLimit
from ...stores import AnyPath
from ...timing import StageTimes
from ..report.summary import Counts
from ..run.identity import RunIdentity
from .caption import BlockCaptioner
from .cluster import connect, last_line, ray_library
from .forms import ROW, FileForm, SampleForm
from .job import Job, new_job
from .read import read_block
from .settings import LOCAL, RaySettings
from .source import rows_of

BLOCK_BYTES = 16 << 20
"""Blocks of rows, and of clips, are closed at about this size."""
WAITING_BLOCKS = 2
"""Blocks that wait at a captioner besides those its model works on."""
WATCH_SECONDS = 2.0
"""Time between two looks at a job."""


def caption_ray(
    dataset: Any, operator: VideoCaptioningFromVLMMapper, *, settings: RaySettings | None = None, **given: Any
) -> Any:
    """Caption a `ray.data.Dataset`; gives one back, whose rows are those that `operator.run` makes.

    Nothing runs before the result is used. Rows come in any order, as Ray Data gives them (unless its option
    `preserve_order` is set). Failed samples keep their originals; `failure_key` tells why. Every node needs this
    package, and the videos at the same paths.

    Args:
        dataset: rows with a text and a list of videos, as for `operator.run`.
        operator: rebuilt in every process from its parameters; a captioner given alive must be picklable.
        settings: how much of the cluster is taken; `address` counts only where Ray is not connected yet.
        given: fields of `RaySettings`, instead of `settings`.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingsError: the operator cannot travel.
    """
    settings = settings or RaySettings(**given)
    connect(settings)
    columns = dataset.columns(fetch_if_missing=False)
    if columns:
        operator.check_fields(columns)
    job = new_job(operator, SampleForm(operator.skip_op_error))
    return _captioned(dataset, job, settings, operator)


def lacks_gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> bool:
    """Whether captioners would ask this process's cluster for GPUs, and it has none yet."""
    return bool(_gpus(operator, settings)) and not ray_library().cluster_resources().get("GPU", 0)


def _gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> float:
    """GPUs of each captioner."""
    spec = operator.spec
    available = None if settings.address != LOCAL else ray_library().cluster_resources().get("GPU", 0)
    backend, options = (spec.backend, dict(spec.options)) if spec is not None else (None, {})
    return settings.gpus_for(backend, options, available=available)


def _captioned(dataset: Any, job: Job, settings: RaySettings, operator: VideoCaptioningFromVLMMapper) -> Any:
    """The data set behind the stages; their resources differ, so that Ray does not run them in one task."""
    ray = ray_library()
    gpus = _gpus(operator, settings)
    fewest, most = settings.pool(gpus)
    pool = ray.data.ActorPoolStrategy(
        min_size=fewest,
        max_size=most,
        max_concurrent_calls_per_actor=settings.blocks_in_flight,
        max_tasks_in_flight_per_actor=settings.blocks_in_flight + WAITING_BLOCKS,
        enable_true_multi_threading=True,
    )
    blocks = dataset.repartition(target_num_rows_per_block=settings.rows_per_block)
    clips = blocks.map_batches(
        read_block, batch_size=None, batch_format="pyarrow", fn_kwargs={"job": job}, num_cpus=settings.reader_cpus
    )
    return clips.map_batches(
        BlockCaptioner,
        batch_size=settings.rows_per_block,
        batch_format="pyarrow",
        compute=pool,
        fn_constructor_kwargs={"job": job},
        num_cpus=None if gpus else 0,
        num_gpus=gpus,
    )


@dataclass(frozen=True, slots=True)
class FileJob:
    """The rows of a file, and where their answers go."""

    source: AnyPath
    """The input; read by a process beside the driver."""
    limit: int | None
    """Rows that are taken; None: all."""
    max_row_bytes: int
    """The largest row that is read into memory."""
    form: RowForm
    """The form of the rows."""
    root: AnyPath
    """What relative video paths are relative to."""
    identity: RunIdentity
    """What an answer is an answer to."""
    answers: Path
    """Folder of the answers, Parquet files with `ROW` and `ANSWERS`; every node must be able to write there."""
    checkpoint: Path
    """Folder of Ray Data's checkpoint: the indices of the rows that are done."""
    max_failures: FailureLimit
    """How many rows may fail."""
    leave_out: LeaveOut | None = None
    """Files in the input's folder that are the run's own."""


def answer_file(
    operator: VideoCaptioningFromVLMMapper, file: FileJob, settings: RaySettings, watch: Watch
) -> StageTimes | None:
    """Answer every row of a file that the checkpoint does not have, on the cluster that this process is connected to.

    Returns:
        How long the stages were at work; None where nothing was to do.

    Raises:
        ReelscribeError: what ended a captioner.
        ModelError: the cluster failed otherwise.
    """
    ray = ray_library()
    form = FileForm(file.form, replace(file.identity), file.root)
    job = new_job(operator, form, root=file.root, max_failures=file.max_failures)
    with _watching(job, watch), ray.data.DataContext.current(_context(ray, file.checkpoint)):
        try:
            source = rows_of(
                file.source,
                file.limit,
                images=operator.limits.allow_images,
                leave_out=file.leave_out,
                max_row_bytes=file.max_row_bytes,
            )
            rows = ray.data.read_datasource(source, override_num_blocks=1, num_cpus=0)
            captioned = _captioned(rows, job, settings, operator)
            captioned.write_parquet(str(file.answers), min_rows_per_file=settings.rows_per_file)
            stages: StageTimes | None = ray.get(job.ledger.stages.remote())
            return stages
        except Exception as exc:
            raise _told(job, exc) from exc


def _context(ray: Any, checkpoint: Path) -> Any:
    """Ray Data's settings for the job; those of the process stay as they are."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
        id_column=ROW, checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
    )
    return context


def _told(job: Job, exc: Exception) -> ReelscribeError:
    """What ended a job, in the package's own words where it was an error of the package."""
    if isinstance(exc, ReelscribeError):
        return exc
    found = None
    with suppress(Exception):
        found = ray_library().get(job.ledger.error.remote(), timeout=10)
    if found is None:
        return ModelError(f"the cluster ended the run: {type(exc).__name__}: {last_line(exc)}")
    kind = getattr(errors, found[0], ModelError)
    known: ReelscribeError = (kind if kind in (SettingsError, TooMany, errors.DataError) else ModelError)(found[1])
    return known


class Watch(Protocol):
    """Is told how far a job has come, now and then, in a thread of its own."""

    def __call__(self, counts: Counts) -> None:
        """So much is done."""


@contextmanager
def _watching(job: Job, watch: Watch) -> Iterator[None]:
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(WATCH_SECONDS):
            with suppress(Exception):  # the job may just have ended
                watch(ray_library().get(job.ledger.counts.remote(), timeout=WATCH_SECONDS))

    thread = threading.Thread(target=look, name="watch-job", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * WATCH_SECONDS)
