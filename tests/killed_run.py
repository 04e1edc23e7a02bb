"""A run of `reelscribe caption` with scripted words that kills itself at a chosen moment; started by test_resume.

`python killed_run.py STAGE COUNT caption …` ends with SIGKILL when STAGE is reached for the COUNTth time.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import reelscribe.cli as cli
import reelscribe.operator as mapper
from reelscribe import ScriptedCaptioner
from reelscribe.data import Target, jsonl, parquet, temporary
from reelscribe.runners.run import run as run_module
from reelscribe.runners.run.answers import Answers
from reelscribe.runners.run.journal import Journal
from reelscribe.runners.run.part_records import PartRecords
from reelscribe.types import CaptionRequest
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes import clip_stream

PART_ROWS = 40

STAGES: dict[str, list[tuple[Any, str]]] = {
    "decode": [(clip_stream.ClipStream, "_deliver")],
    "caption": [(ScriptedCaptioner, "_answer")],
    "answer": [(Answers, "add")],
    "write": [(jsonl.JsonlSink, "write"), (parquet.ParquetSink, "write")],
    "rename": [(temporary.TemporaryFile, "commit")],
    "part": [(PartRecords, "add")],
    "join": [(Target, "join")],
    "copy": [(shutil, "copyfileobj")],
    "failures": [(run_module, "write_failures")],
    "finish": [(Journal, "finish")],
}
"""Stage to the functions that are killed as they begin, or as they have ended where the count is negative."""


def words(request: CaptionRequest, i: int) -> str:
    """Words that depend on the request's seed, so that a row asked otherwise shows."""
    name = Path(request.video).stem
    if name.startswith("mute"):
        raise ValueError(f"{name} says nothing")
    return f"{name} {i} {request.seed % 1000}"


def kill_at(stage: str, count: int) -> None:
    """Arrange for the end."""
    left = abs(count)

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and count > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            made = function(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return wrapped

    for owner, name in STAGES[stage]:
        setattr(owner, name, killing(getattr(owner, name)))


if __name__ == "__main__":
    policy = FramePolicy(min_frames=2, max_frames=2)
    mapper.load_captioner = lambda spec: ScriptedCaptioner(words, policy=policy)  # type: ignore[assignment]
    run_module.caption_file = partial(run_module.caption_file, part_rows=PART_ROWS)
    if sys.argv[1] != "never":
        kill_at(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["reelscribe", *sys.argv[3:]]
    cli.main()
