"""Data-Juicer's own operator, timed: `video_captioning_from_vlm_mapper` of py-data-juicer 1.6.1 on transformers.

Run by the Python of a separate environment (`requirements-data-juicer.txt`); it does not use reelscribe.

The operator runs as Data-Juicer's executor runs it: `NestedDataset.process`, which calls `operator.run` over the data
set, in the operator's own batches of ten rows. It runs in this process, not in a pool of one worker (`num_proc` is
None, where the executor's `np: 1` would start one), because such a worker uses only one thread and would leave all
other cores idle. `skip_op_error` stays off, so that an error ends the run instead of emptying a batch.

As published, what it does for a video is: open the file once and decode nothing of it, let the processor decode it and
sample frames, then call `generate` once for each candidate, each time with the vision encoder and the whole prompt. The
fixes below are applied to the installed operator while this script runs, and are the only changes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import textwrap
import time
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

MARK = "measured: "
KEEP = ("random_any", "similar_one_simhash", "all")


# repairs


def repair_length(operator: type) -> None:
    """`generate` gets `max_new_tokens` twice, a fixed 128 and the sampling settings' own, which is a TypeError whatever
    the user sets, because settings without it are given one. The fixed 128 goes."""
    _mend(operator, "_process_single_sample", "max_new_tokens=128, **self.sampling_params", "**self.sampling_params")


def repair_emptiness(operator: type) -> None:
    """A batch with results is returned as an empty one: the test for "nothing was generated" is inverted. It is
    corrected."""
    test = "if len(samples_after_generation) {} 0:"
    _mend(operator, "process_batched", test.format(">"), test.format("=="))


def repair_closing(module: ModuleType) -> None:
    """Before a file is closed each of its video streams is closed, which current PyAV does not support. That line is
    removed; closing the file closes them."""
    _mend(module, "close_video", "video_stream.close(strict=False)", "pass")


def repair_sampling(max_tokens: int, temperature: float, top_p: float) -> dict[str, Any]:
    """The default settings are vLLM's (`max_tokens`, `stop_token_ids`, `top_k` -1) with `do_sample` at temperature 0:
    transformers refuses them. These are passed to the operator instead, as `sampling_params`; `top_k` 0 turns off the
    50 that transformers would use."""
    if temperature == 0:
        return {"do_sample": False, "max_new_tokens": max_tokens}
    drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return drawing | {"max_new_tokens": max_tokens}


def repair_reading() -> None:
    """The operator leaves reading to the processor, which in transformers 5 knows torchcodec only: that needs
    FFmpeg's libraries on the system (torchvision's reader, which used to stand in, is gone). transformers' own reader
    on PyAV takes its place: the same frames, bit for bit, for no more processor time than torchcodec takes."""
    from transformers import video_processing_utils

    load_video = video_processing_utils.load_video

    def load_with_pyav(video: Any, **options: Any) -> Any:
        return load_video(video, **options | {"backend": "pyav"})

    for question in ("is_torchcodec_available", "is_torchcodec_usable"):  # the second since transformers 5.23
        if hasattr(video_processing_utils, question):
            setattr(video_processing_utils, question, lambda **_: True)
    video_processing_utils.load_video = load_with_pyav


def _mend(place: type | ModuleType, name: str, broken: str, mended: str) -> None:
    """Recompile a function with one piece of its source replaced."""
    function: FunctionType = getattr(place, name)
    source = textwrap.dedent(inspect.getsource(function))
    if (found := source.count(broken)) != 1:
        raise RuntimeError(f"{name} holds {broken!r} {found} times, not once: is this py-data-juicer 1.6.1?")
    made: dict[str, Any] = {}
    exec(compile(source.replace(broken, mended), f"<mended {name}>", "exec"), function.__globals__, made)
    setattr(place, name, made[name])


# the run


def load(asked: argparse.Namespace) -> tuple[Any, Counter[str]]:
    """The fixed operator with its model loaded, and counts of that model's calls."""
    from data_juicer.ops.mapper import video_captioning_from_vlm_mapper as published
    from data_juicer.utils.model_utils import get_model, torch

    repair_length(published.VideoCaptioningFromVLMMapper)
    repair_emptiness(published.VideoCaptioningFromVLMMapper)
    repair_closing(published)
    repair_reading()
    operator = published.VideoCaptioningFromVLMMapper(
        hf_model=asked.model, caption_num=asked.candidates, keep_candidate_mode=asked.keep, prompt=asked.prompt,
        sampling_params=repair_sampling(asked.max_tokens, asked.temperature, asked.top_p),
        keep_original_sample=False, auto_op_parallelism=False, num_proc=None,
    )  # fmt: skip
    random.seed(asked.seed)
    torch.manual_seed(asked.seed)
    model, _ = get_model(operator.model_key, use_cuda=operator.use_cuda())
    return operator, counted(model)


def counted(model: Any) -> Counter[str]:
    """Count the calls of `generate` and their tokens, from now on."""
    counts: Counter[str] = Counter()
    generate = model.generate

    def counting(**inputs: Any) -> Any:
        tokens = generate(**inputs)
        prompt = inputs["input_ids"].numel()
        counts.update(generate_calls=1, prompt_tokens=prompt, generated_tokens=tokens.numel() - prompt)
        return tokens

    model.generate = counting
    return counts


def caption(operator: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows through the operator, as the executor does it."""
    from data_juicer.core.data import NestedDataset

    done: list[dict[str, Any]] = NestedDataset.from_list(rows).process(operator, open_monitor=False).to_list()
    return done


def has_caption(row: dict[str, Any]) -> bool:
    """Whether anything is left of a text without Data-Juicer's tokens."""
    from data_juicer.utils.mm_utils import remove_special_tokens

    return bool(remove_special_tokens(row["text"]).strip())


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """Caption all rows, write the results, and return the cost."""
    rows = [json.loads(line) for line in Path(asked.data).read_text("utf-8").splitlines()]
    began = time.perf_counter()
    operator, counts = load(asked)
    loading = time.perf_counter() - began
    operator.process({key: [value] for key, value in rows[0].items()})
    counts.clear()
    began, worked = time.perf_counter(), processor_seconds()
    captioned = caption(operator, rows)
    seconds, worked = time.perf_counter() - began, processor_seconds() - worked
    write(Path(asked.out), captioned)
    return {
        "load_seconds": round(loading, 3),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(worked, 3),
        "videos": sum(len(row["videos"]) for row in rows),
        "captions": sum(map(has_caption, captioned)),
        **counts,
    }


def processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as JSONL."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    unfinished.rename(path)


def main() -> None:
    """Measure, and print one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--data", required=True, help="JSONL in Data-Juicer's form: text and videos")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--keep", choices=KEEP, default="random_any")
    parser.add_argument("--prompt", help="instead of the operator's own")
    parser.add_argument("--temperature", type=float, default=0.9, help="0 draws nothing")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    print(MARK + json.dumps(measure(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
