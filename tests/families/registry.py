"""The families whose tiny checkpoints are compared with transformers, and what comes of each: one row a family.

A row says what holds today, also where that is less than it should be: the tests fail where more or less holds, so
that the row, the page `docs/models.md` and `reelscribe models` change with the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from reelscribe.models.loading import quiet_transformers

from . import llava, others, qwen
from .tiny import Tiny


@dataclass(frozen=True, slots=True)
class Family:
    """One family."""

    name: str
    """Its `model_type`."""
    build: Callable[[], Tiny]
    """Makes a tiny model and its processor."""
    model: str
    """A name on the hub that people use."""
    packages: tuple[str, ...] = ()
    """Packages that its processor or model needs besides ours."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What its processor must be asked for, where it takes every frame of a file by itself; `num_frames` stands for as
    many as reelscribe shows."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What its processor must be told besides, because what its model reads is not all there by default."""
    frames: str = "exact"
    """`exact`: frames, times, sizes and tokens are those of its processor alone; `own rule`: those of its processor
    when it is asked for the above; `differs`."""
    captions: str = "exact"
    """`exact`: tensors, scores and text are those of `generate`; `refused`: when it is loaded; `fails`: every video."""
    because: str = ""
    """Part of the message, where it is refused or fails."""
    batches: str = "exact"
    """`exact`: a batch writes what single videos get; `differs`."""
    candidates: str = "one prefill"
    """`one prefill`: four candidates share one pass over their prompt; `repeated prompt`: each has its own; `fails`."""
    note: str = ""
    """What its users should know, one sentence."""

    def missing(self) -> str | None:
        """Why it cannot be built here; None: it can."""
        if self.name not in CONFIG_MAPPING_NAMES:
            return f"this version of transformers does not know {self.name}"
        absent = [name for name in self.packages if find_spec(name) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    def save(self, folder: Path) -> Path:
        """Build the checkpoint into a folder, the same every time."""
        with torch.random.fork_rng(), quiet_transformers():
            torch.manual_seed(0)
            return self.build().save(folder)


RATE = {"fps": 2}
NUMBER = {"num_frames": None}
PADDING = "In a batch it may write something else than alone."

_ROWS = (
    Family("qwen2_vl", qwen.qwen2_vl, "Qwen/Qwen2-VL-7B-Instruct", asked=RATE, frames="own rule"),
    Family("qwen2_5_vl", qwen.qwen2_5_vl, "Qwen/Qwen2.5-VL-7B-Instruct", asked=RATE, frames="own rule"),
    Family("qwen3_vl", qwen.qwen3_vl, "Qwen/Qwen3-VL-8B-Instruct"),
    Family("qwen3_vl_moe", qwen.qwen3_vl_moe, "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    Family("qwen3_5", qwen.qwen3_5, "Qwen/Qwen3.5-27B"),
    Family("qwen3_5_moe", qwen.qwen3_5_moe, "Qwen/Qwen3.5-35B-A3B"),
    Family("qwen4_exp", qwen.qwen4_exp, "Qwen/Qwen4-Exp"),
    Family(
        "qwen2_5_omni",
        qwen.qwen2_5_omni,
        "Qwen/Qwen2.5-Omni-7B",
        asked=RATE,
        frames="own rule",
        note="Sound is not heard.",
    ),
    Family(
        "qwen3_omni_moe",
        qwen.qwen3_omni_moe,
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        asked=RATE,
        told=RATE,
        frames="own rule",
        note="Sound is not heard.",
    ),
    Family("cosmos3_omni", qwen.cosmos3_omni, "nvidia/Cosmos3-Nano"),
    Family("cohere_compass", qwen.cohere_compass, "CohereLabs/North-Micro-Vision-Instruct"),
    Family("exaone4_5", qwen.exaone4_5, "LGAI-EXAONE/EXAONE-4.5-33B", asked=RATE, frames="own rule"),
    Family(
        "hyperclovax_vision_v2",
        qwen.hyperclovax_vision_v2,
        "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
        asked=RATE,
        frames="own rule",
    ),
    Family("video_llama_3", qwen.video_llama_3, "lkhl/VideoLLaMA3-2B-Image-HF", asked=NUMBER, frames="own rule"),
    Family("cosmos3_edge", qwen.cosmos3_edge, "nvidia/Cosmos3-Edge", told={"return_mm_token_type_ids": True}),
    Family("minicpmv4_6", qwen.minicpmv4_6, "openbmb/MiniCPM-V-4.6"),
    Family("minicpmv4_7", qwen.minicpmv4_7, "openbmb/MiniCPM-V-4.7"),
    Family(
        "llava_onevision",
        llava.llava_onevision,
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        asked=NUMBER,
        frames="own rule",
    ),
    Family(
        "llava_next_video", llava.llava_next_video, "llava-hf/LLaVA-NeXT-Video-7B-hf", asked=NUMBER, frames="own rule"
    ),
    Family("video_llava", llava.video_llava, "LanguageBind/Video-LLaVA-7B-hf", asked=NUMBER, frames="own rule"),
    Family("internvl", llava.internvl, "OpenGVLab/InternVL3-8B-hf", asked=NUMBER, frames="own rule"),
    Family("smolvlm", llava.smolvlm, "HuggingFaceTB/SmolVLM2-2.2B-Instruct", packages=("num2words",)),
    Family(
        "perception_lm",
        llava.perception_lm,
        "facebook/Perception-LM-1B",
        packages=("timm",),
        asked=NUMBER,
        frames="own rule",
    ),
    Family(
        "instructblipvideo",
        llava.instructblipvideo,
        "Salesforce/instructblip-vicuna-7b",
        captions="refused",
        because="it has no chat template",
    ),
    Family("glm4v", others.glm4v, "zai-org/GLM-4.1V-9B-Thinking"),
    Family("glm4v_moe", others.glm4v_moe, "zai-org/GLM-4.5V"),
    Family("glm46v", others.glm46v, "zai-org/GLM-4.6V-Flash"),
    Family("glmga", others.glmga, ""),
    Family(
        "glm5_next",
        others.glm5_next,
        "zai-org/GLM-5.3-Flash",
        batches="differs",
        note=PADDING,
    ),
    Family("gemma4", others.gemma4, "google/gemma-4-E2B-it"),
    Family("gemma4_unified", others.gemma4_unified, "google/gemma-4-12B-it"),
    Family(
        "diffusion_gemma",
        others.diffusion_gemma,
        "google/diffusiongemma-26B-A4B-it",
        captions="refused",
        because="it does not write text token by token",
    ),
    Family("ernie4_5_vl_moe", others.ernie4_5_vl_moe, "baidu/ERNIE-4.5-VL-28B-A3B-PT"),
    Family(
        "kimi_k25",
        others.kimi_k25,
        "moonshotai/Kimi-K2.6",
    ),
    Family(
        "minimax_m3_vl",
        others.minimax_m3_vl,
        "MiniMaxAI/MiniMax-M3",
        told={"do_resize": True},
        asked={"fps": 1},
        frames="own rule",
    ),
    Family("muse_glimmer", others.muse_glimmer, "meta-models/Muse-Glimmer-30B"),
    Family(
        "nemotron_h_omni",
        others.nemotron_h_omni,
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
        asked=NUMBER,
        frames="own rule",
        note="One video at a time.",
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
"""`model_type` to its row."""
