"""Captioners for the tests on a Ray cluster, importable in every process of it: what they do is in the video's name.

Each answer is a line in the file that the environment variable `WORDS_LOG` names: time, process, node, video.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from reelscribe import ScriptedCaptioner
from reelscribe.types import CaptionRequest
from reelscribe.video.frames.moments import FramePolicy

POLICY = FramePolicy(min_frames=2, max_frames=2)


def words(request: CaptionRequest, i: int) -> str:
    """Words that depend on the request's seed; `mute` says nothing, `deadly` ends the process in the cluster."""
    name = Path(request.video).stem
    if name.startswith("mute"):
        return ""
    if name.startswith("deadly") and "ray" in sys.modules:
        os._exit(1)
    return f"{name} {i} {request.seed % 1000}"


class Logged:
    """Writes a line for each answer, to a file that is given as plain text, and takes its time."""

    def __init__(self, log: str, seconds: float = 0.0) -> None:
        self._log = log
        self._seconds = seconds

    def __call__(self, request: CaptionRequest, i: int) -> str:
        time.sleep(self._seconds)
        answer = words(request, i)
        with Path(self._log).open("a") as file:
            file.write(f"{time.time()} {os.getpid()} {_node()} {request.id.row}\n")
        return answer


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else "here"


def captioner(log: str | Path | None = None, *, seconds: float = 0.0, reads: bool = True) -> ScriptedCaptioner:
    """A captioner of these words, that has videos read or not."""
    script = words if log is None else Logged(str(log), seconds)
    return ScriptedCaptioner(script, policy=POLICY if reads else None)
