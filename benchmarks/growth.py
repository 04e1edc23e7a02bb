"""What a row costs, and what memory is needed, as a data set grows; each run in a process of its own.

`python -m benchmarks.growth` writes `runs/benchmarks/growth.json`. Cost: a scripted captioner over small real clips, so
that nothing but our own work is measured. Memory: the bundled model over 200 and 2,000 clips.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.clips import ClipKind, make_clips
from benchmarks.processes import cpu_seconds, measured, tell

WORK = Path("runs/benchmarks")
OUT = WORK / "growth.json"
MODEL = "reelscribe/shapes"
TINY = (ClipKind(72, 96, 1, fps=12, key_frame_every=12),)
FILES = 40
ROWS = (100, 1_000, 10_000)
CLIPS = (200, 2_000)
ROUNDS = 3


def data_of(count: int) -> Path:
    """A data file with as many rows, each with a file name of its own, so that every row is read anew."""
    folder, files = WORK / "tiny", make_clips(WORK / "clips_tiny", FILES, kinds=TINY)
    data = WORK / f"tiny_{count}.jsonl"
    if data.exists():
        return data
    folder.mkdir(exist_ok=True)
    with data.open("w", encoding="utf-8") as lines:
        for row in range(count):
            link = folder / f"{row}.mp4"
            if not link.is_symlink():
                link.symlink_to(files[row % FILES].resolve())
            lines.write(json.dumps({"id": row, "video": str(link.absolute())}) + "\n")
    return data


def scripted(count: int) -> dict[str, float]:
    """Rows through the runner with a captioner that costs nothing."""
    from reelscribe import FramePolicy, ScriptedCaptioner

    policy = FramePolicy(num_frames=4, max_frame_pixels=64 * 64, min_pixels=1024)
    return captioned(count, captioner=ScriptedCaptioner(_words, policy=policy))


def _words(request: Any, candidate: int) -> str:
    return f"row {request.id.row}, candidate {candidate}"


def model(count: int) -> dict[str, float]:
    """Rows through the runner with the bundled model, texts of eight tokens."""
    return captioned(count, hf_model=MODEL, sampling_params={"max_tokens": 8, "temperature": 0})


def captioned(count: int, **parameters: Any) -> dict[str, float]:
    """A whole run, and what it took."""
    from reelscribe import VideoCaptioningFromVLMMapper
    from reelscribe.runners.run.run import caption_file

    data = data_of(count)
    operator = VideoCaptioningFromVLMMapper(**parameters)
    operator.start()
    began, worked = time.perf_counter(), cpu_seconds()
    summary = caption_file(operator, data, WORK / "tiny_out.jsonl", overwrite=True)
    seconds = time.perf_counter() - began
    peaks = [_peak_mib(worker.pid) for worker in operator.pool.workers]
    operator.close()
    return {
        "rows": summary.rows_out,
        "failed": summary.failed_rows,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - worked,
        "peak_mib": _peak_mib(os.getpid()),
        "workers_peak_mib": sum(peaks),
    }


def _peak_mib(pid: int) -> float:
    """Largest resident size of a process so far; memory shared with another process counts in both."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


MEASURES = {"scripted": scripted, "model": model}


def all_rounds() -> dict[str, list[dict[str, Any]]]:
    """Every size, in turn."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for name, counts in (("scripted", ROWS), ("model", CLIPS)):
            for count in counts:
                run = measured([sys.executable, "-m", "benchmarks.growth", "--measure", name, "--count", str(count)])
                found.setdefault(f"{name}.{count}", []).append(run)
                print(f"{name} {count}: {run}", flush=True)
    return found


def figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Peaks of the long run over those of the short one, and milliseconds a row."""
    flat = {
        f"rows.{count}.milliseconds_a_row": statistics.median(
            1000 * run["seconds"] / run["rows"] for run in found[f"scripted.{count}"]
        )
        for count in ROWS
    }
    for few_rows, many_rows in pairwise(ROWS):  # the start of a run, processes above all, is in neither
        flat[f"rows.to_{many_rows}.milliseconds_a_further_row"] = statistics.median(
            1000 * (long["seconds"] - short["seconds"]) / (many_rows - few_rows)
            for short, long in zip(found[f"scripted.{few_rows}"], found[f"scripted.{many_rows}"], strict=True)
        )
    few, many = (_peaks(found[f"model.{count}"]) for count in CLIPS)
    flat["memory.growth"] = many / few
    few, _, many = (_peaks(found[f"scripted.{count}"]) for count in ROWS)
    flat["memory.growth_scripted"] = many / few
    return flat


def _peaks(runs: list[dict[str, Any]]) -> float:
    """Peaks of the main process and of the workers, together."""
    return statistics.median(run["peak_mib"] + run["workers_peak_mib"] for run in runs)


def main() -> None:
    """One measurement, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=MEASURES)
    parser.add_argument("--count", type=int, default=100)
    asked = parser.parse_args()
    if asked.measure:
        tell(MEASURES[asked.measure](asked.count))
        return
    found = all_rounds()
    OUT.write_text(json.dumps({"figures": figures(found), "found": found}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
