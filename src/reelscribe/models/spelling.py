"""Names in `model_params` that mean something elsewhere, or by another name, and other spellings of number types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..video.frames.moments import FrameSettings
from .captioner import ELSEWHERE, HF_NAMES, GenerationConfig

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
"""Short names of number types, and torch's own."""

_QUANTIZED = 'say quantization_config={"load_in_4bit": true}, or load_in_8bit in the same place'
_FLASH = "say attn_implementation=flash_attention_2"
_NOT_NEEDED = "leave it out, there is nothing to choose"
_VLLM = "that is an argument of vLLM, which runs the model with enable_vllm (--vllm)"
_TEMPLATE = 'chat templates read it: say chat_template_kwargs={"enable_thinking": false}'
TRANSFORMERS_ADVICE: Mapping[str, str] = {
    "load_in_": _QUANTIZED,
    "bnb_": f"{_QUANTIZED}, with this beside it",
    "llm_int8_": f"{_QUANTIZED}, with this beside it",
    "quantization": _QUANTIZED,
    "use_flash_attention_2": _FLASH,
    "_attn_implementation": _FLASH,
    "use_auth_token": "say token",
    "low_cpu_mem_usage": _NOT_NEEDED,
    "use_fast": _NOT_NEEDED,
    "tensor_parallel_size": _VLLM,
    "gpu_memory_utilization": _VLLM,
    "max_model_len": _VLLM,
    "enforce_eager": _VLLM,
}
"""Names that models run by transformers are given, or what those begin with, and what to say instead."""
VLLM_ADVICE: Mapping[str, str] = {
    "load_in_8bit": "vLLM does not quantise to 8 bits so; leave it out, or say quantization=fp8",
    "load_in_": "say quantization=bitsandbytes",
    "quantization_config": "say quantization=bitsandbytes, or another method of vLLM",
    "device_map": "say tensor_parallel_size, the number of devices that the model is spread over",
    "attn_implementation": "vLLM chooses by itself; leave it out",
    "token": "say hf_token",
    "cache_dir": "say download_dir",
}
"""The same for models run by vLLM."""
SERVER_ADVICE: Mapping[str, str] = {
    "device": "accelerator (--device) says where this process runs a model; a server chooses by itself: leave it out",
    "adapter": "a server loads adapters itself, and serves each as a model of its own: name that one with --model "
    "(hf_model), and leave it out",
}
"""The same for models behind servers."""
_FRAMES = {"nframes": "num_frames", "video_fps": "fps"}
_OPTIONS = {"time_tolerance_seconds": "--time-tolerance"}


def misplaced(name: str, advice: Mapping[str, str]) -> str | None:
    """What a message about an unknown name in `model_params` ends with, where it is known elsewhere; else None.

    Args:
        name: the unknown name.
        advice: names, or what they begin with up to an underscore, and what to say instead.
    """
    for known, instead in advice.items():
        if name == known or (known.endswith("_") and name.startswith(known)):
            return instead
    frames = _FRAMES.get(name, name)
    if frames in {field.name for field in fields(FrameSettings)}:
        option = _OPTIONS.get(frames, f"--{frames.replace('_', '-')}")
        return f"what the model is shown is set with {option} ({frames}), beside model_params"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if name in (*GenerationConfig.model_fields, *HF_NAMES):
        return f"how text is written is set with --sampling-param {name}=… (sampling_params)"
    return _TEMPLATE if name == "enable_thinking" else None


def dtype_name(given: Any) -> Any:
    """A number type by torch's own name, where a text names one in another way; anything else as it is."""
    if not isinstance(given, str):
        return given
    name = given.strip().lower().removeprefix("torch.")
    return DTYPES.get(name, name)
