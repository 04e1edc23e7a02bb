"""Caption a data set on a Ray cluster, with the files, journal and exit codes of a local run.

The cluster answers requests; the answers are processed here, exactly like in a local run. So the output is identical,
and a run started in one place can be finished in the other.
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

    The output is that of `caption_file`. Videos and the output's folder must have the same paths on every node.

    Args:
        operator: the operator; relative video paths are relative to the input's folder unless it has a `video_root`.
        input: as for `caption_file`.
        output: as for `caption_file`.
        cluster: which cluster, and how much of it to use.
        progress: receives the progress of the run.
        settings: settings of the run.
        given: fields of `RunSettings`, instead of `settings`.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingsError: the cluster does not exist, or the operator cannot be sent to other processes.
        ReelscribeError: anything else that `caption_file` raises.
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
