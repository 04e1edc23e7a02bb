"""Hints for `model_params` names that belong elsewhere or are spelt differently, and spellings of dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..video.frames.moments import FrameSettings
from .captioner import ELSEWHERE, HF_NAMES, GenerationConfig

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
"""Short names of dtypes to torch's own."""

_QUANTIZED = 'use quantization_config={"load_in_4bit": true}, or load_in_8bit in the same place'
_FLASH = "use attn_implementation=flash_attention_2"
_NOT_NEEDED = "leave it out; there is nothing to choose"
_VLLM = "that is an argument of vLLM; enable_vllm (--vllm) runs the model with it"
_TEMPLATE = 'chat templates read it: use chat_template_kwargs={"enable_thinking": false}'
TRANSFORMERS_ADVICE: Mapping[str, str] = {
    "load_in_": _QUANTIZED,
    "bnb_": f"{_QUANTIZED}, with this next to it",
    "llm_int8_": f"{_QUANTIZED}, with this next to it",
    "quantization": _QUANTIZED,
    "use_flash_attention_2": _FLASH,
    "_attn_implementation": _FLASH,
    "use_auth_token": "use token",
    "low_cpu_mem_usage": _NOT_NEEDED,
    "use_fast": _NOT_NEEDED,
    "tensor_parallel_size": _VLLM,
    "gpu_memory_utilization": _VLLM,
    "max_model_len": _VLLM,
    "enforce_eager": _VLLM,
}
"""Names that models run by transformers are given, or what those begin with, and what to say instead."""
VLLM_ADVICE: Mapping[str, str] = {
    "load_in_8bit": "vLLM does not quantise to 8 bits this way; leave it out, or use quantization=fp8",
    "load_in_": "use quantization=bitsandbytes",
    "quantization_config": "use quantization=bitsandbytes, or another method of vLLM",
    "device_map": "use tensor_parallel_size, the number of devices that the model is spread over",
    "attn_implementation": "vLLM chooses by itself; leave it out",
    "token": "use hf_token",
    "cache_dir": "use download_dir",
}
"""The same for models run by vLLM."""
SERVER_ADVICE: Mapping[str, str] = {
    "device": "accelerator (--device) sets where this process runs a model; a server decides itself: leave it out",
    "adapter": "a server loads adapters itself, and serves each as a separate model: name that one with --model "
    "(hf_model), and leave it out",
}
"""The same for models behind servers."""
_FRAMES = {"nframes": "num_frames", "video_fps": "fps"}
_OPTIONS = {"time_tolerance_seconds": "--time-tolerance"}


def misplaced(name: str, advice: Mapping[str, str]) -> str | None:
    """The hint for an unknown name in `model_params` that is known elsewhere; otherwise None.

    Args:
        name: the unknown name.
        advice: names, or their prefixes up to an underscore, and what to use instead.
    """
    for known, instead in advice.items():
        if name == known or (known.endswith("_") and name.startswith(known)):
            return instead
    frames = _FRAMES.get(name, name)
    if frames in {field.name for field in fields(FrameSettings)}:
        option = _OPTIONS.get(frames, f"--{frames.replace('_', '-')}")
        return f"what the model is shown is set with {option} ({frames}), not in model_params"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if name in (*GenerationConfig.model_fields, *HF_NAMES):
        return f"how text is written is set with --sampling-param {name}=… (sampling_params)"
    return _TEMPLATE if name == "enable_thinking" else None


def dtype_name(given: Any) -> Any:
    """A dtype by torch's own name, if a string spells it differently; anything else unchanged."""
    if not isinstance(given, str):
        return given
    name = given.strip().lower().removeprefix("torch.")
    return DTYPES.get(name, name)
