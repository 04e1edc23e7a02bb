"""A data set through the operator on a Ray cluster, with the files, the journal and the exit codes of a local run.

The cluster answers requests; what becomes of the answers is done here, by the run that this machine would do alone. So
the output is the same, and a run can be begun in one place and ended in the other.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...operator import VideoCaptioningFromVLMMapper
from ...settings import RunSettings
from ..report.progress import Progress
from ..report.summary import RunSummary
from ..run.run import run_file
from .answerer import RayAnswerer
from .cluster import connect, disconnect
from .settings import RaySettings


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
            partial(RayAnswerer, cluster),
            operator,
            input,
            output,
            progress=progress,
            settings=settings or RunSettings(**given),
        )
    finally:
        if ours:
            disconnect()
