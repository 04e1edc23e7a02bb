"""Whole runs over the same files: reelscribe's operator, Data-Juicer's own, and two plain loops over transformers.

`python -m benchmarks.captioning` measures all of them, several rounds in turn, each in its own process, and writes
`runs/benchmarks/captioning.json`. All get the bundled checkpoint, the same prompt, the same sampling settings and
both cores; models are loaded, and one video captioned, before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.clips import FROM_CAMERAS, REALISTIC, make_clips, make_scenes
from benchmarks.processes import cpu_seconds, measured, tell

WORK = Path("runs/benchmarks")
OUT = WORK / "captioning.json"
PEER_PYTHON = Path(".venv-data-juicer/bin/python")
PEER = "benchmarks/data_juicer_peer.py"
MODEL = Path("src/reelscribe/models/bundled/shapes")
PROMPT = "Describe the input video in 1-2 sentences."
MAX_TOKENS = 32
SAMPLING = {"max_tokens": MAX_TOKENS, "temperature": 0.9, "top_p": 0.95}
BATCH = 4
ROUNDS = 3
CLIPS: dict[str, Callable[[], list[Path]]] = {
    "short": lambda: make_scenes(WORK / "clips_short", 48),
    "real": lambda: make_clips(WORK / "clips_camera", 8, kinds=FROM_CAMERAS),
    "web": lambda: make_clips(WORK / "clips_real", 12, kinds=REALISTIC),
}
"""Name of a set of clips to what renders it, at the first use: 4 s of 320x240, and 10 to 20 s of 360p to 1080p as
they come from cameras and as sites deliver them."""


def rows_of(paths: list[Path]) -> list[dict[str, Any]]:
    """Rows in Data-Juicer's form."""
    return [{"text": "<__dj__video>", "videos": [str(path.resolve())]} for path in paths]


# one contestant, in its own process


def ours(paths: list[Path], candidates: int) -> dict[str, float]:
    """Our operator as `reelscribe caption` runs it."""
    from reelscribe import VideoCaptioningFromVLMMapper

    operator = VideoCaptioningFromVLMMapper(
        str(MODEL), caption_num=candidates, sampling_params=SAMPLING, prompt=PROMPT, keep_original_sample=False
    )
    rows, outcomes = rows_of(paths), []
    operator.run_stream(rows[:1], [].append)
    began, worked = time.perf_counter(), cpu_seconds()
    times = operator.run_stream(rows, outcomes.append)
    seconds = time.perf_counter() - began
    operator.close()  # only processes that have ended count as work
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - worked,
        "captions": sum(len(outcome.captions) for outcome in outcomes),
        "prompt_tokens": sum(outcome.usage.prompt_tokens for outcome in outcomes),
        "generated_tokens": sum(outcome.usage.completion_tokens for outcome in outcomes),
        **{f"{stage.name}_seconds": stage.busy_seconds for stage in times.stages},
    }


def loop(paths: list[Path], candidates: int) -> dict[str, float]:
    """One video after the other; `generate` once per candidate, as in examples."""
    return plain(paths, batch=1, calls=candidates, sequences=1)


def batch(paths: list[Path], candidates: int) -> dict[str, float]:
    """Several videos per call, all candidates of each by `num_return_sequences`."""
    return plain(paths, batch=BATCH, calls=1, sequences=candidates)


def plain(paths: list[Path], *, batch: int, calls: int, sequences: int) -> dict[str, float]:
    """transformers as its examples use it; files are read by PyAV, since its own reader needs a system's FFmpeg."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(str(MODEL), padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(str(MODEL), dtype=torch.float32).eval()
    counts = {"captions": 0, "prompt_tokens": 0, "generated_tokens": 0}

    def caption(files: list[Path]) -> None:
        inputs = prepared(processor, files)
        for _ in range(calls):
            made = model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=True, temperature=0.9, top_p=0.95, top_k=0,
                num_return_sequences=sequences,
            )  # fmt: skip
            new = made[:, inputs["input_ids"].shape[1] :]
            counts["captions"] += sum(bool(text) for text in processor.batch_decode(new, skip_special_tokens=True))
            counts["generated_tokens"] += new.numel()
        counts["prompt_tokens"] += int(inputs["attention_mask"].sum())

    caption(paths[:1])
    counts |= dict.fromkeys(counts, 0)
    began, worked = time.perf_counter(), cpu_seconds()
    for files in batches(paths, batch):
        caption(files)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - worked, **counts}


def prepared(processor: Any, files: list[Path]) -> Any:
    """The processor's inputs from the files; it chooses frames and sizes itself."""
    turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    frames, metadata = zip(*map(decoded, files), strict=True)
    return processor(
        text=[text] * len(files), videos=list(frames), video_metadata=list(metadata), padding=True, return_tensors="pt"
    )


def decoded(path: Path) -> tuple[Any, dict[str, Any]]:
    """All frames of a file as uint8 `[T, H, W, 3]`, and their metadata for the processor."""
    import av
    import numpy as np

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    return frames, {"fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps}


def batches(paths: list[Path], size: int) -> Iterator[list[Path]]:
    """The files in groups."""
    source = iter(paths)
    while group := list(islice(source, size)):
        yield group


CONTESTANTS: dict[str, Callable[[list[Path], int], dict[str, float]]] = {"ours": ours, "loop": loop, "batch": batch}


# all of them


def measure(name: str, clips: str, candidates: int) -> dict[str, float]:
    """One run of one contestant."""
    if name != "data_juicer":
        return measured([sys.executable, "-m", "benchmarks.captioning", "--measure", name, "--clips", clips,
                         "--candidates", str(candidates)])  # fmt: skip
    data = WORK / f"{clips}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(CLIPS[clips]())), "utf-8")
    return measured([str(PEER_PYTHON), PEER, "--model", str(MODEL), "--data", str(data), "--out",
                     str(WORK / "peer.jsonl"), "--candidates", str(candidates), "--max-tokens", str(MAX_TOKENS),
                     "--prompt", PROMPT])  # fmt: skip


def all_rounds(sets: Sequence[str], say: Callable[[str], None]) -> dict[str, list[dict[str, float]]]:
    """Every contestant on sets of clips, in turn; results of other sets are kept."""
    before = json.loads(OUT.read_text("utf-8"))["found"] if OUT.exists() else {}
    found: dict[str, list[dict[str, float]]] = {
        key: run for key, run in before.items() if key.split(".")[1] not in sets
    }
    for clips in sets:
        CLIPS[clips]()
        for number in range(ROUNDS):
            for candidates in (1, 4):
                for name in ("ours", "data_juicer", "loop", "batch"):
                    key = f"{name}.{clips}.m{candidates}"
                    found.setdefault(key, []).append(measure(name, clips, candidates))
                    say(f"round {number + 1}: {key}: {found[key][-1]}")
                    save(found)
    return found


def save(found: dict[str, list[dict[str, float]]]) -> None:
    """Write the results so far, so that a stopped run is not wasted."""
    OUT.write_text(json.dumps({"figures": figures(found), "found": found}, indent=1), "utf-8")


def figures(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Their time over ours, the median over rounds of the ratio of neighbours."""
    flat = {}
    for key, theirs in found.items():
        name, _, case = key.partition(".")
        if name == "ours":
            continue
        pairs = list(zip(found[f"ours.{case}"], theirs, strict=False))
        flat[key] = statistics.median(their["seconds"] / our["seconds"] for our, their in pairs)
        flat[f"{key}.cpu"] = statistics.median(their["cpu_seconds"] / our["cpu_seconds"] for our, their in pairs)
    for clips in CLIPS:
        pairs = list(zip(found.get(f"ours.{clips}.m1", []), found.get(f"ours.{clips}.m4", []), strict=False))
        if not pairs:
            continue
        flat[f"candidates.{clips}.m4_over_m1"] = statistics.median(
            four["seconds"] / one["seconds"] for one, four in pairs
        )
    return flat


def main() -> None:
    """One measurement, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=CONTESTANTS)
    parser.add_argument("--clips", choices=CLIPS, help="this set alone")
    parser.add_argument("--candidates", type=int, default=1)
    asked = parser.parse_args()
    if asked.measure:
        tell(CONTESTANTS[asked.measure](CLIPS[asked.clips or "short"](), asked.candidates))
        return
    all_rounds([asked.clips] if asked.clips else list(CLIPS), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
