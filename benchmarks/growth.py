"""What a row costs, and what memory is needed, as a data set grows; each run in a process of its own.

`python -m benchmarks.growth` writes `runs/benchmarks/growth.json`. Cost: a scripted captioner over small real clips, so
that nothing but our own work is measured. Memory: the bundled model over 200 and 2,000 clips.

`python -m benchmarks.growth --journal --before WORKTREE` measures rows without reading: answered for the first time,
made again from the journal, and updated with another selector, in turn with the package of another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
JOURNAL_ROWS = (500, 10_000)
"""The start of a run is in both."""
CANDIDATES = 4
WAYS = ("answered", "replayed", "updated")


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


def journal(count: int) -> dict[str, float]:
    """Rows a second of processor time, and of the clock, beyond those of the shortest run; nothing is read."""
    spent = {few: ways_of(few) for few in (JOURNAL_ROWS[0], count)}
    flat: dict[str, float] = {"rows": count, "peak_mib": _peak_mib(os.getpid())}
    for way in WAYS:
        (cpu_few, wall_few), (cpu, wall) = (spent[rows][way] for rows in spent)
        flat[f"{way}.rows_a_core_second"] = (count - JOURNAL_ROWS[0]) / (cpu - cpu_few)
        flat[f"{way}.rows_a_second"] = (count - JOURNAL_ROWS[0]) / (wall - wall_few)
    return flat


def ways_of(count: int) -> dict[str, tuple[float, float]]:
    """Seconds of processor time and of the clock for each way of a run."""
    folder = WORK / f"journal_{os.getpid()}_{count}"
    folder.mkdir(parents=True)
    data, output = folder / "in.jsonl", folder / "out.jsonl"
    with data.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"id": row, "video": f"clips/clip{row}.mp4"}) + "\n" for row in range(count))
    try:
        answered = timed(data, output)
        output.unlink()
        replayed = timed(data, output)
        return {"answered": answered, "replayed": replayed, "updated": timed(data, output, "all", update=True)}
    finally:
        shutil.rmtree(folder)


def timed(data: Path, output: Path, keep: str = "random_any", **given: Any) -> tuple[float, float]:
    """One run with words of usual length."""
    from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper

    try:
        from reelscribe.runners.run.run import caption_file
    except ImportError:  # where versions before had it
        from reelscribe.runners.local import caption_file  # type: ignore[import-not-found, no-redef]

    operator = VideoCaptioningFromVLMMapper(
        captioner=ScriptedCaptioner(_sentence), caption_num=CANDIDATES, keep_candidate_mode=keep
    )
    worked, began = time.process_time(), time.perf_counter()
    caption_file(operator, data, output, **given)
    return time.process_time() - worked, time.perf_counter() - began


def _sentence(request: Any, candidate: int) -> str:
    return (
        f"candidate {candidate}: " + "a person walks along a street while cars pass by " * 2 + str(request.seed % 1000)
    )


MEASURES = {"scripted": scripted, "model": model, "journal": journal}


def side_by_side(before: Path, *, rounds: int) -> dict[str, Any]:
    """The journal of this checkout and of another one, turn by turn, with the ratios of medians."""
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    for _ in range(rounds):
        for name, checkout in (("before", before), ("now", Path())):
            path = f"PYTHONPATH={(checkout / 'src').resolve()}"
            measure = ["--measure", "journal", "--count", str(JOURNAL_ROWS[1])]
            found[name].append(measured(["env", path, sys.executable, "-m", "benchmarks.growth", *measure]))
            print(f"{name}: {found[name][-1]}", flush=True)
    flat = {
        f"{name}.{key}": statistics.median(run[key] for run in runs) for name, runs in found.items() for key in runs[0]
    }
    ratios = {
        f"{way}.ratio": statistics.median(
            now[f"{way}.rows_a_core_second"] / then[f"{way}.rows_a_core_second"]
            for then, now in zip(found["before"], found["now"], strict=True)
        )
        for way in WAYS
    }
    return {"figures": {**flat, **ratios}, "found": found}


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
    parser.add_argument("--journal", action="store_true")
    parser.add_argument("--before", type=Path, help="another checkout of the package, such as a worktree")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    if asked.measure:
        tell(MEASURES[asked.measure](asked.count))
        return
    if asked.journal:
        made = side_by_side(asked.before or Path(), rounds=asked.rounds)
        (WORK / "growth_journal.json").write_text(json.dumps(made, indent=1), "utf-8")
        print(json.dumps(made["figures"], indent=1))
        return
    found = all_rounds()
    OUT.write_text(json.dumps({"figures": figures(found), "found": found}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
