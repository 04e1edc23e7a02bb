"""A long run at full speed, watched from outside: open files, processes, shared and resident memory must stay flat.

`python -m benchmarks.soak --minutes 30` captions rows with the bundled model until the time is up, stops the run as
Ctrl-C does, and writes `runs/benchmarks/soak.json` and `docs/reliability/soak.png`. One row in fifty cannot be read;
one in five hundred fails only while it is decoded, so that a new process reads it once more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.clips import ClipKind, make_clips

WORK = Path("runs/benchmarks")
OUT = WORK / "soak.json"
PLOT = Path("docs/reliability/soak.png")
KINDS = (ClipKind(72, 96, 1, fps=12, key_frame_every=12), ClipKind(240, 320, 2, fps=24, key_frame_every=24))
FILES = 40
ROWS_A_SECOND = 200
"""More rows than any machine here captions, so that the time ends the run and not the rows."""
SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 0.2
"""The part of the run after which everything should be flat."""
MIB = 1 << 20


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows whose time windows differ, so that every one is read anew."""
    files = [str(path.resolve()) for path in make_clips(WORK / "clips_soak", FILES, kinds=KINDS)]
    text, damaged = _text(), _damaged(Path(files[0]))
    for row in range(count):
        video = damaged if row % 500 == 499 else text if row % 50 == 49 else files[row % FILES]
        yield {"id": row, "video": video, "start_seconds": (row // FILES % 20_000) * 1e-6}


def _text() -> str:
    path = WORK / "soak_text.mp4"
    path.write_text("no video at all")
    return str(path.resolve())


def _damaged(good: Path) -> str:
    """A file whose header is whole and whose pictures are not."""
    path, data = WORK / "soak_damaged.mp4", bytearray(good.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov", start) - 4 if b"moov" in data[start:] else len(data)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return str(path.resolve())


def sample(pid: int) -> dict[str, float]:
    """What a run holds at this moment, its processes that read included."""
    processes = [pid, *_children(pid)]
    return {
        "descriptors": _count(pid, "fd"),
        "processes": len(processes),
        "threads": _count(pid, "task"),
        "resident_mib": _kib(pid, "VmRSS") / 1024,
        "workers_mib": sum(_kib(one, "VmRSS") for one in processes[1:]) / 1024,
        "shared_mib": sum(_shared(one) for one in processes) / MIB,
    }


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def _count(pid: int, what: str) -> int:
    return len(list(Path(f"/proc/{pid}/{what}").iterdir()))


def _kib(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _shared(pid: int) -> int:
    """Bytes of the nameless memory that frames travel in."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    spans = (line.split()[0].split("-") for line in lines if "memfd:reelscribe" in line)
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def run(minutes: float) -> dict[str, Any]:
    """Start, watch and stop."""
    source, output = WORK / "soak.jsonl", WORK / "soak_out.jsonl"
    with source.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows(int(minutes * 60 * ROWS_A_SECOND)))
    command = [sys.executable, "-m", "reelscribe", "caption", str(source), "-o", str(output), "--overwrite",
               "--model", "reelscribe/shapes", "--max-tokens", "8"]  # fmt: skip
    began = time.monotonic()
    with (WORK / "soak.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_heed_interrupts)
        samples = list(_watch(process, began, minutes * 60))
        stopped = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
    last = (WORK / "soak.log").read_text("utf-8").splitlines()[-1]
    return {"minutes": minutes, "exit_code": code, "stopped_in_seconds": time.monotonic() - stopped, "last_line": last,
            "cores": os.cpu_count(), "samples": samples}  # fmt: skip


def _heed_interrupts() -> None:
    """Shells start what runs in the background deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watch(process: subprocess.Popen[bytes], began: float, seconds: float) -> Iterator[dict[str, float]]:
    while (now := time.monotonic() - began) < seconds:
        time.sleep(min(SAMPLE_SECONDS, seconds - now))
        if process.poll() is not None:
            raise RuntimeError(f"the run has ended with exit code {process.returncode}; see {WORK / 'soak.log'}")
        one = {"seconds": time.monotonic() - began, **sample(process.pid)}
        with (WORK / "soak_samples.jsonl").open("a") as lines:  # in case this process is ended
            lines.write(json.dumps(one) + "\n")
        yield one


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of the last fifth over that of the fifth behind the warm-up."""
    fifth = max(1, int(len(samples) * WARM_UP_SHARE))
    early, late = samples[fifth : 2 * fifth], samples[-fifth:]
    names = [name for name in samples[0] if name not in ("seconds", "shared_mib")]
    return {
        name: statistics.median(one[name] for one in late) / statistics.median(one[name] for one in early)
        for name in names
    }


def main() -> None:
    """Run, write the figures, draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--plot", type=Path, default=PLOT)
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    found = run(given.minutes)
    found["growth"] = growth(found["samples"])
    given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    plots.soak(given.plot, found["samples"])
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    main()
