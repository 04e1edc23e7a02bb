"""What a card makes of Qwen3-VL-8B-Instruct's architecture: reelscribe's captioner against plain transformers.

`python -m benchmarks.gpu` needs a CUDA GPU and no network: the weights are random, in bfloat16, made on the device.
What is written means nothing; it costs what the large model costs. The tokenizer is the bundled one. The end token
lies past the vocabulary, so that every text has the same number of tokens, drawn at temperature 1 with no filters.
`--device cpu --tiny` tries everything out on a small shape.

Three parts, of which `--parts` takes some; what is known so far is on disk after each:

- `contestants`: `ours` is `HFCaptioner`. `loop` takes one video at a time, the processor once a video and `generate`
  once a candidate; more videos gain it nothing, so it is given a quarter of them. `batch` is `generate` with
  `num_return_sequences` on as many videos as fit, tried as 1, 2, 4, … All get the same frames at their final size,
  prepared on the device.
- `attention`: `ours` again, with one attention implementation and the other in turn.
- `decode`: a decoding step of the plain model after a prompt of this length, with a growing cache, with a static one,
  and with a static one and `torch.compile`.

Model FLOPs are those that the task needs, not those that ran: a prompt counts once a video, however often it is read.
A multiply-add is 2. With n patches, s of them in each of t temporal steps, P prompt tokens, G new tokens a text:

    vision  = 2 n (e + depth (4 d² + 2 d f)) + 4 depth t s² d + 2 (n / m²) (1 + deepstack) ((m² d)² + m² d D)
    prefill = 2 P N + 2 D V + 2 layers P² heads head_dim
    decode  = sum over g = 1 … G - 1 of 2 (N + D V) + 4 layers (P + g) heads head_dim

The square of causal attention counts by half, and a text's first token comes out of the prefill. e is the weights of
the patch embedding, d and f the widths of the vision encoder and its MLP, m the side of a spatial merge, D the width of
the text model and F of its MLP, V its vocabulary, N = layers (2 D heads head_dim + 2 D kv_heads head_dim + 3 D F) the
weights of its layers. `mfu` is videos (vision + prefill + M decode) / seconds / the card's dense bfloat16 peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.model import make_model
from reelscribe.models.hf.kv_cache import cache_argument

OUT = Path("runs/benchmarks/gpu.json")
PROMPT = "Describe the input video in 1-2 sentences."
CANDIDATES = (1, 4)
ROUNDS = 3
LOOP_SHARE = 4
"""The loop is given one video in so many."""
SHOWN_FPS = 2.0
SOURCE_FPS = 24.0
PAN = 8
"""Pixels the camera moves from frame to frame."""
DECODE_BATCHES = (4, 16, 64)
DECODE_WARM_UP = 4
DECODE_STEPS = 32
NAN = float("nan")

PEAK_TERAFLOPS = (
    (r" MIG ", NAN),
    (r"H[12]00 NVL", 835.0),
    (r"H100 PCIe", 756.0),
    (r"H[12]00", 989.0),
    (r"A100", 312.0),
    (r"L40S", 362.0),
    (r"RTX 4090$", 165.0),
)
"""Part of a card's name to its dense bfloat16 peak, from the makers' data sheets; the first that is found counts."""


# the model


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's architecture, and the clips it is shown where the command does not say."""

    text: Mapping[str, Any]
    """Fields of the text model's config."""
    vision: Mapping[str, Any]
    """Fields of the vision encoder's config."""
    height: int
    """Height of the clips in pixels."""
    width: int
    """Width of the clips in pixels."""
    clips: int
    """Number of clips."""
    frames: int
    """Frames of a clip."""
    new_tokens: int
    """Tokens of a text."""


def rope(theta: float, sections: Sequence[int]) -> dict[str, Any]:
    """Interleaved M-RoPE as Qwen3-VL's config says it."""
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections), "mrope_interleaved": True}


PATCHES = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}

FULL = Shape(
    text={
        "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936, "max_position_embeddings": 262144,
        "rope_parameters": rope(5e6, (24, 20, 20)),
    },
    vision={
        "depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "out_hidden_size": 4096,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], **PATCHES,
    },
    height=480, width=896, clips=32, frames=12, new_tokens=64,
)  # fmt: skip
"""Qwen3-VL-8B-Instruct: 8,767,123,696 parameters; 12 frames are 6 steps of 420 tokens."""

TINY = Shape(
    text={
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "intermediate_size": 96, "vocab_size": 1024, "max_position_embeddings": 4096,
        "rope_parameters": rope(5e6, (6, 5, 5)),
    },
    vision={
        "depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2], **PATCHES,
    },
    height=64, width=96, clips=4, frames=4, new_tokens=8,
)  # fmt: skip
"""Everything there, and small."""


def config_of(shape: Shape, processor: Any) -> Any:
    """The model's config, with the special tokens of the processor."""
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config={**shape.text, "pad_token_id": processor.tokenizer.pad_token_id},
        vision_config=dict(shape.vision),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
        tie_word_embeddings=False,
    )


def random_model(shape: Shape, processor: Any, device: str) -> Any:
    """The architecture with random weights, made where they stay."""
    from transformers import AutoModelForImageTextToText, GenerationConfig

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config_of(shape, processor), dtype=torch.bfloat16)
    past_vocabulary = shape.text["vocab_size"]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=past_vocabulary,
        pad_token_id=processor.tokenizer.pad_token_id,
    )  # fmt: skip
    return model.eval()


def make_clip(shape: Shape, frames: int, seed: int) -> Any:
    """One of `SHOWN_FPS` frames a second, at the size the model sees."""
    from reelscribe.types import Clip

    return Clip(
        frames=moving_pictures(shape, frames, seed),
        pts_seconds=np.arange(frames) / SHOWN_FPS,
        duration_seconds=frames / SHOWN_FPS,
        source_fps=SOURCE_FPS,
        source_height=shape.height,
        source_width=shape.width,
    )


def moving_pictures(shape: Shape, frames: int, seed: int) -> np.ndarray:
    """A camera that moves over structure of all sizes, with sensor noise, uint8 `[T, H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    room = (shape.height + PAN * frames, shape.width + PAN * frames)
    coarse = [40 * torch.randn(1, 3, cells, cells, generator=generator) for cells in (4, 16, 64)]
    scene = torch.stack([torch.nn.functional.interpolate(one, size=room, mode="bilinear")[0] for one in coarse]).sum(0)
    corners = [PAN * step for step in range(frames)]
    views = [scene[:, corner : corner + shape.height, corner : corner + shape.width] for corner in corners]
    pictures = torch.stack(views).permute(0, 2, 3, 1) + 120
    pictures += 6 * torch.randn(pictures.shape, generator=generator)
    return pictures.clamp(0, 255).byte().contiguous().numpy()


@dataclass(slots=True)
class Bench:
    """What every measurement shares."""

    model: Any
    """The model."""
    processor: Any
    """Its processor."""
    clips: list[Any]
    """What it is shown."""
    new_tokens: int
    """Tokens of every text."""
    rounds: int
    """How often contestants are measured, in turn."""
    tiny: bool
    """Whether this is a trial."""
    results: dict[str, Any] = field(default_factory=dict)
    """Flat figures and notes, by name."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def on_cuda(self) -> bool:
        """Whether that is a CUDA card."""
        return self.device.type == "cuda"


def make_bench(args: argparse.Namespace) -> Bench:
    """Build all that the command asks for."""
    from reelscribe.models.loading import load_processor

    shape = TINY if args.tiny else FULL
    processor = load_processor(str(make_model(args.out.parent / "model")), {})
    frames = args.frames or shape.frames
    return Bench(
        model=random_model(shape, processor, args.device),
        processor=processor,
        clips=[make_clip(shape, frames, seed) for seed in range(args.clips or shape.clips)],
        new_tokens=args.new_tokens or shape.new_tokens,
        rounds=args.rounds,
        tiny=args.tiny,
    )


# model FLOPs


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations that the task needs; the formulas are the module's."""

    vision: float
    """Of one video, by the vision encoder."""
    prefill: float
    """Of one prompt."""
    decode: float
    """Of one text, after its first token."""

    def needed(self, videos: int, candidates: int) -> float:
        """For `videos` with `candidates` texts each."""
        return videos * (self.vision + self.prefill + candidates * self.decode)


def vision_flops(config: Any, grid: Sequence[int]) -> float:
    """Of one video with `grid` patches (steps, rows, columns)."""
    steps, in_step = grid[0], grid[1] * grid[2]
    width, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
    patches = steps * in_step
    embedding = config.in_channels * config.temporal_patch_size * config.patch_size**2 * width
    layers = config.depth * (4 * width**2 + 2 * width * config.intermediate_size)
    attention = 4 * config.depth * steps * in_step**2 * width
    mergers = (1 + len(config.deepstack_visual_indexes)) * (merged**2 + merged * config.out_hidden_size)
    return 2.0 * patches * (embedding + layers) + attention + 2 * patches / config.spatial_merge_size**2 * mergers


def layer_weights(config: Any) -> int:
    """Weights of the linear maps in the text model's layers."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    of_one = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return int(config.num_hidden_layers * of_one)


def flops_of(config: Any, *, grid: Sequence[int], prompt_tokens: int, new_tokens: int) -> Flops:
    """Of one video and one text, by the model's config."""
    text = config.text_config
    weights, head = layer_weights(text), text.hidden_size * text.vocab_size
    pair = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    read_back = sum(prompt_tokens + step for step in range(1, new_tokens))
    return Flops(
        vision=vision_flops(config.vision_config, grid),
        prefill=2.0 * prompt_tokens * weights + 2 * head + 2 * pair * prompt_tokens**2,
        decode=2.0 * (new_tokens - 1) * (weights + head) + 4 * pair * read_back,
    )


def peak_flops(name: str) -> float:
    """Dense bfloat16 peak of the card with this name, in FLOPs a second; NaN for one that is not in the table."""
    return next((1e12 * peak for part, peak in PEAK_TERAFLOPS if re.search(part, name)), NAN)


# the contestants

Run = Callable[[Sequence[Any]], list[int]]
"""Clips to the number of tokens of every text written for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One way to caption clips."""

    name: str
    """Part of its figures' names."""
    candidates: int
    """Texts a video (M)."""
    run: Run
    """The way."""
    clips: Sequence[Any]
    """What it is given."""
    warm_up: int
    """Clips it is given beforehand."""


def request_of(seed: int, *, candidates: int = 1) -> Any:
    """What is asked of a clip."""
    from reelscribe.types import CaptionRequest, RequestId

    return CaptionRequest(RequestId(seed, 0), "", PROMPT, num_candidates=candidates, seed=seed)


def make_captioner(bench: Bench) -> Any:
    """Our captioner around the model, its memory budget from what is free now."""
    from reelscribe.models.captioner import generation_config
    from reelscribe.models.chat import policy_from_processor
    from reelscribe.models.hf.captioner import HFCaptioner
    from reelscribe.models.loading import HFOptions, LoadedModel

    free_memory()
    return HFCaptioner(
        LoadedModel(bench.model, bench.processor, HFOptions()),
        policy=policy_from_processor(bench.processor),
        generation=generation_config({"max_tokens": bench.new_tokens, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
    )


def caption(captioner: Any, candidates: int, clips: Sequence[Any]) -> list[int]:
    """Ours."""
    jobs = ((request_of(seed, candidates=candidates), clip) for seed, clip in enumerate(clips))
    results = list(captioner.caption(jobs))
    for result in results:
        if result.failure is not None:
            raise RuntimeError(f"{result.failure.kind}: {result.failure.message}")
    return [one.tokens for result in results for one in result.candidates]


def plain_inputs(bench: Bench, clips: Sequence[Any]) -> Any:
    """What the processor makes of clips, on the device."""
    from reelscribe.models.chat import frame_arguments, render_prompt
    from reelscribe.models.loading import HFOptions
    from reelscribe.video.frames.moments import frame_metadata

    inputs = bench.processor(
        text=[render_prompt(bench.processor, request_of(0), HFOptions())] * len(clips),
        videos=[[clip.frames] for clip in clips],
        text_kwargs={"padding": True, "padding_side": "left"},
        videos_kwargs={
            **frame_arguments(bench.processor),
            "video_metadata": [[frame_metadata(clip)] for clip in clips],
            "input_data_format": "channels_last",
            "device": bench.device,
        },
        return_tensors="pt",
    )
    return inputs.to(bench.device)


def generate(bench: Bench, inputs: Any, *, candidates: int) -> list[int]:
    """One call of `generate`."""
    texts = bench.model.generate(**inputs, max_new_tokens=bench.new_tokens, num_return_sequences=candidates)
    return [texts.shape[1] - inputs["input_ids"].shape[1]] * len(texts)


def loop(bench: Bench, candidates: int, clips: Sequence[Any]) -> list[int]:
    """One video at a time, one text at a time."""
    counts = []
    for clip in clips:
        inputs = plain_inputs(bench, [clip])
        for _ in range(candidates):
            counts += generate(bench, inputs, candidates=1)
    return counts


def in_batches(bench: Bench, candidates: int, size: int, clips: Sequence[Any]) -> list[int]:
    """`size` videos at a time."""
    counts = []
    for start in range(0, len(clips), size):
        counts += generate(bench, plain_inputs(bench, clips[start : start + size]), candidates=candidates)
    return counts


def largest_batch(bench: Bench, candidates: int) -> int:
    """The largest of 1, 2, 4, … videos that can be answered together; why the next cannot is among the results."""
    size = 1
    while size <= len(bench.clips):
        free_memory()
        work = partial(in_batches, bench, candidates, size, bench.clips[:size])
        if attempt(bench, f"batch.m{candidates}.of_{size}", work) is None:
            break
        size *= 2
    return max(1, size // 2)


def all_contestants(bench: Bench) -> list[Contestant]:
    """Each with every number of candidates."""
    captioner, clips = make_captioner(bench), bench.clips
    some = clips[: max(1, len(clips) // LOOP_SHARE)]
    found = []
    for count in CANDIDATES:
        size = largest_batch(bench, count)
        bench.results[f"gpu.batch.m{count}.batch_size"] = size
        found += [
            Contestant(f"ours.m{count}", count, partial(caption, captioner, count), clips, len(clips)),
            Contestant(f"loop.m{count}", count, partial(loop, bench, count), some, 1),
            Contestant(f"batch.m{count}", count, partial(in_batches, bench, count, size), clips, size),
        ]
    return found


# measuring


def free_memory() -> None:
    """Hand back what no one uses, so that nobody pays for another's leavings."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(bench: Bench, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the device is done, and what came out."""
    synchronize(bench)
    began = time.perf_counter()
    found = work()
    synchronize(bench)
    return time.perf_counter() - began, found


def synchronize(bench: Bench) -> None:
    """Wait for the device."""
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)


def attempt(bench: Bench, name: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; where it fails, None and the reason among the results."""
    from reelscribe.models.captioner import short_message

    try:
        return work()
    except Exception as exc:  # one that fails must not take the others' figures along
        reason = short_message(exc)
    bench.results[f"gpu.{name}.failed"] = reason
    say(f"{name} failed: {reason}")
    free_memory()
    return None


def seconds_of(bench: Bench, one: Contestant, clips: Sequence[Any]) -> float:
    """Seconds for the clips, every text checked for its length."""
    free_memory()
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds, counts = timed(bench, lambda: one.run(clips))
    if counts != [bench.new_tokens] * (len(clips) * one.candidates):
        raise RuntimeError(f"{len(clips)} clips gave texts of {counts} tokens; all must have {bench.new_tokens}")
    if bench.on_cuda:
        bench.results[f"gpu.{one.name}.peak_gib"] = torch.cuda.max_memory_allocated(bench.device) / 2**30
    return seconds


def compete(bench: Bench, contestants: Sequence[Contestant]) -> None:
    """Warm each up, measure them in turn, several rounds, and keep the figures of those that never failed."""
    going = {one: [] for one in contestants if warm_up(bench, one)}
    for number in range(1, bench.rounds + 1):
        for one in list(going):
            seconds = attempt(bench, one.name, partial(seconds_of, bench, one, one.clips))
            if seconds is None:
                del going[one]
                continue
            going[one].append(seconds)
            say(f"round {number}: {one.name}: {len(one.clips) / seconds:.3f} videos/s")
    for one, rounds in going.items():
        bench.results |= figures(bench, one, rounds)


def warm_up(bench: Bench, one: Contestant) -> bool:
    """Whether it runs at all."""
    return attempt(bench, one.name, partial(seconds_of, bench, one, one.clips[: one.warm_up])) is not None


def figures(bench: Bench, one: Contestant, seconds: Sequence[float]) -> dict[str, Any]:
    """What is said of a contestant: medians of its rounds."""
    middle, videos = statistics.median(seconds), len(one.clips)
    flops = Flops(*(bench.results[f"gpu.flops.{part}"] for part in ("vision", "prefill", "decode")))
    values = {
        "videos": videos,
        "seconds": middle,
        "seconds_of_rounds": list(seconds),
        "videos_per_second": videos / middle,
        "tokens_per_second": videos * one.candidates * bench.new_tokens / middle,
        "mfu": flops.needed(videos, one.candidates) / middle / peak_flops(bench.results["gpu.name"]),
    }
    return {f"gpu.{one.name}.{name}": value for name, value in values.items()}


def measure_contestants(bench: Bench) -> None:
    """Ours, the loop, the batches; and how many times faster ours is."""
    compete(bench, all_contestants(bench))
    for count in CANDIDATES:
        own = bench.results.get(f"gpu.ours.m{count}.videos_per_second")
        for name in ("loop", "batch"):
            theirs = bench.results.get(f"gpu.{name}.m{count}.videos_per_second")
            if own and theirs:
                bench.results[f"gpu.ours.m{count}.over_{name}"] = own / theirs


# attention implementations


def measure_attention(bench: Bench) -> None:
    """Ours with every implementation there is, in turn; the model keeps the one it came with."""
    own = bench.model.config._attn_implementation
    names = [own, *(["eager"] if bench.tiny else []), *(["flash_attention_2"] if has_flash_attention(bench) else [])]
    captioner = make_captioner(bench)
    compete(
        bench,
        [
            Contestant(
                f"attention.{name}.m{count}", count, partial(with_attention, bench, captioner, name, count),
                bench.clips, len(bench.clips),
            )
            for count in CANDIDATES
            for name in names
        ],
    )  # fmt: skip
    bench.model.set_attn_implementation(own)


def has_flash_attention(bench: Bench) -> bool:
    """Whether it can be measured here; if not, the results say why."""
    if bench.on_cuda and find_spec("flash_attn") is not None:
        return True
    reason = "flash_attn is not installed" if bench.on_cuda else "it needs a CUDA GPU"
    bench.results["gpu.attention.flash_attention_2.failed"] = reason
    say(f"flash_attention_2 left out: {reason}")
    return False


def with_attention(bench: Bench, captioner: Any, name: str, candidates: int, clips: Sequence[Any]) -> list[int]:
    """Ours on one attention implementation; switching to it takes no time worth counting."""
    bench.model.set_attn_implementation(name)
    return caption(captioner, candidates, clips)


# one decoding step


@dataclass(frozen=True, slots=True)
class StepKind:
    """One way to run a decoding step of the plain model."""

    static: bool
    """Whether the cache has its final size from the start."""
    compiled: bool
    """Whether the model is compiled."""


STEP_KINDS = {"eager": StepKind(False, False), "static": StepKind(True, False), "compiled": StepKind(True, True)}
"""What `generate` does by default, with `cache_implementation="static"` uncompiled, and with it compiled."""


class GrowingTexts:
    """A batch of texts that grow by a token a step, prepared as `generate` prepares them, on a made-up cache."""

    def __init__(self, bench: Bench, batch: int, kind: StepKind) -> None:
        prompt = bench.results["gpu.prompt_tokens"]
        self._model = bench.model
        self._call = compiled(bench) if kind.compiled else bench.model
        self._cache = filled_cache(bench, batch, prompt, static=kind.static)
        self._tokens = torch.zeros(batch, 1, dtype=torch.long, device=bench.device)
        self._mask = torch.ones(batch, prompt + 1, dtype=torch.long, device=bench.device)
        self._positions = torch.full((4, batch, 1), prompt, device=bench.device)

    def grow(self, steps: int) -> None:
        """Append the likeliest token, `steps` times."""
        for _ in range(steps):
            inputs = self._model.prepare_inputs_for_generation(
                self._tokens, **{cache_argument(self._model): self._cache}, attention_mask=self._mask,
                position_ids=self._positions, use_cache=True,
            )  # fmt: skip
            logits = self._call(**inputs, logits_to_keep=1).logits
            self._tokens = logits[:, -1].argmax(-1, keepdim=True)
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=-1)
            self._positions = self._positions + 1


def filled_cache(bench: Bench, batch: int, length: int, *, static: bool) -> Any:
    """A cache that holds `length` made-up tokens for each of `batch` texts, and has room for the steps."""
    from transformers import DynamicCache, StaticCache

    text = bench.model.config.get_text_config(decoder=True)
    room = length + 1 + DECODE_WARM_UP + DECODE_STEPS
    cache = StaticCache(config=text, max_cache_len=room) if static else DynamicCache(config=text)
    shape = (batch, text.num_key_value_heads, length, text.head_dim)
    for layer in range(text.num_hidden_layers):
        made_up = torch.randn(shape, dtype=bench.model.dtype, device=bench.device)
        cache.update(made_up, made_up, layer)
    return cache


def compiled(bench: Bench) -> Callable[..., Any]:
    """The model compiled as `generate` does it, from scratch; off CUDA the graph is captured and run as it is."""
    torch._dynamo.reset()
    options = {"mode": "reduce-overhead"} if bench.on_cuda else {"backend": "eager"}
    call: Callable[..., Any] = torch.compile(bench.model.__call__, dynamic=False, **options)
    return call


def step_times(bench: Bench, batch: int, kind: StepKind) -> dict[str, float]:
    """Milliseconds a step, and seconds until the first ones, compilation included, are over."""
    texts = GrowingTexts(bench, batch, kind)
    with torch.no_grad():
        warming, _ = timed(bench, lambda: texts.grow(1 + DECODE_WARM_UP))
        seconds, _ = timed(bench, lambda: texts.grow(DECODE_STEPS))
    return {"ms": 1000 * seconds / DECODE_STEPS, "warm_up_seconds": warming}


def measure_decode(bench: Bench) -> None:
    """Every kind of step at every batch size."""
    for batch in DECODE_BATCHES:
        for name, kind in STEP_KINDS.items():
            free_memory()
            label = f"decode.b{batch}.{name}"
            times = attempt(bench, label, partial(step_times, bench, batch, kind))
            if times is not None:
                say(f"{label}: {times['ms']:.2f} ms a step")
                bench.results |= {f"gpu.{label}.{key}": value for key, value in times.items()}
    torch._dynamo.reset()


# all of it

PARTS: dict[str, Callable[[Bench], None]] = {
    "contestants": measure_contestants,
    "attention": measure_attention,
    "decode": measure_decode,
}


def describe(bench: Bench) -> None:
    """What is measured where, and what the task needs."""
    inputs = plain_inputs(bench, bench.clips[:1])
    prompt, grid = inputs["input_ids"].shape[1], inputs["video_grid_thw"][0].tolist()
    flops = flops_of(bench.model.config, grid=grid, prompt_tokens=prompt, new_tokens=bench.new_tokens)
    values = {
        **machine(bench),
        "date": date.today().isoformat(),
        "tiny": bench.tiny,
        "parameters": sum(one.numel() for one in bench.model.parameters()),
        "attention": bench.model.config._attn_implementation,
        "clips": len(bench.clips),
        "frames": len(bench.clips[0].frames),
        "prompt_tokens": prompt,
        "new_tokens": bench.new_tokens,
        "rounds": bench.rounds,
        **{f"flops.{part}": getattr(flops, part) for part in ("vision", "prefill", "decode")},
    }
    bench.results |= {f"gpu.{name}": value for name, value in values.items()}


def machine(bench: Bench) -> dict[str, Any]:
    """The card and the versions."""
    name = torch.cuda.get_device_name(bench.device) if bench.on_cuda else platform.processor() or platform.machine()
    peak = peak_flops(name)
    values = {
        "name": name,
        "peak_teraflops": peak / 1e12,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if bench.on_cuda else None,
        **{package: version(package) for package in ("torch", "transformers", "reelscribe")},
    }
    if bench.on_cuda:
        values["memory_gib"] = torch.cuda.get_device_properties(bench.device).total_memory / 2**30
    if math.isnan(peak):
        values["note"] = f"no utilisation: the bfloat16 peak of {name!r} is not in the table"
    return values


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Put the results where they belong, whole; JSON has no NaN, so it becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in results.items()
    }
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", "utf-8")
    unfinished.replace(path)


def say(line: str) -> None:
    """Tell whoever waits."""
    print(line, flush=True)


def table(results: Mapping[str, Any]) -> str:
    """The results as a person reads them: contestants, ratios, decoding steps, and what went wrong."""
    heads = " ".join(f"{head:>9}" for head, _, _ in COLUMNS)
    names = [key.removesuffix(".videos_per_second") for key in results if key.endswith(".videos_per_second")]
    rows = [f"{'':34}{heads}", *(contestant_row(results, name) for name in names)]
    rows += [f"{key}: {value:.2f} times" for key, value in results.items() if ".over_" in key]
    rows += [f"{key}: {value:.2f}" for key, value in results.items() if key.endswith(".ms")]
    return "\n".join(rows + [f"{key}: {value}" for key, value in results.items() if key.endswith((".failed", ".note"))])


COLUMNS = (
    ("videos/s", "videos_per_second", ".3f"),
    ("tokens/s", "tokens_per_second", ".1f"),
    ("MFU", "mfu", ".2%"),
    ("GiB", "peak_gib", ".1f"),
)
"""Head, figure and format."""


def contestant_row(results: Mapping[str, Any], name: str) -> str:
    """One contestant's figures; a dash for what is not known."""
    values = [(results.get(f"{name}.{key}", NAN), form) for _, key, form in COLUMNS]
    cells = ["-" if math.isnan(value) else format(value, form) for value, form in values]
    return f"{name:34}" + " ".join(f"{cell:>9}" for cell in cells)


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more; got {number}")
    return number


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu with --tiny")
    parser.add_argument("--clips", type=positive, help=f"default: {FULL.clips}")
    parser.add_argument("--frames", type=positive, help=f"frames of a clip, an even number; default: {FULL.frames}")
    parser.add_argument("--new-tokens", type=positive, help=f"tokens of every text; default: {FULL.new_tokens}")
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="a small shape and small clips, to try the script out")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(given)
    if args.frames is not None and args.frames % 2:
        parser.error(f"--frames must be even, since the model sees them in pairs; got {args.frames}")
    return args


def unusable_device(args: argparse.Namespace) -> str | None:
    """Why the device cannot be used, if so."""
    if not args.device.startswith("cuda"):
        return None if args.tiny else f"the full model needs a CUDA GPU; --device {args.device} goes with --tiny"
    if torch.cuda.is_available():
        return None
    return "benchmarks.gpu needs a CUDA GPU and there is none; `--device cpu --tiny` tries the script out without one"


def main(given: Sequence[str] | None = None) -> None:
    """Measure, write, print; fail if a whole part did."""
    args = arguments(given)
    reason = unusable_device(args)
    if reason is not None:
        sys.exit(reason)
    if args.tiny:
        torch.set_num_threads(1)  # ops this small only wait for each other's threads
    bench = make_bench(args)
    describe(bench)
    say(f"{bench.results['gpu.name']}: {bench.results['gpu.prompt_tokens']} prompt tokens a clip")
    for part in args.parts:
        attempt(bench, part, partial(PARTS[part], bench))
        write_json(args.out, bench.results)
    say(table(bench.results))
    say(f"written to {args.out}")
    if any(f"gpu.{part}.failed" in bench.results for part in args.parts):
        sys.exit(1)


if __name__ == "__main__":
    main()
