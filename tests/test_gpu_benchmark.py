"""The benchmark for cards counts what it says, and runs from end to end where there is none."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import gpu

from reelscribe.models.chat import BUNDLED_MODELS
from reelscribe.models.hf.kv_cache import cache_argument
from reelscribe.models.loading import load_processor

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def processor():
    return load_processor(str(BUNDLED_MODELS["reelscribe/shapes"]), {})


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def counted(work):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = work()
    return counter.get_total_flops(), found


def test_the_large_shape_has_the_parameters_of_qwen3_vl_8b(processor):
    model = gpu.random_model(gpu.FULL, processor, "meta")
    assert sum(one.numel() for one in model.parameters()) == 8_767_123_696


def test_flops_are_those_that_torch_counts(processor, tmp_path):
    bench = gpu.make_bench(gpu.arguments(["--device", "cpu", "--tiny", "--out", str(tmp_path / "out.json")]))
    bench.model.set_attn_implementation("eager")
    inputs = gpu.plain_inputs(bench, bench.clips[:1])
    grid, prompt = inputs["video_grid_thw"], inputs["input_ids"].shape[1]
    flops = gpu.flops_of(bench.model.config, grid=grid[0].tolist(), prompt_tokens=prompt, new_tokens=2)
    text = gpu.TINY.text
    pair = text["num_hidden_layers"] * text["num_attention_heads"] * text["head_dim"]

    vision, _ = counted(lambda: bench.model.model.visual(inputs["pixel_values_videos"], grid_thw=grid))
    both, output = counted(lambda: bench.model(**inputs, use_cache=True, logits_to_keep=1))
    step, _ = counted(
        lambda: bench.model(
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            position_ids=torch.full((4, 1, 1), prompt),
            **{cache_argument(bench.model): output[cache_argument(bench.model)]},
        )
    )
    assert vision == flops.vision
    assert both - vision == flops.prefill + 2 * pair * prompt**2, "torch counts the whole square of causal attention"
    assert step == flops.decode


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA T4", None),
    ],
)
def test_peaks_go_by_the_name_of_the_card(name, teraflops):
    peak = gpu.peak_flops(name)
    assert math.isnan(peak) if teraflops is None else peak == teraflops * 1e12


def test_what_fails_is_told_and_the_others_go_on(tmp_path):
    bench = gpu.make_bench(gpu.arguments(["--device", "cpu", "--tiny", "--out", str(tmp_path / "out.json")]))
    gpu.describe(bench)

    def short(clips):
        return [bench.new_tokens - 1] * len(clips)

    def right(clips):
        return [bench.new_tokens] * len(clips)

    gpu.compete(bench, [gpu.Contestant(run.__name__, 1, run, bench.clips, 1) for run in (short, right)])
    assert "all must have 8" in bench.results["gpu.short.failed"]
    assert "gpu.short.videos_per_second" not in bench.results
    assert bench.results["gpu.right.videos_per_second"] > 0


def test_the_largest_batch_is_found_by_trying(monkeypatch):
    bench = gpu.Bench(None, None, list("abcdefgh"), 8, 1, tiny=True)

    def crowded(bench, candidates, size, clips):
        assert len(clips) == size
        if size * candidates > 12:
            raise torch.OutOfMemoryError("out of memory")
        return [8] * size * candidates

    monkeypatch.setattr(gpu, "in_batches", crowded)
    assert [gpu.largest_batch(bench, candidates) for candidates in (1, 4, 16)] == [8, 2, 1]
    assert set(bench.results) == {"gpu.batch.m4.of_4.failed", "gpu.batch.m16.of_1.failed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.slow
def test_without_a_card_one_line_says_so():
    done = command()
    assert done.returncode == 1
    assert done.stdout == ""
    line = "benchmarks.gpu needs a CUDA GPU and there is none; `--device cpu --tiny` tries the script out without one"
    assert done.stderr == f"{line}\n"


@pytest.mark.slow
def test_everything_runs_on_a_small_shape(tmp_path):
    out = tmp_path / "gpu.json"
    done = command("--device", "cpu", "--tiny", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text("utf-8"))
    failed = {name for name in results if name.endswith(".failed")}
    assert failed == {"gpu.attention.flash_attention_2.failed"}
    for name in ("ours", "loop", "batch"):
        for count in (1, 4):
            assert results[f"gpu.{name}.m{count}.videos_per_second"] > 0
            assert results[f"gpu.{name}.m{count}.mfu"] is None
    steps = {f"gpu.decode.b{batch}.{kind}.ms" for batch in (4, 16, 64) for kind in ("eager", "static", "compiled")}
    assert steps <= set(results)
