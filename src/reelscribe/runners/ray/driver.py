"""The stages of a job on Ray Data: tasks on any node plan rows and read videos, and actors caption them.

Only plain values cross processes: the operator's parameters, unchanged rows, and frames as bytes.
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
"""Approximate size at which blocks of rows, and of clips, are closed."""
WAITING_BLOCKS = 2
"""Blocks that wait at a captioner, besides those its model is processing."""
WATCH_SECONDS = 2.0
"""Interval between checks of a job."""


def caption_ray(
    dataset: Any, operator: VideoCaptioningFromVLMMapper, *, settings: RaySettings | None = None, **given: Any
) -> Any:
    """Caption a `ray.data.Dataset`; returns one with the same rows as `operator.run`.

    Nothing runs before the result is consumed. Rows come in any order, like in Ray Data in general (unless its option
    `preserve_order` is set). Failed samples keep their originals; `failure_key` records why. Every node needs this
    package, and the videos at the same paths.

    Args:
        dataset: rows with a text and a list of videos, as for `operator.run`.
        operator: rebuilt in every process from its parameters; a captioner object must be picklable.
        settings: how much of the cluster to use; `address` only applies if Ray is not connected yet.
        given: fields of `RaySettings`, instead of `settings`.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingsError: the operator cannot be sent to other processes.
    """
    settings = settings or RaySettings(**given)
    connect(settings)
    columns = dataset.columns(fetch_if_missing=False)
    if columns:
        operator.check_fields(columns)
    job = new_job(operator, SampleForm(operator.skip_op_error))
    return _captioned(dataset, job, settings, operator)


def lacks_gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> bool:
    """Whether captioners would request GPUs from this process's cluster, which has none yet."""
    return bool(_gpus(operator, settings)) and not ray_library().cluster_resources().get("GPU", 0)


def _gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> float:
    """GPUs per captioner."""
    spec = operator.spec
    available = None if settings.address != LOCAL else ray_library().cluster_resources().get("GPU", 0)
    backend, options = (spec.backend, dict(spec.options)) if spec is not None else (None, {})
    return settings.gpus_for(backend, options, available=available)


def _captioned(dataset: Any, job: Job, settings: RaySettings, operator: VideoCaptioningFromVLMMapper) -> Any:
    """The data set after the stages; their resources differ, so that Ray does not fuse them into one task."""
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
    """A job over the rows of a file, and where their answers go."""

    source: AnyPath
    """The input; read by a process on the driver's node."""
    limit: int | None
    """Most rows to read; None: all."""
    max_row_bytes: int
    """The largest row to read into memory."""
    form: RowForm
    """The form of the rows."""
    root: AnyPath
    """Folder that relative video paths are relative to."""
    identity: RunIdentity
    """The identity that answers are tied to."""
    answers: Path
    """Folder for answers, Parquet files with `ROW` and `ANSWERS`; must be writable from every node."""
    checkpoint: Path
    """Folder of Ray Data's checkpoint: the indices of finished rows."""
    max_failures: FailureLimit
    """How many rows may fail."""
    leave_out: LeaveOut | None = None
    """Files in the input's folder that are the run's own."""


def answer_file(
    operator: VideoCaptioningFromVLMMapper, file: FileJob, settings: RaySettings, watch: Watch
) -> StageTimes | None:
    """Answer every row of a file that is not in the checkpoint, on the cluster this process is connected to.

    Returns:
        How long the stages were busy; None if there was nothing to do.

    Raises:
        ReelscribeError: the error that ended a captioner.
        ModelError: the cluster failed for another reason.
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
    """Ray Data's settings for the job; those of the process stay unchanged."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
        id_column=ROW, checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
    )
    return context


def _told(job: Job, exc: Exception) -> ReelscribeError:
    """The error that ended a job, as this package's own error if it was one."""
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
    """Receives the progress of a job periodically, in a separate thread."""

    def __call__(self, counts: Counts) -> None:
        """Report the counts so far."""


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
