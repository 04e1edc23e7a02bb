"""What a clip costs at each stage of a run on Ray, beside the model: the figures of docs/scale.md.

`python -m benchmarks.scale` prints them; needs the extra `ray`, and about three minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.clips import REALISTIC, make_clips
from reelscribe import FramePolicy, ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.runners.ray.clip_columns import clips_of, with_clips
from reelscribe.runners.ray.cluster import connect, disconnect
from reelscribe.runners.ray.run import caption_file_ray
from reelscribe.runners.ray.settings import RaySettings
from reelscribe.runners.ray.source import row_tables
from reelscribe.runners.run.run import caption_file
from reelscribe.types import Clip
from reelscribe.video.reader import read_clip

WORK = Path("runs/scale")
CLIPS = 16
POLICY = FramePolicy(fps=2.0, max_frames=64, max_frame_pixels=230_400)
"""Two frames a second, at most 64, at 230,400 pixels each."""
ROWS = 20_000
RAY_ROWS = 6_000
REAL_ROWS = 64


def words(request: Any, i: int) -> str:
    """A caption of usual length."""
    return f"candidate {i}: " + "a person walks along a street while cars pass by " * 2 + str(request.seed % 1000)


def main() -> None:
    """Measure and print."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    clips = make_clips(WORK, CLIPS, kinds=REALISTIC)
    figures = {**reading(clips), **rows_alone(), **answers_alone(), **on_ray(clips)}
    for name, value in figures.items():
        print(f"{name:45} {value:,.4g}")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what comes back."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def reading(paths: list[Path]) -> dict[str, float]:
    """One process, one clip after the other; then packing into a block and out of it."""
    began = time.process_time()
    clips = [clip for path in paths if isinstance(clip := read_clip(str(path), POLICY), Clip)]
    cpu = time.process_time() - began
    table = pa.table({"row": range(len(clips))})
    pack, packed = timed(lambda: with_clips(table, [[clip] for clip in clips]))
    unpack, _ = timed(lambda: [load() for row in clips_of(packed) for load in row if callable(load)])
    count = len(clips)
    return {
        "core seconds to read a clip": cpu / count,
        "MB of frames a clip": sum(clip.nbytes for clip in clips) / count / 1e6,
        "MB of a file": sum(path.stat().st_size for path in paths) / len(paths) / 1e6,
        "ms to pack a clip into a block": 1e3 * pack / count,
        "ms to take it out": 1e3 * unpack / count,
    }


def write_rows(path: Path, videos: list[str], count: int) -> Path:
    """A JSONL file of so many rows."""
    with path.open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": i, "text": f"<__dj__video> {i}", "videos": [videos[i % len(videos)]]}) + "\n")
    return path


def operator(*, reads: bool) -> VideoCaptioningFromVLMMapper:
    """With words that cost nothing."""
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words, policy=POLICY if reads else None))


def rows_alone() -> dict[str, float]:
    """The one task that reads the input."""
    source = write_rows(WORK / "rows.jsonl", ["clip.mp4"], ROWS)
    seconds, tables = timed(lambda: sum(table.nbytes for table in row_tables(source, None)))
    return {"rows read a second": ROWS / seconds, "bytes of a row on its way": tables / ROWS}


def answers_alone() -> dict[str, float]:
    """A whole local run whose model costs nothing: planning, journal, and output."""
    seconds, _ = timed(lambda: caption_file(operator(reads=False), WORK / "rows.jsonl", WORK / "local.jsonl"))
    journal = sum(path.stat().st_size for path in (WORK / ".local.jsonl.run").glob("journal.sqlite*"))
    return {"rows planned, kept and written a second": ROWS / seconds, "bytes of journal a row": journal / ROWS}


def on_ray(clips: list[Path]) -> dict[str, float]:
    """Whole runs on a cluster on this machine: without reading, then with it, beside a local one."""
    empty = write_rows(WORK / "empty.jsonl", ["clip.mp4"], RAY_ROWS)
    real = write_rows(WORK / "real.jsonl", [str(path.absolute()) for path in clips], REAL_ROWS)
    connect(RaySettings())
    try:
        warm_up, _ = timed(lambda: ray_run(write_rows(WORK / "few.jsonl", ["clip.mp4"], 64), reads=False))
        bare, _ = timed(lambda: ray_run(empty, reads=False))
        with_reading, _ = timed(lambda: ray_run(real, reads=True))
    finally:
        disconnect()
    here = operator(reads=True)
    local, _ = timed(lambda: caption_file(here, real, WORK / "real-local.jsonl"))
    here.close()
    return {
        "seconds until a run of 64 rows is done": warm_up,
        "rows a second on Ray without reading": RAY_ROWS / bare,
        "clips a second on Ray, read on this machine": REAL_ROWS / with_reading,
        "clips a second of the local runner": REAL_ROWS / local,
    }


def ray_run(source: Path, *, reads: bool) -> None:
    """One run into a file of its own."""
    caption_file_ray(operator(reads=reads), source, source.with_suffix(".out.jsonl"))


if __name__ == "__main__":
    main()
