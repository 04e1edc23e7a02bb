"""CPU time of decoding alone: reelscribe's reader against OpenCV, decord, TorchCodec and a plain loop over PyAV.

`python -m benchmarks.decode` measures every case, several rounds in turn, and writes `runs/benchmarks/decode.json`;
`--real FOLDER` adds files of yours. Each reader runs in its own process (`--measure`), returns the same frames at the
same size, and is used in its cheapest way. Seconds are user and system time of all its threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clips import REALISTIC, make_clips, make_scenes
from benchmarks.long_clip import make_long_clip
from benchmarks.processes import measured, tell
from benchmarks.readers import PEERS, SEEKING, Reader, bare_decoder, prefix, pyav, reelscribe
from benchmarks.wanted import Wanted, choose, compare, read_plan, write_plan
from reelscribe.video.frames.policy import FramePolicy

WORK = Path("runs/benchmarks")
RESULTS = WORK / "decode.json"
LIBRARIES = ("av", "opencv-python-headless", "decord", "torchcodec")
SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"})
CLIPS = 12
ROUNDS = 3
PASSES = 15
"""Processes per reader, if they take turns after every file."""
MIN_CPU_SECONDS = 5.0
"""A measurement rereads its files until it has taken this long: short ones show little."""
OURS = "reelscribe"
TWO_FPS = FramePolicy(fps=2.0)
EIGHT_FRAMES = FramePolicy(fps=None, num_frames=8)
TOLERANCE_SECONDS = 0.25
"""Half the step at two frames a second: the most that leaves moments apart."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is read in several ways."""

    clips: Callable[[Path | None], list[Path]]
    """Files, given the folder of real ones."""
    policy: FramePolicy
    """Which frames."""
    readers: dict[str, dict[str, Reader]]
    """By name, then by the way they are used; reelscribe's is the first."""
    figure: str
    """Prefix of its figures."""
    is_real: bool = False
    """Whether the files are the user's."""
    gives_others: bool = False
    """Whether frames other than the requested ones are not an error."""
    in_turn: bool = False
    """Whether the readers take turns after every file, in one process, as those of one library can: what a busy machine
    does to one it then does to the other."""


def rendered(_real: Path | None) -> list[Path]:
    """Realistic clips."""
    return make_clips(WORK / "clips_real", CLIPS, kinds=REALISTIC)


def short(_real: Path | None) -> list[Path]:
    """Clips of four seconds, 320x240."""
    return make_scenes(WORK / "clips_scenes", CLIPS)


def film(_real: Path | None) -> list[Path]:
    """A file of ten minutes."""
    return [make_long_clip(WORK / "film")]


def real_files(real: Path | None) -> list[Path]:
    """The user's videos."""
    found = sorted(path for path in real.iterdir() if path.suffix.lower() in SUFFIXES) if real else []
    if not found:
        raise SystemExit(f"no videos in {real}: give --real a folder that holds some")
    return found


def against_peers(clips: Callable[[Path | None], list[Path]], policy: FramePolicy, **fields: Any) -> Case:
    """The same frames from each library."""
    return Case(clips, policy, {OURS: {"read_clip": partial(reelscribe, policy=policy)}, **PEERS}, **fields)


def tolerance(clips: Callable[[Path | None], list[Path]], policy: FramePolicy, **fields: Any) -> Case:
    """reelscribe with a tolerance, against itself without."""
    exact = replace(policy, time_tolerance_seconds=0.0)
    ways = {OURS: policy, "exact": exact}
    readers: dict[str, dict[str, Reader]] = {
        name: {"read_clip": partial(reelscribe, policy=way)} for name, way in ways.items()
    }
    return Case(clips, exact, readers, gives_others=True, **fields)


def against_decoder(clips: Callable[[Path | None], list[Path]], name: str, **fields: Any) -> Case:
    """All that reelscribe does, against decoding alone."""
    bare: dict[str, Reader] = {"decodes": partial(bare_decoder, policy=TWO_FPS)}
    ours: dict[str, Reader] = {"read_clip": partial(reelscribe, policy=TWO_FPS)}
    return Case(clips, TWO_FPS, {OURS: ours, name: bare}, figure="decode.vs_", in_turn=True, **fields)


_sparse = against_peers(film, EIGHT_FRAMES, figure="decode.sparse_vs_")
_tolerant = replace(TWO_FPS, time_tolerance_seconds=TOLERANCE_SECONDS)
CASES: dict[str, Case] = {
    "two_fps": against_peers(rendered, TWO_FPS, figure="decode.vs_"),
    "sparse": replace(_sparse, readers=_sparse.readers | SEEKING),
    "tolerance": tolerance(rendered, _tolerant, figure="decode.tolerance_vs_"),
    "bare_short": against_decoder(short, "bare_decoder_short"),
    "bare": against_decoder(real_files, "bare_decoder", is_real=True),
    "real": against_peers(real_files, TWO_FPS, figure="decode.real.vs_", is_real=True),
    "real_tolerance": tolerance(real_files, _tolerant, figure="decode.real.tolerance_vs_", is_real=True),
}


# one reader, in its own process


def measure(read: Reader, plan_file: Path) -> dict[str, float]:
    """CPU seconds for all files, the median of several passes, and whether the frames are the right ones."""
    plan = list(read_plan(plan_file))
    one_pass(read, plan)  # one-time loading and caching do not count
    passes: list[dict[str, float]] = []
    while sum(one["cpu_seconds"] for one in passes) < MIN_CPU_SECONDS:
        passes.append(one_pass(read, plan))
    seconds = statistics.median(one["cpu_seconds"] for one in passes)
    return passes[0] | {"cpu_seconds": seconds, "passes": len(passes)}


def one_pass(read: Reader, plan: list[tuple[Wanted, np.ndarray]]) -> dict[str, float]:
    """Read every file once; looking at the frames is not counted."""
    checks, checking, began = [], 0.0, time.process_time()
    for wanted, copies in plan:
        frames = read(wanted)
        checking -= time.thread_time()
        if frames is not None:
            checks.append(compare(frames, wanted, copies))
        checking += time.thread_time()
    seconds = time.process_time() - began - checking
    right, far = (np.concatenate(parts) for parts in zip(*checks, strict=True)) if checks else (np.ones(1), np.zeros(1))
    return {"cpu_seconds": seconds, "right": float(right.mean()), "grey_levels": float(far.max())}


def measure_in_turn(case: Case, ways: dict[str, str], plan_file: Path, *, passes: int) -> dict[str, Any]:
    """The result of `measure` for each reader, taking turns file by file, in this process."""
    plan, readers = list(read_plan(plan_file)), {name: case.readers[name][way] for name, way in ways.items()}
    for read in readers.values():
        one_pass(read, plan)
    turns: dict[str, Any] = {name: [] for name in readers}
    for _ in range(passes):
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
        for one in plan:
            for name, read in readers.items():
                parts[name].append(one_pass(read, [one]))
        for name, files in parts.items():
            turns[name].append({"cpu_seconds": sum(file["cpu_seconds"] for file in files)})
    return turns


def measure_or_reason(case: str, name: str, way: str) -> dict[str, Any]:
    """The measurement, or why there is none."""
    try:
        return measure(CASES[case].readers[name][way], plan_of(case))
    except Exception as exc:  # each library has its own
        return {"reason": f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"}


def plan_of(case: str) -> Path:
    """The file with the plan of a case."""
    return WORK / "decode" / f"{case}.npz"


# all of them

_THIS = (sys.executable, "-m", "benchmarks.decode")


def run(case: str, name: str, way: str) -> dict[str, Any]:
    """Measure in a separate process."""
    command = [*_THIS, "--measure", name, "--case", case, "--way", way]
    try:
        return measured([*prefix(name, WORK / "decode" / "ffmpeg"), *command])
    except RuntimeError:  # a library crashed the process
        return {"reason": "its process breaks off"}


def run_case(case: str, real: Path | None, *, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every reader of a case: once in each of its ways, then in turn in the way that is cheapest."""
    policy = CASES[case].policy
    plan = [choose(path, policy) for path in CASES[case].clips(real)]
    write_plan(plan, plan_of(case), read=pyav)
    tried = {name: try_ways(case, name, say) for name in CASES[case].readers}
    ways = {name: cheapest(trials) for name, trials in tried.items()}
    if ways[OURS] is None:
        raise RuntimeError(f"{case}: reelscribe itself does not run: {tried[OURS]}")
    running = {name: way for name, way in ways.items() if way is not None}
    turns = take_turns(case, running, rounds=rounds, say=say)
    frames = sum(len(wanted.indices) for wanted in plan)
    return {"files": len(plan), "frames": frames, "tried": tried, "ways": ways, "rounds": turns}


def take_turns(
    case: str, ways: dict[str, str], *, rounds: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Every reader repeatedly, in turn."""
    if CASES[case].in_turn:
        return measured([*_THIS, "--in-turn", json.dumps(ways), "--case", case, "--rounds", str(PASSES)])
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            turns[name].append(run(case, name, way))
            say(f"{case}: round {number + 1}: {name}: {turns[name][-1]}")
    return turns


def try_ways(case: str, name: str, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """One measurement of each way to use a reader."""
    trials = {}
    for way in CASES[case].readers[name]:
        trials[way] = run(case, name, way)
        say(f"{case}: {name}, {way}: {trials[way]}")
    return trials


def cheapest(trials: dict[str, dict[str, Any]]) -> str | None:
    """The way with least CPU time of those with the most right frames; None if none runs."""
    ran = {way: found for way, found in trials.items() if "reason" not in found}
    return min(ran, key=lambda way: (-ran[way]["right"], ran[way]["cpu_seconds"]), default=None)


def figures(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The flat results: our CPU time over theirs, the median of the rounds."""
    return {
        CASES[case].figure + name: statistics.median(
            own["cpu_seconds"] / other["cpu_seconds"]
            for own, other in zip(results["rounds"][OURS], theirs, strict=True)
        )
        for case, results in found.items()
        for name, theirs in results["rounds"].items()
        if name != OURS
    }


def notes(found: dict[str, dict[str, Any]]) -> list[str]:
    """Readers that did not run, and those that gave other frames."""
    lines = []
    for case, results in found.items():
        for name, trials in results["tried"].items():
            way = results["ways"][name]
            if way is None:
                lines.append(f"{name}: not run: {next(iter(trials.values()))['reason']}")
            elif trials[way]["right"] < 1 and not CASES[case].gives_others:
                wrong = 1 - trials[way]["right"]
                lines.append(f"{case}: {name}: {wrong:.1%} of its frames are not the wanted ones")
    return list(dict.fromkeys(lines))


def before() -> dict[str, dict[str, Any]]:
    """Earlier results, by case; empty if the file does not exist."""
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8"))["found"]
    return found


def write(found: dict[str, dict[str, Any]]) -> None:
    """Write the figures and their raw data."""
    results = {
        "figures": {name: round(value, 4) for name, value in figures(found).items()},
        "found": found,
        "notes": notes(found),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    unfinished = RESULTS.with_name(f".{RESULTS.name}")
    unfinished.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    unfinished.rename(RESULTS)


def main() -> None:
    """Measure one reader, and print it; one case, replacing its last figures; or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), help="this one alone")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="a folder of videos to read as well")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--measure", metavar="NAME", help="one reader of the case, in this process")
    parser.add_argument("--way", help="how it is used")
    parser.add_argument("--in-turn", type=json.loads, metavar="JSON", help="several, by name and way, in this process")
    given = parser.parse_args()
    if given.measure is not None:
        tell(measure_or_reason(given.case, given.measure, given.way))
        return
    if given.in_turn is not None:
        tell(measure_in_turn(CASES[given.case], given.in_turn, plan_of(given.case), passes=given.rounds))
        return
    cases = [given.case] if given.case else [name for name, case in CASES.items() if given.real or not case.is_real]
    say = partial(print, flush=True)
    if not given.real and not given.case:
        say("clips of yours are left out: --real FOLDER (make bench REAL=FOLDER) reads them too")
    found = {case: run_case(case, given.real, rounds=given.rounds, say=say) for case in cases}
    write({**(before() if given.case else {}), **found})
    say(json.dumps(figures(found), indent=1), *notes(found), sep="\n")


if __name__ == "__main__":
    main()
