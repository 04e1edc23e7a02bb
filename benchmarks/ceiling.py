"""The whole pipeline against the lowest ceiling of its stages, as `reelscribe bench` measures both.

`python -m benchmarks.ceiling` writes `runs/benchmarks/ceiling.json`. Two models: the benchmark checkpoint, run by
transformers on the same cores that read, on clips of 360p to 1080p and on the small ones among them, for which it has
little to do; and one that only waits, as a device elsewhere would, slower and faster than reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.clips import REALISTIC, SMALL, ClipKind, make_clips
from benchmarks.model import make_model
from benchmarks.processes import measured, tell

WORK = Path("runs/benchmarks")
OUT = WORK / "ceiling.json"
CLIPS = 24
FEWER_CLIPS = 18
"""Of those of up to 1080p; the pixels of all are kept in memory."""
ROUNDS = 3
SPEEDS = {"slow_device": 0.5, "fast_device": 1.5}
"""Case to the speed of a model that only waits, as a part of the speed of reading."""


class Waiting:
    """A captioner whose model is elsewhere: it receives a clip, waits, and answers.

    Args:
        seconds: time for one clip.
        policy: what is read.
    """

    def __init__(self, seconds: float, policy: Any) -> None:
        self.policy = policy
        self._seconds = seconds

    def caption(self, clips: Iterable[Any]) -> Iterator[Any]:
        """One answer after the other; a late clip is not made up for."""
        from reelscribe import Candidate, CaptionResult

        for request, _ in clips:
            time.sleep(self._seconds)
            yield CaptionResult(request.id, (Candidate("words"),))

    def close(self) -> None:
        """Nothing to free."""


def device(speed: float) -> dict[str, float]:
    """A model that only waits."""
    from reelscribe import VideoCaptioningFromVLMMapper
    from reelscribe.models.chat import policy_from_processor
    from reelscribe.models.loading import load_processor
    from reelscribe.video.processes.clip_stream import read_clips

    policy = policy_from_processor(load_processor(str(make_model(WORK / "model")), {}))
    requests = _requests(make_clips(WORK / "clips", CLIPS, kinds=SMALL))
    began = time.perf_counter()
    for _ in read_clips(requests, policy):
        pass
    seconds = (time.perf_counter() - began) / len(requests)
    return told(VideoCaptioningFromVLMMapper(captioner=Waiting(seconds / speed, policy)), CLIPS, SMALL)


def transformers(clips: int, kinds: tuple[ClipKind, ...]) -> dict[str, float]:
    """The benchmark checkpoint on the same cores."""
    from reelscribe import VideoCaptioningFromVLMMapper

    model = str(make_model(WORK / "model"))
    operator = VideoCaptioningFromVLMMapper(model, sampling_params={"max_tokens": 16, "temperature": 0})
    return told(operator, clips, kinds)


def told(operator: Any, clips: int, kinds: tuple[ClipKind, ...]) -> dict[str, float]:
    """What `reelscribe bench` measures with an operator."""
    from reelscribe.runners.bench import bench

    folder = WORK / ("clips" if kinds is SMALL else "clips_real")
    make_clips(folder, clips, kinds=kinds)
    report = bench(operator, folder, clips=clips)
    operator.close()
    alone = {one.stage: one.videos_per_second for one in report.ceilings}
    shared = {} if report.shared is None else {"shared": report.shared, "shared_ratio": report.shared_ratio}
    return {**alone, **shared, "pipeline": report.pipeline, "ratio": report.ratio, "lowest": report.lowest.stage}


def _requests(paths: list[Path]) -> list[Any]:
    from reelscribe.types import CaptionRequest, RequestId

    return [CaptionRequest(RequestId(row, 0), str(path), "") for row, path in enumerate(paths)]


MEASURES = {
    "transformers": lambda: transformers(FEWER_CLIPS, REALISTIC),
    "transformers_small": lambda: transformers(CLIPS, SMALL),
    **{name: (lambda speed=speed: device(speed)) for name, speed in SPEEDS.items()},
}


def figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Medians over rounds; `ceiling.ratio` is that of the real model, and `ceiling.shared_cores.ratio` is what it is of
    the speed that the cores allow which the model and reading share."""
    ratios = {name: statistics.median(run["ratio"] for run in runs) for name, runs in found.items()}
    return {
        "ceiling.ratio": ratios["transformers"],
        "ceiling.shared_cores.ratio": statistics.median(run["shared_ratio"] for run in found["transformers"]),
        **{f"ceiling.{name}.ratio": one for name, one in ratios.items()},
    }


def main() -> None:
    """One measurement, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=MEASURES)
    asked = parser.parse_args()
    if asked.measure:
        tell(MEASURES[asked.measure]())
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for name in MEASURES:
            found.setdefault(name, []).append(measured([sys.executable, "-m", "benchmarks.ceiling", "--measure", name]))
            print(f"{name}: {found[name][-1]}", flush=True)
    OUT.write_text(json.dumps({"figures": figures(found), "found": found}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
