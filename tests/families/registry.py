"""The families whose tiny checkpoints are built and compared with transformers: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

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
    models: tuple[str, ...]
    """Names on the hub that people use."""
    packages: tuple[str, ...] = ()
    """Packages that its processor or model needs besides ours."""

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


_ROWS = (
    Family("qwen2_vl", qwen.qwen2_vl, ("Qwen/Qwen2-VL-7B-Instruct",)),
    Family("qwen2_5_vl", qwen.qwen2_5_vl, ("Qwen/Qwen2.5-VL-7B-Instruct",)),
    Family("qwen3_vl", qwen.qwen3_vl, ("Qwen/Qwen3-VL-8B-Instruct",)),
    Family("qwen3_vl_moe", qwen.qwen3_vl_moe, ("Qwen/Qwen3-VL-30B-A3B-Instruct",)),
    Family("qwen3_5", qwen.qwen3_5, ("Qwen/Qwen3.5-9B",)),
    Family("qwen3_5_moe", qwen.qwen3_5_moe, ("Qwen/Qwen3.5-35B-A3B",)),
    Family("qwen4_exp", qwen.qwen4_exp, ()),
    Family("qwen2_5_omni", qwen.qwen2_5_omni, ("Qwen/Qwen2.5-Omni-7B",)),
    Family("exaone4_5", qwen.exaone4_5, ()),
    Family("hyperclovax_vision_v2", qwen.hyperclovax_vision_v2, ()),
    Family("video_llama_3", qwen.video_llama_3, ("lkhl/VideoLLaMA3-2B-Image-HF",)),
    Family("cosmos3_edge", qwen.cosmos3_edge, ()),
    Family("minicpmv4_6", qwen.minicpmv4_6, ()),
    Family("minicpmv4_7", qwen.minicpmv4_7, ()),
    Family("llava_onevision", llava.llava_onevision, ("llava-hf/llava-onevision-qwen2-7b-ov-hf",)),
    Family("llava_next_video", llava.llava_next_video, ("llava-hf/LLaVA-NeXT-Video-7B-hf",)),
    Family("video_llava", llava.video_llava, ("LanguageBind/Video-LLaVA-7B-hf",)),
    Family("internvl", llava.internvl, ("OpenGVLab/InternVL3-8B-hf",)),
    Family("smolvlm", llava.smolvlm, ("HuggingFaceTB/SmolVLM2-2.2B-Instruct",), packages=("num2words",)),
    Family("perception_lm", llava.perception_lm, ("facebook/Perception-LM-8B",), packages=("timm",)),
    Family("instructblipvideo", llava.instructblipvideo, ("Salesforce/instructblip-vicuna-7b",)),
    Family("glm4v", others.glm4v, ("zai-org/GLM-4.1V-9B-Thinking",)),
    Family("glm4v_moe", others.glm4v_moe, ("zai-org/GLM-4.5V",)),
    Family("glm46v", others.glm46v, ("zai-org/GLM-4.6V-Flash",)),
    Family("glm5_next", others.glm5_next, ()),
    Family("gemma4", others.gemma4, ()),
    Family("gemma4_unified", others.gemma4_unified, ()),
    Family("diffusion_gemma", others.diffusion_gemma, ()),
    Family("ernie4_5_vl_moe", others.ernie4_5_vl_moe, ("baidu/ERNIE-4.5-VL-28B-A3B-PT",)),
    Family("kimi_k25", others.kimi_k25, ("moonshotai/Kimi-K2.5",)),
    Family("minimax_m3_vl", others.minimax_m3_vl, ()),
    Family("muse_glimmer", others.muse_glimmer, ()),
    Family("nemotron_h_omni", others.nemotron_h_omni, ()),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
"""`model_type` to its row."""
