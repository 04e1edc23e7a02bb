"""The pipe on Ray Data: rows are planned and videos read by tasks anywhere, and captioned by a pool of actors.

The only module that imports Ray, and only where it is used. What crosses processes is plain: the operator's
parameters, rows as they are, and frames as bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
import time
import uuid
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ... import errors
from ...answering.acceptance import Acceptance
from ...data import LeaveOut, open_source
from ...data.base import MAX_ROW_BYTES
from ...errors import FailedSamplesError, MissingExtraError, ModelError, ReelscribeError, SettingsError
from ...errors import TooManyFailuresError as TooMany
from ...operator import VideoCaptioningFromVLMMapper
from ...rows.columns import batch_fields, batch_to_rows, rows_to_batch
from ...rows.forms import RowForm
from ...rows.plan import Plan, Planner, Results
from ...stores import AnyPath, StoredPath
from ...timing import BusyClock, Stage, StageTimes
from ...types import BadRow, CaptionRequest, CaptionResult, Clip, Failure, RequestId, Sample
from ...video.frames.moments import FramePolicy
from ...video.processes.clip_stream import ClipStream
from ...video.processes.pool import usable_processors
from ..report.summary import Counts
from ..run.failures import FailureLimit
from ..run.identity import RunIdentity, named, portable_parameters
from ..run.journal import payload_of
from ..run.marks import video_mark
from .clip_columns import clips_of, with_clips, without_clips
from .settings import LOCAL, RaySettings
from .shared_stream import Load, SharedStream, Turns
from .suspects import MAX_DEATHS, Suspects

ROW = "row"
"""Column of a row's index in the input; rows go by it where they are written and looked up again."""
SAMPLE = "sample"
"""Column of a row, pickled: it goes from one process of the job to another, and into no file of the run."""
ANSWERS = "answered"
"""Column of what the row's videos were answered, plain: video, ask, digest of the request, result as JSON."""
BLOCK_BYTES = 16 << 20
"""Blocks of rows, and of clips, are closed at about this size."""
SOURCE_ROWS = 256
"""Rows that are taken from the input at a time."""
LEAST_LOCAL_CPUS = 4
"""Cores a cluster on this machine is told to have at least, so that no stage waits for another's."""
WAITING_BLOCKS = 2
"""Blocks that wait at a captioner besides those its model works on."""


ADVICE = {
    "decode": "more cores in the cluster, or fewer frames (--fps, --max-frames, --time-tolerance)",
    "model": "more --ray-captioners, faster devices, fewer or smaller frames, or shorter captions (--max-tokens)",
}
"""Stage to what lets a cluster do more of it."""


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise MissingExtraError("ray", extra="ray", purpose="captioning on a cluster") from exc
    return ray


# what every process is told


class BlockForm(Protocol):
    """How rows lie in the tables that travel, and what becomes of their answers. Plain values."""

    def rows(self, table: Any) -> list[Sample]:
        """The rows of a table."""

    def planner(self, planner: Planner) -> Planner:
        """The operator's rules for rows of this form."""

    def numbers(self, table: Any) -> list[int] | None:
        """Their indices in the input; None: they have none."""

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """The table that goes on, of the rows' plans and the answers by their keys."""


@dataclass(frozen=True)
class SampleForm:
    """A data set's own columns; output samples come out."""

    skip_op_error: bool = True
    """Whether a failed sample is let through."""

    def rows(self, table: Any) -> list[Sample]:
        """See `BlockForm`."""
        return batch_to_rows(table)

    def planner(self, planner: Planner) -> Planner:
        """See `BlockForm`."""
        return planner

    def numbers(self, table: Any) -> list[int] | None:  # noqa: ARG002
        """See `BlockForm`."""
        return None

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """See `BlockForm`.

        Raises:
            FailedSamplesError: a sample failed and may not.
        """
        outcomes = [planner.placed(planner.finish(plan, results, row)) for row, plan in enumerate(plans)]
        for failure in (failure for one in outcomes for _, failure in one.failures):
            if not self.skip_op_error:
                raise FailedSamplesError(f"a sample failed: {failure.kind}: {failure.message}", batch=[])
        made, new_fields = [sample for one in outcomes for sample in one.samples], planner.form.new_fields()
        extra = [name for name, kind in new_fields.items() if kind != "text"]
        return rows_to_batch(made, batch_fields(table, made=made, extra=extra), like=table, new_fields=new_fields)


def answers_type(*, with_ask: bool = True) -> Any:
    """The Arrow type of the column of answers; without asks as it was before these had names."""
    import pyarrow as pa

    fields = {
        "video": pa.int64(),
        "ask": pa.string(),
        "digest": pa.binary(),
        "result": pa.string(),
        "lack": pa.string(),
    }
    return pa.list_(pa.struct({name: kind for name, kind in fields.items() if with_ask or name not in ("ask", "lack")}))


@dataclass(frozen=True)
class FileForm:
    """Rows of a file, each whole beside its index; answers come out, to be kept."""

    form: RowForm
    """The form of the rows."""
    identity: RunIdentity
    """What an answer is an answer to."""
    root: AnyPath | None = None
    """What relative video paths are relative to."""

    def rows(self, table: Any) -> list[Sample]:
        """See `BlockForm`."""
        return [pickle.loads(row) for row in table[SAMPLE].to_pylist()]

    def planner(self, planner: Planner) -> Planner:
        """See `BlockForm`."""
        return replace(planner, form=self.form)

    def numbers(self, table: Any) -> list[int] | None:
        """See `BlockForm`."""
        numbers: list[int] = table[ROW].to_pylist()
        return numbers

    def made(self, table: Any, planner: Planner, plans: Sequence[Plan], results: Results) -> Any:
        """See `BlockForm`."""
        import pyarrow as pa

        answers = [
            [self._answer(planner.acceptance, request, results[request.id]) for request in plan.requests]
            for plan in plans
        ]
        return pa.table({ROW: table[ROW], ANSWERS: pa.array(answers, answers_type())})

    def _answer(self, acceptance: Acceptance, request: CaptionRequest, result: CaptionResult) -> dict[str, Any]:
        lack = acceptance.lack(request, result) if result.failure is None else None
        return {
            "video": request.id.video,
            "ask": request.id.ask,
            "digest": self.identity.digest(request),
            "result": payload_of(result, video_mark(request.video, self.root)),
            "lack": None if lack is None else lack.kind,
        }


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    key: str
    """Of this job, among those that a process works for."""
    parameters: dict[str, Any]
    """Of the operator; paths are absolute."""
    form: BlockForm
    """How rows lie in tables."""
    ledger: Any
    """Handle of the `Ledger`."""
    checks: tuple[str, ...]
    """Names of the checks that the driver has."""

    def operator(self, **changes: Any) -> VideoCaptioningFromVLMMapper:
        """The operator, built here."""
        return VideoCaptioningFromVLMMapper(**{**self.parameters, **changes})


class Ledger:
    """What the processes of a job tell each other; an actor beside the driver, and ended with it."""

    def __init__(self, max_failures: FailureLimit) -> None:
        self._max_failures = max_failures
        self._suspects = Suspects()
        self._counts = Counts()
        self._policy: FramePolicy | None = None
        self._known = asyncio.Event()
        self._error: tuple[str, str] | None = None
        self._work: dict[str, dict[str, float]] = {"decode": {}, "model": {}}
        self._began = self._last_work = 0.0

    async def tell_policy(self, policy: FramePolicy | None) -> None:
        """What the model wants to see, as soon as the first captioner has loaded it."""
        self._policy = policy
        self._began = self._began or time.monotonic()
        self._known.set()

    async def policy(self) -> FramePolicy | None:
        """The same, once it is known."""
        await self._known.wait()
        return self._policy

    async def begin(self, holder: str, videos: list[Hashable]) -> tuple[dict[Hashable, int], str | None]:
        """See `Suspects.begin`; and a sentence where the job is to stop."""
        stop = self._max_failures.is_passed(self._counts)
        told = f"{self._counts.failed_rows:,} of {self._counts.rows_in:,} rows failed, more than --max-failures allows"
        return self._suspects.begin(holder, videos), told if stop else None

    async def try_alone(self, video: Hashable) -> None:
        """See `Suspects.try_alone`."""
        self._suspects.try_alone(video)

    async def end(self, videos: list[Hashable]) -> None:
        """See `Suspects.end`."""
        self._suspects.end(videos)

    async def count(self, rows: int, failures: list[str], failed_rows: int) -> None:
        """So many rows were done; those that Ray does again count again."""
        self._counts.merge({"rows_in": rows, "failed_rows": failed_rows, "failures": failures})

    async def counts(self) -> Counts:
        """What was done so far."""
        return self._counts

    async def tell_work(self, stage: str, holder: str, seconds: float) -> None:
        """How long a process was at work for a stage so far."""
        self._work[stage][holder] = seconds
        self._last_work = time.monotonic()

    async def stages(self) -> StageTimes | None:
        """How long the stages were at work, from the first captioner that was ready to the last answer; None: nothing
        was to do."""
        if not self._last_work:
            return None
        told = [Stage(name, sum(work.values()), len(work), ADVICE[name]) for name, work in self._work.items() if work]
        return StageTimes(self._last_work - self._began, tuple(told))

    async def blame(self, name: str, message: str) -> None:
        """An error of the package ended a captioner; the first one is told to the user."""
        self._error = self._error or (name, message)

    async def error(self) -> tuple[str, str] | None:
        """That one, as class and text."""
        return self._error


# reading, in tasks

_readers: dict[str, VideoCaptioningFromVLMMapper] = {}
_process = uuid.uuid4().hex
_reading_seconds: dict[str, float] = {}


def read_block(table: Any, job: Job) -> Iterator[Any]:
    """Read the videos of a table of rows; rows come out as they are read, each with its clips."""
    operator = _reader(job)
    planner = job.form.planner(operator.planner)
    policy = _ray().get(job.ledger.policy.remote())
    plans = [planner.plan(row, number) for number, row in enumerate(job.form.rows(table))]
    if policy is None:
        yield with_clips(table, [[None] * len(plan.requests) for plan in plans])
        return
    for row, clips in _read(operator, plans, policy, job):
        yield with_clips(table.slice(row, 1), [clips])


def _reader(job: Job) -> VideoCaptioningFromVLMMapper:
    """This process's operator for a job, with one process that decodes."""
    if job.key not in _readers:
        for other in _readers.values():
            other.close()
        _readers.clear()
        _readers[job.key] = job.operator(
            num_proc=1, captioner=_NoModel(), model_params=None, enable_vllm=False, backend=None
        )
    return _readers[job.key]


def _read(
    operator: VideoCaptioningFromVLMMapper, plans: Sequence[Plan], policy: FramePolicy, job: Job
) -> Iterator[tuple[int, list[Clip | Failure]]]:
    """Row by row what was read, as rows are complete."""
    read: list[dict[RequestId, Clip | Failure]] = [{} for _ in plans]
    for row, plan in enumerate(plans):
        if not plan.requests:
            yield row, []
    requests = [request for plan in plans for request in plan.requests]
    stream = ClipStream(operator.pool, requests, policy, limits=operator.limits, root=operator.video_root)
    with closing(stream):
        for request, outcome in stream:
            row = request.id.row
            read[row][request.id] = outcome
            if len(read[row]) == len(plans[row].requests):
                done, read[row] = read[row], {}
                yield row, [done[one.id] for one in plans[row].requests]
    seconds = _reading_seconds[job.key] = _reading_seconds.get(job.key, 0.0) + stream.busy_seconds
    job.ledger.tell_work.remote("decode", _process, seconds)


class _NoModel:
    """Stands where an operator reads or finishes only."""

    policy = None

    def caption(self, clips: Iterable[Any]) -> Iterator[CaptionResult]:
        """Nothing may be asked."""
        for request, _ in clips:
            raise ModelError(f"request {request.id} came where no model is; this is a bug")
        yield from ()

    def close(self) -> None:
        """Nothing to free."""


# captioning, in actors


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request of a block, and by what its video goes in the ledger."""

    key: Hashable
    request: CaptionRequest
    load: Load


class BlockCaptioner:
    """One captioner, in an actor: blocks come side by side, and their clips enter one stream."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._holder = uuid.uuid4().hex
        self._turns = Turns()
        self._serial = itertools.count()
        self._at_work = BusyClock()
        self._ray = _ray()
        with self._blamed():
            self._operator = job.operator()
            self._planner = job.form.planner(self._operator.planner)
            self._check_packages()
            self._stream = SharedStream(self._operator.captioner, self._planner.acceptance)
            self._call("tell_policy", self._operator.policy)

    def __call__(self, table: Any) -> Any:
        """Caption a table of rows and their clips."""
        with self._blamed():
            rows, clips = without_clips(table), clips_of(table)
            numbers = self._job.form.numbers(rows)
            plans = self._plans(self._job.form.rows(rows), numbers)
            results = {one.request_id: one for one in self._results(plans, clips, numbered=numbers is not None)}
            self._count(plans, results)
            self._job.ledger.tell_work.remote("model", self._holder, self._at_work.seconds)
            return self._job.form.made(rows, self._planner, plans, results)

    def _check_packages(self) -> None:
        """Stop where this node has other checks than the driver, which would give other captions."""
        here = tuple(self._planner.acceptance.checks)
        if here != self._job.checks:
            raise SettingsError(
                f"the driver has the checks {', '.join(self._job.checks)}, a node of the cluster {', '.join(here)}; "
                "install the same packages on every node"
            )

    def _plans(self, samples: Sequence[Sample], numbers: Sequence[int] | None) -> list[Plan]:
        """The rows' plans; rows without an index get one that is new in this process."""
        rows = [next(self._serial) for _ in samples] if numbers is None else numbers
        return [self._planner.plan(sample, row) for sample, row in zip(samples, rows, strict=True)]

    def _results(
        self, plans: Sequence[Plan], clips: Sequence[Sequence[Load | Failure]], *, numbered: bool
    ) -> Iterator[CaptionResult]:
        asked = []
        for plan, loads in zip(plans, clips, strict=True):
            for request, load in zip(plan.requests, loads, strict=True):
                if isinstance(load, Failure):
                    yield CaptionResult(request.id, failure=load)
                else:
                    key = tuple(request.id) if numbered else (request.seed, *request.id[1:])
                    asked.append(_Asked(key, request, load))
        if asked:
            with self._at_work:
                answers = self._answers(asked)
            yield from answers

    def _answers(self, asked: Sequence[_Asked]) -> list[CaptionResult]:
        """Ask about all videos together, but alone about those that were with a model when its process died."""
        with self._turns.shared():
            suspects = self._begin(asked)
            sure = [one for one in asked if one.key not in suspects]
            results = self._stream.ask([(one.request, one.load) for one in sure])
            self._call("end", [one.key for one in sure])
        for one in asked:
            if one.key in suspects:
                results.append(self._alone(one, deaths=suspects[one.key]))
        return results

    def _begin(self, asked: Sequence[_Asked]) -> dict[Hashable, int]:
        suspects: dict[Hashable, int]
        suspects, stop = self._call("begin", self._holder, [one.key for one in asked])
        if stop is not None:
            raise TooMany(stop)
        return suspects

    def _alone(self, one: _Asked, *, deaths: int) -> CaptionResult:
        if deaths >= MAX_DEATHS:
            message = f"the process that runs the model died {deaths} times while it worked on this video alone"
            return CaptionResult(one.request.id, failure=Failure("engine_died", message, attempts=deaths))
        with self._turns.alone():
            self._call("try_alone", one.key)
            (result,) = self._stream.ask([(one.request, one.load)])
            self._call("end", [one.key])
        return result

    def _count(self, plans: Sequence[Plan], results: Results) -> None:
        failures = [
            [one.kind for request in plan.requests if (one := results[request.id].failure) is not None]
            + ([plan.failure[1].kind] if plan.failure is not None else [])
            for plan in plans
        ]
        self._job.ledger.count.remote(len(plans), [kind for row in failures for kind in row], sum(map(bool, failures)))

    def _call(self, name: str, *values: Any) -> Any:
        return self._ray.get(getattr(self._job.ledger, name).remote(*values))

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Tell the driver what ended this captioner; Ray's own errors hold it as text only."""
        try:
            yield
        except ReelscribeError as exc:
            self._call("blame", type(exc).__name__, str(exc))
            raise


# the driver


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


def new_job(
    operator: VideoCaptioningFromVLMMapper,
    form: BlockForm,
    *,
    root: AnyPath | None = None,
    max_failures: FailureLimit | None = None,
) -> Job:
    """A job for this operator, with a ledger beside the driver.

    Args:
        operator: rebuilt in every process.
        form: how rows lie in tables.
        root: what relative video paths are relative to, where the operator does not say.
        max_failures: how many rows may fail.

    Raises:
        SettingsError: the operator cannot travel.
    """
    ray = _ray()
    parameters = _travelling(operator, root=operator.video_root or root or Path())
    beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    ledger = ray.remote(num_cpus=0, scheduling_strategy=beside)(Ledger)
    return Job(
        uuid.uuid4().hex,
        parameters,
        form,
        ledger.remote(max_failures or FailureLimit()),
        tuple(operator.planner.acceptance.checks),
    )


def _travelling(operator: VideoCaptioningFromVLMMapper, *, root: AnyPath) -> dict[str, Any]:
    """The operator's parameters for processes of the cluster.

    Raises:
        SettingsError: they cannot be sent there.
    """
    from ray import cloudpickle

    given = portable_parameters(operator)
    given["video_root"] = named(root)
    try:
        cloudpickle.dumps(given)
    except Exception as exc:  # whatever a captioner of the user's raises
        raise SettingsError(
            f"this operator cannot be sent to another process ({type(exc).__name__}: {exc}); give it a ModelSpec, or a "
            "captioner that can be pickled"
        ) from exc
    return given


def lacks_gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> bool:
    """Whether captioners would ask this process's cluster for GPUs, and it has none yet."""
    return bool(_gpus(operator, settings)) and not _ray().cluster_resources().get("GPU", 0)


def _gpus(operator: VideoCaptioningFromVLMMapper, settings: RaySettings) -> float:
    """GPUs of each captioner."""
    spec = operator.spec
    available = None if settings.address != LOCAL else _ray().cluster_resources().get("GPU", 0)
    backend, options = (spec.backend, dict(spec.options)) if spec is not None else (None, {})
    return settings.gpus_for(backend, options, available=available)


def _captioned(dataset: Any, job: Job, settings: RaySettings, operator: VideoCaptioningFromVLMMapper) -> Any:
    """The data set behind the stages; their resources differ, so that Ray does not run them in one task."""
    ray = _ray()
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
    ray = _ray()
    form = FileForm(file.form, replace(file.identity), file.root)
    job = new_job(operator, form, root=file.root, max_failures=file.max_failures)
    with _watching(job, watch), ray.data.DataContext.current(_context(ray, file.checkpoint)):
        try:
            rows = ray.data.read_datasource(
                _rows_of(file, images=operator.limits.allow_images), override_num_blocks=1, num_cpus=0
            )
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


def _rows_of(file: FileJob, *, images: bool) -> Any:
    """The rows of a file as a source of Ray Data's: one task beside the driver reads as far ahead as there is room."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    limit = file.limit
    path = file.source if isinstance(file.source, StoredPath) else file.source.absolute()

    class RowsDatasource(Datasource):  # type: ignore[misc]
        """The rows of a file, each with its index."""

        supports_distributed_reads = False

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_args: Any, **_options: Any) -> list[Any]:  # noqa: ARG002
            metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
            task = partial(
                row_tables, path, limit, images=images, leave_out=file.leave_out, max_row_bytes=file.max_row_bytes
            )
            return [ReadTask(task, metadata)]

    return RowsDatasource()


def row_tables(
    path: AnyPath,
    limit: int | None,
    *,
    images: bool = False,
    leave_out: LeaveOut | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Iterator[Any]:
    """The rows of a file as tables of index and pickled row; of a row that is not asked about, only why."""
    import pyarrow as pa

    source = islice(open_source(path, images=images, leave_out=leave_out, max_row_bytes=max_row_bytes), limit)
    rows = enumerate(row.without_fields() if isinstance(row, BadRow) else row for row in source)
    while some := list(islice(rows, SOURCE_ROWS)):
        numbers = pa.array([number for number, _ in some], pa.int64())
        yield pa.table({ROW: numbers, SAMPLE: pa.array([pickle.dumps(row) for _, row in some], pa.binary())})


def _told(job: Job, exc: Exception) -> ReelscribeError:
    """What ended a job, in the package's own words where it was an error of the package."""
    if isinstance(exc, ReelscribeError):
        return exc
    found = None
    with suppress(Exception):
        found = _ray().get(job.ledger.error.remote(), timeout=10)
    if found is None:
        return ModelError(f"the cluster ended the run: {type(exc).__name__}: {_last_line(exc)}")
    kind = getattr(errors, found[0], ModelError)
    known: ReelscribeError = (kind if kind in (SettingsError, TooMany, errors.DataError) else ModelError)(found[1])
    return known


def _last_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else ""


class Watch(Protocol):
    """Is told how far a job has come, now and then, in a thread of its own."""

    def __call__(self, counts: Counts) -> None:
        """So much is done."""


WATCH_SECONDS = 2.0
"""Time between two looks at a job."""


@contextmanager
def _watching(job: Job, watch: Watch) -> Iterator[None]:
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(WATCH_SECONDS):
            with suppress(Exception):  # the job may just have ended
                watch(_ray().get(job.ledger.counts.remote(), timeout=WATCH_SECONDS))

    thread = threading.Thread(target=look, name="watch-job", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * WATCH_SECONDS)


def connect(settings: RaySettings) -> bool:
    """Connect this process to the cluster, unless it is connected.

    Returns:
        Whether it was done here, so that `disconnect` is due.

    Raises:
        SettingsError: there is no cluster at that address.
    """
    ray = _ray()
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address == LOCAL:
        cpus = max(LEAST_LOCAL_CPUS, usable_processors())
        ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=settings.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise SettingsError(f"no Ray cluster answers at {settings.address!r}: {_last_line(exc)}") from exc
    return True


def disconnect() -> None:
    """Let go of the cluster; one that was started here ends."""
    _ray().shutdown()
