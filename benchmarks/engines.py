"""vLLM's engine as driven by reelscribe, compared with itself and with vLLM's own offline interface.

`python -m benchmarks.engines` measures everything, several rounds in turn, and writes `docs/benchmarks_engines.md` and
its figures to `benchmarks/results.json`. Each engine runs in its own process, so that none interferes with another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.clips import SMALL, make_clips
from benchmarks.model import make_model
from benchmarks.processes import measured, tell

WORK = Path("runs/benchmarks")
PROMPT = "Describe the input video in 1-2 sentences."
SAMPLING = {"max_tokens": 16, "temperature": 0.9, "top_p": 0.95}
MAX_MODEL_LEN = 8192
"""The longest clip here is about 5,000 tokens."""
CLIPS = 24
DECODED = 16
IDLE_CLIPS = 200
ROUNDS = 3


# one measurement, in its own process


def ours(paths: list[Path], model: str) -> dict[str, float]:
    """Files to captions: read in parallel with the engine, frames passed one by one."""
    captioner, spans = started(model)
    requests = requests_of(paths)
    list(captioner.caption(read(requests[-1:], captioner)))
    spans.clear()
    began = time.perf_counter()
    list(read(requests, captioner))
    decoding = time.perf_counter() - began
    began = time.perf_counter()
    results = list(captioner.caption(read(requests, captioner)))
    seconds = time.perf_counter() - began
    idle = idle_share(spans)
    captioner.close()
    prompt = sum(result.usage.prompt_tokens for result in results)
    return {"seconds": seconds, "decode_seconds": decoding, "idle": idle, "prompt_tokens": prompt}


def generate(paths: list[Path], model: str) -> dict[str, float]:
    """vLLM's loader for each file, then one call of `LLM.generate`."""
    from vllm.multimodal.utils import fetch_video

    llm, params, text = offline(model)

    def load(path: Path) -> dict[str, Any]:
        loader = {"video_backend": "qwen3_vl", "num_frames": -1, "fps": 2}
        return {"prompt": text, "multi_modal_data": {"video": [fetch_video(f"file://{path.resolve()}", loader)]}}

    llm.generate([load(paths[-1])], params, use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate([load(path) for path in paths], params, use_tqdm=False)
    return told(outputs, began)


def chat(paths: list[Path], model: str) -> dict[str, float]:
    """One call of `LLM.chat` with the addresses of the files."""
    llm, params, _ = offline(model)

    def conversation(path: Path) -> list[dict[str, Any]]:
        video = {"type": "video_url", "video_url": {"url": f"file://{path.resolve()}"}}
        return [{"role": "user", "content": [video, {"type": "text", "text": PROMPT}]}]

    llm.chat([conversation(paths[-1])], params, use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.chat([conversation(path) for path in paths], params, use_tqdm=False)
    return told(outputs, began)


def candidates(paths: list[Path], model: str, *, backend: str) -> dict[str, Any]:
    """Decoded clips, one candidate and four in turn; every pass sees other pixels, so that no cache helps."""
    captioner, _ = started(model, backend=backend)
    clips = list(read(requests_of(paths), captioner))
    list(captioner.caption(shifted(clips[:2], 1)))
    passes: dict[str, list[float]] = {"1": [], "4": []}
    for number in range(ROUNDS):
        for count in (1, 4):
            jobs = [(replace(one, num_candidates=count), clip) for one, clip in shifted(clips, 2 + 2 * number + count)]
            began = time.perf_counter()
            list(captioner.caption(jobs))
            passes[str(count)].append(time.perf_counter() - began)
    captioner.close()
    return {
        "seconds": passes,
        "ratio": statistics.median(four / one for one, four in zip(*passes.values(), strict=True)),
    }


def idle(paths: list[Path], model: str) -> dict[str, float]:
    """How long the engine has nothing to run while 200 decoded clips go through it."""
    captioner, spans = started(model)
    clips = list(read(requests_of(paths), captioner))
    list(captioner.caption(shifted(clips[:2], 999)))
    spans.clear()
    began = time.perf_counter()
    list(captioner.caption(job for turn in range(-(-IDLE_CLIPS // len(clips))) for job in shifted(clips, turn + 1)))
    seconds = time.perf_counter() - began
    captioner.close()
    return {"seconds": seconds, "idle": idle_share(spans), "clips": float(len(spans))}


MEASURES: dict[str, Callable[[list[Path], str], dict[str, Any]]] = {
    "ours": lambda paths, model: ours(paths[:CLIPS], model),
    "generate": lambda paths, model: generate(paths[:CLIPS], model),
    "chat": lambda paths, model: chat(paths[:CLIPS], model),
    "candidates_vllm": lambda paths, model: candidates(paths[:DECODED], model, backend="vllm"),
    "candidates_hf": lambda paths, model: candidates(paths[:DECODED], model, backend="hf"),
    "idle": lambda paths, model: idle(paths[:CLIPS], model),
}


def started(model: str, *, backend: str = "vllm") -> tuple[Any, list[tuple[float, float]]]:
    """A captioner, and when each of its requests ran: from its first step to its last token, engine's clock."""
    from reelscribe.models import ModelSpec, load_captioner
    from reelscribe.models.captioner import generation_config

    options = {"max_model_len": MAX_MODEL_LEN, "disable_log_stats": False} if backend == "vllm" else {}
    captioner = load_captioner(ModelSpec(backend, model, options, generation=generation_config(SAMPLING)))
    spans: list[tuple[float, float]] = []
    if backend == "vllm":
        llm = captioner._engine._engine._llm  # type: ignore[attr-defined]
        inner = llm.generate

        async def generate(*args: Any, **kwargs: Any) -> Any:
            async for output in inner(*args, **kwargs):
                spans.append((output.metrics.scheduled_ts, output.metrics.last_token_ts))
                yield output

        llm.generate = generate
    return captioner, spans


def offline(model: str) -> tuple[Any, Any, str]:
    """vLLM's `LLM` with the arguments that the captioner gives its engine, and the prompt's text."""
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    from reelscribe.video.processes.clip_stream import usable_processors

    llm = LLM(
        model, max_model_len=MAX_MODEL_LEN, max_num_batched_tokens=2 * MAX_MODEL_LEN, enforce_eager=True,
        max_num_scheduled_tokens=MAX_MODEL_LEN, enable_chunked_prefill=False,
        max_num_seqs=8 * usable_processors(), block_size=32, dtype="float32",
        kv_cache_memory_bytes=1 << 30, limit_mm_per_prompt={"video": 1, "image": 0}, mm_processor_cache_gb=0,
        allowed_local_media_path="/",
    )  # fmt: skip
    turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": PROMPT}]}]
    processor = AutoProcessor.from_pretrained(model)
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return llm, SamplingParams(**SAMPLING, seed=1), text


def told(outputs: list[Any], began: float) -> dict[str, float]:
    """The cost of a run of `LLM`, and what it read."""
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs)}


def requests_of(paths: list[Path]) -> list[Any]:
    """One request a file."""
    from reelscribe.types import CaptionRequest, RequestId

    return [CaptionRequest(RequestId(row, 0), str(path), PROMPT, seed=row) for row, path in enumerate(paths)]


def read(requests: Iterable[Any], captioner: Any) -> Iterable[Any]:
    """Clips as the local runner reads them."""
    from reelscribe.video.processes.clip_stream import ClipStream

    return ClipStream(pool(), requests, captioner.policy)


@cache
def pool() -> Any:
    """The processes that read; as in the runner they are started once."""
    from reelscribe.video.processes.clip_stream import WorkerPool

    return WorkerPool()


def shifted(clips: list[Any], columns: int) -> Iterable[Any]:
    """The clips with their pixels moved to the right: the same work, other contents."""
    import numpy as np

    return [(request, replace(clip, frames=np.roll(clip.frames, columns, axis=2))) for request, clip in clips]


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first step to the last token in which no request was running."""
    running, end = 0.0, 0.0
    for start, stop in sorted(spans):
        running += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - running / (end - min(start for start, _ in spans))


# all of them


def measure(name: str) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    return measured([sys.executable, "-m", "benchmarks.engines", "--measure", name])


def all_rounds(say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Every measurement: those that are compared, in turn, several times."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURES}
    for number in range(ROUNDS):
        for name in ("ours", "generate", "chat"):
            found[name].append(measure(name))
            say(f"round {number + 1}: {name}: {found[name][-1]}")
    for name in ("candidates_vllm", "candidates_hf", "idle"):
        found[name].append(measure(name))
        say(f"{name}: {found[name][-1]}")
    return found


def figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The flat results."""
    pairs = {
        name: statistics.median(
            theirs["seconds"] / own["seconds"] for own, theirs in zip(found["ours"], found[name], strict=True)
        )
        for name in ("generate", "chat")
    }
    runs = found["ours"]
    decode_bound = statistics.median(
        max(0.0, 1 - run["seconds"] * (1 - run["idle"]) / run["decode_seconds"]) for run in runs
    )
    return {
        "vllm.vs_generate": pairs["generate"],
        "vllm.vs_chat": pairs["chat"],
        "vllm.m4_over_m1": found["candidates_vllm"][0]["ratio"],
        "hf.m4_over_m1": found["candidates_hf"][0]["ratio"],
        "vllm.idle_decoded": found["idle"][0]["idle"],
        "vllm.idle_files": statistics.median(run["idle"] for run in runs),
        "vllm.idle_explained_by_decoding": decode_bound,
        "vllm.videos_per_second": statistics.median(CLIPS / run["seconds"] for run in runs),
    }


def main() -> None:
    """Measure one thing, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=list(MEASURES))
    name = parser.parse_args().measure
    model, paths = make_model(WORK / "model"), make_clips(WORK / "clips", CLIPS, kinds=SMALL)
    if name is not None:
        tell(MEASURES[name](paths, str(model)))
        return
    from benchmarks.engines_page import write_page

    found = all_rounds(lambda line: print(line, flush=True))
    write_page(figures(found), found)


if __name__ == "__main__":
    main()
