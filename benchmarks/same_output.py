"""What two versions of the package write for the same commands, compared byte for byte.

    git worktree add /tmp/before REVISION
    python -m benchmarks.same_output /tmp/before/src --ray

Rendered clips, some of them broken, go through `reelscribe caption` with the bundled model in every form of input and
output, with one and with four candidates; each run is made by both versions, and all that it leaves beside its journal
is compared. Runs that the earlier version began and that were killed are resumed by the later one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIPS = 6
BROKEN = {"torn.mp4": 700, "empty.mp4": 0}
"""Files that are cut after so many bytes."""
COMMON = ("--max-tokens", "24", "--workers", "1")
FAILED_ROWS = (0, 3)
"""Exit codes of a run that has ended: all rows captioned, or some failed."""
KEEPS = ("random_any", "similar_one_simhash", "all")


@dataclass(frozen=True, slots=True)
class Case:
    """A command, without its output."""

    name: str
    """How it is listed."""
    source: str
    """Its input, a name in the folder of inputs."""
    output: str
    """The name of its output."""
    options: tuple[str, ...] = ()
    """What it is given besides."""


def cases(*, with_ray: bool) -> Iterator[Case]:
    """All that is compared."""
    four = ("--candidates", "4", "--temperature", "1.0")
    fields = ("--failure-key", "failure", "--finish-reason-key", "reason")
    yield Case("folder to lines", "clips", "folder.jsonl")
    yield Case("folder to Parquet", "clips", "folder.parquet", fields)
    yield Case("folder to a videofolder", "clips", "vf", ("--format", "videofolder", "--with-videos"))
    yield Case("lines to WebDataset", "video.jsonl", "web.tar", ("--with-videos",))
    yield Case("lines to CSV", "video.jsonl", "video.csv", fields)
    yield Case("Parquet to Parquet", "videos.parquet", "videos.parquet", (*four, "--keep", "all"))
    for form in ("video", "videos"):
        yield Case(f"{form}, M = 1", f"{form}.jsonl", f"{form}1.jsonl", (*fields, "--prompt-key", "ask"))
        for keep in KEEPS:
            yield Case(f"{form}, M = 4, {keep}", f"{form}.jsonl", f"{form}-{keep}.jsonl", (*four, "--keep", keep))
    yield Case(
        "videos, originals dropped",
        "videos.jsonl",
        "dropped.jsonl",
        (*four, "--drop-original", "--caption-key", "kept"),
    )
    if with_ray:
        yield Case("video, on a cluster", "video.jsonl", "ray1.jsonl", ("--ray", *fields))
        yield Case("videos, on a cluster", "videos.jsonl", "ray4.jsonl", (*four, "--keep", "all", "--ray"))


def make_inputs(folder: Path) -> None:
    """Clips, a folder of them with broken ones, and data files in both forms of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from reelscribe.demo.render import render_clip
    from reelscribe.models.names import BUNDLED_MODELS

    # a copy, since the revision of a model in a folder goes by the times of its files
    shutil.copytree(BUNDLED_MODELS["reelscribe/shapes"], folder / "shapes")
    clips = folder / "clips"
    clips.mkdir()
    for seed in range(CLIPS):
        render_clip(clips / f"{seed}.mp4", seed, seconds=(2, 3))
    whole = (clips / "0.mp4").read_bytes()
    for name, length in BROKEN.items():
        (clips / name).write_bytes(whole[:length])
    names = [f"clips/{seed}.mp4" for seed in range(CLIPS)] + [f"clips/{name}" for name in BROKEN] + ["clips/gone.mp4"]
    token, end = "<__dj__video>", "<|__dj__eoc|>"
    asks = ["What moves?", None]
    one = [{"video": name, "n": at, "ask": asks[at % 2]} for at, name in enumerate(names)]
    several = [
        {
            "text": f"{token} clip {at} {end} {token} and another {end}",
            "videos": [name, names[at - 1]],
            "ask": asks[at % 2],
        }
        for at, name in enumerate(names)
    ] + [{"text": "no video", "videos": [], "ask": None}]
    for name, rows in (("video", one), ("videos", several)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    pq.write_table(pa.Table.from_pylist(several), folder / "videos.parquet")


def command(case: Case, inputs: Path, outputs: Path) -> list[str]:
    """What is run."""
    asked = [sys.executable, "-m", "reelscribe", "caption", str(inputs / case.source)]
    model = ("--model", str(inputs / "shapes"))
    return [*asked, "--output", str(outputs / case.output), *model, *COMMON, *case.options]


def environment(source: Path) -> dict[str, str]:
    """That of a run of the version in a folder `src`."""
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}


def run(case: Case, source: Path, inputs: Path, outputs: Path) -> float:
    """Seconds that a command takes to its end.

    Raises:
        SystemExit: it ends with another exit code than a run that was made.
    """
    started = time.monotonic()
    ended = subprocess.run(command(case, inputs, outputs), env=environment(source), capture_output=True, text=True)
    if ended.returncode not in FAILED_ROWS:
        raise SystemExit(f"{case.name}: exit code {ended.returncode} with {source}\n{ended.stderr[-3000:]}")
    return time.monotonic() - started


def run_killed(case: Case, source: Path, inputs: Path, outputs: Path, *, seconds: float) -> bool:
    """Whether a command was still running when it was killed after so long."""
    running = subprocess.Popen(
        command(case, inputs, outputs), env=environment(source), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGKILL)
        running.wait()
        return True
    return False


def files_of(folder: Path) -> dict[str, bytes]:
    """What runs have left, without their journals."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if ".run" not in str(path)}


def differing(before: Path, after: Path) -> list[str]:
    """Names of files that are not the same in two folders."""
    one, other = files_of(before), files_of(after)
    return sorted(name for name in one.keys() | other.keys() if _told(one.get(name)) != _told(other.get(name)))


def _told(content: bytes | None) -> object:
    """A file's bytes; of failures what is the same each time, since they hold seconds."""
    if content is None or b'"seconds"' not in content:
        return content
    return [{**json.loads(line), "seconds": 0} for line in content.splitlines()]


def main() -> int:
    """Make every run with both versions and list what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder `src` of the earlier version")
    parser.add_argument("--after", type=Path, default=ROOT / "src")
    parser.add_argument("--ray", action="store_true", help="with runs on a cluster of this machine")
    parser.add_argument("--only", default="", help="only cases whose names hold this")
    arguments = parser.parse_args()
    before, after = arguments.before.resolve(), arguments.after.resolve()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")
        make_inputs(inputs)
        for case in cases(with_ray=arguments.ray):
            if arguments.only not in case.name:
                continue
            one, other, resumed = (Path(folder, name) for name in ("before", "after", "resumed"))
            for outputs in (one, other, resumed):
                shutil.rmtree(outputs, ignore_errors=True)
                outputs.mkdir()
            seconds = run(case, before, inputs, one)
            run(case, after, inputs, other)
            killed = run_killed(case, before, inputs, resumed, seconds=0.8 * seconds)
            run(case, after, inputs, resumed)
            found = [f"{name} (from the start)" for name in differing(one, other)]
            found += [f"{name} (resumed)" for name in differing(one, resumed)]
            wrong += bool(found)
            print(f"{case.name}: {'; '.join(found) or 'the same'}{'' if killed else ', not killed'}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
