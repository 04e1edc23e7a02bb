"""Throughput of this machine on a sample of the user's videos, stage by stage and for the whole pipeline.

Ceilings are measured one after the other, so that each stage has the machine to itself. Independent of the model:
stages that a captioner cannot run alone are left out.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import open_source
from ..data.input import Input
from ..errors import DataError
from ..models import backend_of
from ..models.captioner import Captioner, OnCores, Preparing, Sized
from ..operator import VideoCaptioningFromVLMMapper
from ..printable import printable
from ..stores import AnyPath
from ..types import CaptionRequest, Clip, Failure
from ..video.processes.clip_stream import MAX_BYTES_PER_WORKER, ClipStream, usable_processors
from .run.run import caption_file

if TYPE_CHECKING:
    from rich.console import Console

MAX_SAMPLE_BYTES = 1 << 30
"""Most bytes of the sample's pixels kept in memory; a larger sample is cut."""
BATCH_STEPS = (0.25, 0.5, 1.0, 2.0)
"""Batch sizes to try, as multiples of the current one."""
FEW_CLIPS = 16
"""With fewer clips the start and the end of the pipeline weigh too much."""
DOUBTFUL_RATIO = 1.25
"""The pipeline cannot be faster than its slowest stage; above this ratio the measurement is wrong."""
HEADROOM = 1.15
"""How much faster reading should be than the model, so that the model never waits."""
WORTH_CHANGING = 1.05
"""A batch size must be faster by this factor to be recommended over the current one."""

Pair = tuple[CaptionRequest, Clip]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Speed of one stage that has the machine to itself."""

    stage: str
    """`decode`, `prepare` or `model`."""
    videos_per_second: float
    """Its speed."""
    how: str
    """The settings it was measured with."""


@dataclass(slots=True)
class BenchReport:
    """Ceilings, the pipeline's speed, and recommendations."""

    clips: int
    """Videos in the sample."""
    ceilings: list[Ceiling] = field(default_factory=list)
    """Speed of each stage alone."""
    pipeline: float = 0.0
    """Videos per second of the whole pipeline."""
    bound: str = ""
    """The pipeline's report on its stages."""
    workers: int = 1
    """Reading processes while reading alone was measured."""
    shared: float | None = None
    """Videos per second that the cores allow if reading and the model share them: both in turn on all cores. None if
    they do not share cores."""
    recommended: dict[str, int] = field(default_factory=dict)
    """Command option to its recommended value."""
    notes: list[str] = field(default_factory=list)
    """Notes for the reader."""

    @property
    def lowest(self) -> Ceiling:
        """The slowest stage, which bounds the pipeline."""
        return min(self.ceilings, key=lambda one: one.videos_per_second)

    @property
    def ratio(self) -> float:
        """Pipeline speed relative to the lowest ceiling."""
        return self.pipeline / self.lowest.videos_per_second

    @property
    def shared_ratio(self) -> float | None:
        """Pipeline speed relative to what the shared cores allow."""
        return None if self.shared is None else self.pipeline / self.shared


def bench(operator: VideoCaptioningFromVLMMapper, input: str | AnyPath, *, clips: int = 64) -> BenchReport:  # noqa: A002
    """Measure each stage alone and the whole pipeline, on the first videos of a data set.

    Args:
        operator: the operator with the settings to measure; its model is loaded.
        input: as for `caption_file`.
        clips: most videos in the sample.

    Raises:
        DataError: the input, or every video of the sample, is unreadable.
        ModelError: the model cannot be loaded.
    """
    source = open_source(input, images=operator.limits.allow_images)
    given = Input.open(source, operator.planner.names)
    rows, requests = _sample(operator, given, clips)
    operator.start()
    report, sample = _read_alone(operator, requests, root=operator.video_root or source.folder)
    captioner = operator.captioner
    _exhaust(captioner.caption(iter(sample[:1])))
    if isinstance(captioner, Preparing):
        report.ceilings.append(Ceiling("prepare", _rate(captioner.prepare(iter(sample)), len(sample)), "one thread"))
    size_name = "batch size" if operator.spec is None else backend_of(operator.spec).size_name
    _model_alone(report, captioner, sample, size_name=size_name)
    if isinstance(captioner, OnCores) and captioner.cores:
        report.shared = _shared(report, captioner.cores)
    at_once = _videos_at_once(captioner, sample, report.recommended.get("--batch-size"))
    largest = max(clip.nbytes for _, clip in sample)
    del sample
    _whole(report, operator, input, limit=rows)
    if _is_doubtful(report):
        report.recommended.clear()
    else:
        _recommend_workers(report)
        _recommend_prefetch(report, at_once, largest, in_use=operator.pool.prefetch_bytes)
    return report


def _sample(operator: VideoCaptioningFromVLMMapper, given: Input, clips: int) -> tuple[int, list[CaptionRequest]]:
    """The number of first rows that have so many videos, and the requests about these."""
    planner = replace(operator.planner, form=given.form)
    rows, videos, requests = 0, 0, list[CaptionRequest]()
    for row in given.rows():
        if videos >= clips:
            break
        requests += planner.plan(row, rows).requests
        rows += 1
        videos += len(given.form.videos(row))
    return rows, requests[:clips]


def _read_alone(
    operator: VideoCaptioningFromVLMMapper, requests: Sequence[CaptionRequest], *, root: AnyPath
) -> tuple[BenchReport, list[Pair]]:
    """Read the sample while nothing else is busy, and keep it."""
    policy = operator.policy
    if policy is None:
        raise DataError("this captioner uses no frames: there is nothing to measure")
    settings: dict[str, Any] = {"limits": operator.limits, "root": root}
    _exhaust(ClipStream(operator.pool, requests[:1], policy, **settings))
    stream = ClipStream(operator.pool, requests, policy, **settings)
    began = time.perf_counter()
    read = list(_kept(stream))
    seconds = time.perf_counter() - began
    sample = [(request, clip) for request, clip in read if isinstance(clip, Clip)]
    if not sample:
        raise DataError(f"none of the {len(requests)} videos in the sample can be read; the first: {_first(read)}")
    report = BenchReport(len(sample))
    report.workers = max(1, stream.workers)
    report.ceilings.append(Ceiling("decode", len(read) / seconds, _processes(report.workers)))
    report.notes += _remarks(len(requests), read, sample)
    return report, sample


def _kept(stream: ClipStream) -> Iterator[tuple[CaptionRequest, Clip | Failure]]:
    nbytes = 0
    for request, clip in stream:
        yield request, clip
        nbytes += clip.nbytes if isinstance(clip, Clip) else 0
        if nbytes > MAX_SAMPLE_BYTES:
            stream.close()


def _remarks(asked: int, read: Sequence[Any], sample: Sequence[Pair]) -> list[str]:
    notes = []
    if len(read) < asked:
        notes.append(f"the sample was cut to {len(read)} of {asked} videos, {MAX_SAMPLE_BYTES >> 20} MiB of pixels")
    if len(sample) < len(read):
        notes.append(f"{len(read) - len(sample)} videos in the sample are unreadable; the model runs without them")
    if len(sample) < FEW_CLIPS:
        notes.append(
            f"{len(sample)} videos are few: startup and shutdown of the pipeline weigh more than in a long run"
        )
    return notes


def _model_alone(report: BenchReport, captioner: Captioner, sample: list[Pair], *, size_name: str) -> None:
    """Measure the model with clips in memory; if its batch size can be set, at the best of several."""
    if not isinstance(captioner, Sized):
        rate = _rate(captioner.caption(iter(sample)), len(sample))
        report.ceilings.append(Ceiling("model", rate, "as it is set"))
        return
    first = captioner.batch_size
    sizes = sorted({max(1, min(round(first * step), len(sample))) for step in BATCH_STEPS})
    rates = {}
    for size in sizes:
        captioner.batch_size = size
        rates[size] = _rate(captioner.caption(iter(sample)), len(sample))
    captioner.batch_size = first
    now = rates[min(first, len(sample))]
    best = max(rates, key=lambda size: rates[size])
    if rates[best] > WORTH_CHANGING * now:
        report.recommended["--batch-size"] = best
    others = ", ".join(f"{size}: {rate:.2f}" for size, rate in rates.items())
    how = f"{size_name} {best}, the best of {others}; currently {first}"
    report.ceilings.append(Ceiling("model", rates[best], how))


def _shared(report: BenchReport, model_cores: int) -> float:
    """All cores divided by the core time of a video, in the reading processes and in the model on its own number of
    cores. At most the lowest ceiling, which may leave cores idle."""
    speed = {one.stage: one.videos_per_second for one in report.ceilings}
    cores = usable_processors()
    allowed = cores / (min(report.workers, cores) / speed["decode"] + min(model_cores, cores) / speed["model"])
    return min(allowed, report.lowest.videos_per_second)


def _videos_at_once(captioner: Captioner, sample: Sequence[Pair], batch_size: int | None) -> int:
    """Videos that the model takes together, with the recommended batch size or else the current one."""
    if not isinstance(captioner, OnCores):
        return 1
    in_use = captioner.batch_size
    captioner.batch_size = batch_size or in_use
    try:
        return captioner.videos_at_once(sample)
    finally:
        captioner.batch_size = in_use


def _whole(report: BenchReport, operator: VideoCaptioningFromVLMMapper, input: str | AnyPath, *, limit: int) -> None:  # noqa: A002
    """Measure the whole pipeline, from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        summary = caption_file(operator, input, Path(folder) / "captions.jsonl", limit=limit)
    report.pipeline = summary.videos_per_second
    report.bound = summary.stages.line() if summary.stages is not None else ""


def _is_doubtful(report: BenchReport) -> bool:
    """Whether the figures are implausible; a note then says so."""
    doubtful = report.ratio > DOUBTFUL_RATIO and report.clips >= FEW_CLIPS
    if doubtful:
        report.notes.append(
            f"the pipeline was {report.ratio:.1f} times as fast as {report.lowest.stage} alone, which is impossible: "
            "other work disturbed the measurement, so nothing is recommended; run it again on a quiet machine"
        )
    return doubtful


def _recommend_prefetch(report: BenchReport, at_once: int, largest: int, *, in_use: int | None) -> None:
    """Recommend room for the model's next videos plus those being read, if the limit is lower: the current limit, or
    else that of the recommended number of processes."""
    workers = report.recommended["--workers"]
    needed, bound = (at_once + workers) * largest, in_use or workers * MAX_BYTES_PER_WORKER
    if needed > bound:
        report.recommended["--prefetch-mib"] = -(-needed >> 20)
    report.notes.append(
        f"the model takes {at_once} of these videos at once, with up to {largest / 2**20:.1f} MiB of frames each; with "
        f"those being read that is {-(-needed >> 20)} MiB, and --prefetch-mib is {bound >> 20}"
    )


def _recommend_workers(report: BenchReport) -> None:
    """Recommend processes that keep the model busy: as many as its speed requires, up to the number of cores."""
    speed = {one.stage: one.videos_per_second for one in report.ceilings}
    needed = math.ceil(HEADROOM * speed["model"] / (speed["decode"] / report.workers))
    report.recommended["--workers"] = max(1, min(needed, usable_processors()))
    if needed > usable_processors():
        report.notes.append(
            f"reading for this model takes about {needed} cores, but this machine has {usable_processors()}: show "
            "fewer frames (--fps, --max-frames), or allow cheaper ones (--time-tolerance)"
        )


def _rate(results: Iterable[Any], count: int) -> float:
    began = time.perf_counter()
    _exhaust(results)
    return count / (time.perf_counter() - began)


def _exhaust(results: Iterable[Any]) -> None:
    for _ in results:
        pass


def _first(read: Sequence[tuple[CaptionRequest, Clip | Failure]]) -> str:
    return next((f"{outcome.kind}: {outcome.message}" for _, outcome in read if isinstance(outcome, Failure)), "")


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def print_report(report: BenchReport, console: Console) -> None:
    """Print the speeds, their ratio, and the recommended settings."""
    from rich.table import Table

    table = Table(title=f"sample of {report.clips} videos")
    for name in ("stage alone", "videos/s", "how"):
        table.add_column(name, justify="right" if name == "videos/s" else "left")
    for one in report.ceilings:
        table.add_row(one.stage, f"{one.videos_per_second:.2f}", one.how)
    table.add_section()
    share = f"{100 * report.ratio:.0f} % of the lowest ceiling ({report.lowest.stage})"
    table.add_row("whole pipeline", f"{report.pipeline:.2f}", share)
    if report.shared is not None and report.shared_ratio is not None:
        told = f"computed: decode and model take turns on them; the pipeline is at {100 * report.shared_ratio:.0f} %"
        table.add_row("the same cores", f"{report.shared:.2f}", told)
    console.print(table)
    console.print(printable(report.bound), soft_wrap=True, markup=False)
    settings = " ".join(f"{name} {value}" for name, value in report.recommended.items())
    if settings:
        console.print(f"recommended: {settings}", soft_wrap=True, markup=False)
    for note in report.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True, markup=False)
