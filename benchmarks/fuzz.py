"""Thousands of mutated videos through the processes that read: what comes out, and whether anything is hurt.

    python -m benchmarks.fuzz --decodes 20000

Each file is a fixture of the tests with some bytes changed, cut off, moved, or taken from another fixture; which ones
is told by `--seed` and the file's number alone. Half are handed over as bytes, half as files. Those that crash a
process, hang it, or take all its memory are kept beside the figures, which go to `runs/benchmarks/fuzz.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from reelscribe.types import CaptionRequest, Clip, Failure, RequestId
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.processes.clip_stream import ClipStream
from reelscribe.video.processes.pool import WorkerPool

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "runs/benchmarks/fuzz.json"
LIMITS = ReadLimits(max_source_pixels=4096 * 4096, max_read_seconds=20.0, max_read_memory_mib=1024)
KEPT_KINDS = ("timeout", "crashed", "out_of_memory")
"""Failures whose files are kept."""
SAMPLE_EVERY = 200
"""Decodes between two looks at the memory of all processes."""
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers that sizes and counts are set to."""
WAIT_SLACK_SECONDS = 10.0
"""Time for what comes besides two tries at reading: killing a process, and starting another."""
GROWTH_BYTES = 32 << 20
"""What this process may grow by in the second half; in the first it fills its store of clips read lately."""
EDGE_BYTES = 1024
"""The first and last bytes of a file, where headers and indices are, get half of the changes."""


# files


def fixture_files(folder: Path) -> dict[str, bytes]:
    """Every codec and container of the tests' fixtures, rendered."""
    sys.path.insert(0, str(ROOT / "tests"))
    import clips

    return {name: clips.render_codec(name, folder).read_bytes() for name in clips.CODECS}


def _place(rng: np.random.Generator, size: int) -> int:
    edge = min(size, EDGE_BYTES)
    if rng.random() < 0.5:
        return int(rng.integers(size))
    at = int(rng.integers(edge))
    return at if rng.random() < 0.5 else size - 1 - at


def _flip(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    for _ in range(int(2 ** rng.uniform(0, 7))):
        data[_place(rng, len(data))] ^= 1 << int(rng.integers(8))


def _cut(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    del data[int(rng.integers(len(data))) :]


def _number(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    width = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(NUMBERS)) & (256**width - 1)
    at = _place(rng, len(data))
    data[at : at + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")


def _remove(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    at = _place(rng, len(data))
    del data[at : at + int(2 ** rng.uniform(0, 10))]


def _repeat(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    at = _place(rng, len(data))
    data[at:at] = data[at : at + int(2 ** rng.uniform(0, 10))]


def _blank(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    at, length = _place(rng, len(data)), int(2 ** rng.uniform(0, 10))
    data[at : at + length] = bytes([int(rng.choice([0, 255]))]) * min(length, len(data) - at)


def _splice(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at, start, length = _place(rng, len(data)), _place(rng, len(other)), int(2 ** rng.uniform(2, 12))
    data[at : at + length] = other[start : start + length]


MUTATIONS = (_flip, _cut, _number, _remove, _repeat, _blank, _splice)


def mutated(files: dict[str, bytes], number: int, *, seed: int) -> tuple[str, bytes]:
    """The name of the fixture, and its changed bytes, for a file's number."""
    rng = np.random.default_rng((seed, number))
    names = list(files)
    name, other = rng.choice(names), rng.choice(names)
    data = bytearray(files[name])
    for _ in range(int(rng.integers(1, 4))):
        rng.choice(MUTATIONS)(data, rng, files[other])
        data = data or bytearray(b"\0")
    return str(name), bytes(data)


# figures


@dataclass(slots=True)
class Figures:
    """What came out."""

    decodes: int = 0
    """Videos that were answered."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Clips, and failures by kind."""
    second_tries: Counter[str] = field(default_factory=Counter)
    """Failures after a second try, by kind."""
    by_fixture: dict[str, Counter[str]] = field(default_factory=dict)
    """The same for each fixture."""
    kept: list[str] = field(default_factory=list)
    """Files that hurt a process."""
    processes: int = 0
    """Processes that were started."""
    seconds: float = 0.0
    """Wall-clock time."""
    longest_wait_seconds: float = 0.0
    """Longest time between two answers."""
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Decodes so far, resident bytes of this process, and of the largest that reads."""

    def count(self, fixture: str, outcome: Clip | Failure) -> None:
        """Note one answer."""
        kind = "clip" if isinstance(outcome, Clip) else outcome.kind
        self.decodes += 1
        self.outcomes[kind] += 1
        self.by_fixture.setdefault(fixture, Counter())[kind] += 1
        if isinstance(outcome, Failure) and outcome.attempts > 1:
            self.second_tries[kind] += 1

    def hurts(self) -> list[str]:
        """What went wrong: a wait that no limit explains, or memory that grows. Failures of files are none."""
        found = []
        if self.longest_wait_seconds > 2 * LIMITS.max_read_seconds + WAIT_SLACK_SECONDS:
            found.append(f"nothing was answered for {self.longest_wait_seconds:.0f} s")
        middle, last = (self.memory[(len(self.memory) - 1) // 2][1], self.memory[-1][1]) if self.memory else (0, 0)
        if last > middle + GROWTH_BYTES:
            found.append(f"this process grew from {middle >> 20} to {last >> 20} MiB in the second half")
        if any(readers > LIMITS.max_read_memory_mib << 20 for _, _, readers in self.memory):
            found.append("a process that reads has more memory than it may")
        return found


def resident_bytes(pid: int | str) -> int:
    """Memory a process has in use; 0 where it is gone or the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:")), 0)


def fuzz(files: dict[str, bytes], *, decodes: int, seed: int, workers: int, seconds: float, kept: Path) -> Figures:
    """Read mutated files until there are so many, or the time is over.

    Args:
        files: name and bytes of what is mutated.
        decodes: how many.
        seed: of all mutations.
        workers: processes.
        seconds: no file is begun after this time.
        kept: folder for files that hurt a process.
    """
    figures, pids, began = Figures(), set(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        requests = _requests(files, Path(folder), decodes=decodes, seed=seed, until=began + seconds)
        pool = WorkerPool(workers)
        before = began
        for request, outcome in ClipStream(pool, requests, FramePolicy(), limits=LIMITS):
            now = time.monotonic()
            figures.longest_wait_seconds, before = max(figures.longest_wait_seconds, now - before), now
            figures.count(request.prompt, outcome)
            pids |= {worker.pid for worker in pool.workers}
            _look_after(request, outcome, figures, kept)
            if figures.decodes % SAMPLE_EVERY == 0:
                largest = max(resident_bytes(worker.pid) for worker in pool.workers)
                figures.memory.append((figures.decodes, resident_bytes("self"), largest))
        pool.close()
    figures.processes, figures.seconds = len(pids), time.monotonic() - began
    return figures


def _requests(
    files: dict[str, bytes], folder: Path, *, decodes: int, seed: int, until: float
) -> Iterator[CaptionRequest]:
    for number in range(decodes):
        if time.monotonic() > until:
            return
        name, data = mutated(files, number, seed=seed)
        video: Path | bytes = data
        if number % 2:
            video = folder / f"{number}-{name}"
            video.write_bytes(data)
        yield CaptionRequest(RequestId(number, 0), video, name)


def _look_after(request: CaptionRequest, outcome: Clip | Failure, figures: Figures, kept: Path) -> None:
    """Keep the file of a process that was hurt; remove the others."""
    path = request.video if isinstance(request.video, Path) else None
    if isinstance(outcome, Failure) and outcome.kind in KEPT_KINDS:
        kept.mkdir(parents=True, exist_ok=True)
        name = f"{outcome.kind}-{request.id.row}-{request.prompt}"
        (kept / name).write_bytes(path.read_bytes() if path else request.video)
        figures.kept.append(f"{name}: {outcome.message}")
    if path:
        path.unlink()


def main(arguments: list[str] | None = None) -> None:
    """Read what is asked, fuzz, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, default=20_000, help="files to read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no file after this (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the figures (default: %(default)s)")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        files = fixture_files(Path(folder))
    given = {name: getattr(asked, name) for name in ("decodes", "seed", "workers", "seconds")}
    figures = fuzz(files, **given, kept=asked.out.with_suffix(""))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({one.name: getattr(figures, one.name) for one in fields(figures)}, indent=1) + "\n")
    print(f"{figures.decodes} decodes in {figures.seconds:.0f} s: {dict(figures.outcomes)}")
    print(f"{figures.processes} processes, longest wait {figures.longest_wait_seconds:.1f} s, kept {len(figures.kept)}")
    if figures.hurts():
        sys.exit("; ".join(figures.hurts()))


if __name__ == "__main__":
    main()
