"""The class that vLLM runs a checkpoint with: what it takes of a video, and whether it is a hybrid.

vLLM is asked before its engine starts, in this process; a class that would show a model no video, or a video without
the times that the model is meant to read, is refused here and not at every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ModelError
from ...types import CaptionRequest, Clip, RequestId
from ...video.frames.moments import FramePolicy, target_size
from ..captioner import PromptOptions
from ..inputs import Asking

PROBE_TIMES = ((0.0, 0.5, 1.0, 1.5), (3.0, 7.2, 11.0, 40.0))
"""Seconds at which the frames of one small clip stand, twice over, to see whether a processor writes them down."""
PROBE_SIDE = 224


@dataclass(frozen=True, slots=True)
class EngineClass:
    """What vLLM says about a checkpoint."""

    name: str
    """The class that runs it."""
    takes_videos: bool
    """Whether it reads videos at all."""
    takes_times: bool
    """Whether it hands the times of frames to the model's processor."""
    is_fallback: bool
    """Whether it is transformers' own model inside of vLLM."""
    is_hybrid: bool
    """Whether some layers keep a state in place of keys and values, as in Qwen3.5."""


def engine_class(model: str, arguments: Mapping[str, Any]) -> EngineClass:
    """Ask vLLM which class would run `model` with these arguments of `AsyncEngineArgs`; errors are vLLM's own."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = AsyncEngineArgs(model=model, **arguments).create_model_config()
    info = MULTIMODAL_REGISTRY.get_processing_info(config) if config.is_multimodal_model else None
    return EngineClass(
        name=str(config.architecture),
        takes_videos=info is not None and "video" in info.supported_mm_limits,
        takes_times=info is not None and bool(info.get_data_parser().video_needs_metadata),
        is_fallback=bool(config.using_transformers_backend()),
        is_hybrid=bool(config.is_hybrid),
    )


def check_videos(found: EngineClass, processor: Any, policy: FramePolicy) -> None:
    """Refuse a class that shows the model no video, or none of the times that its processor writes down.

    Raises:
        ModelError: saying which.
    """
    what = f"vLLM runs it with {found.name}" + (", transformers' own model" if found.is_fallback else "")
    instead = "leave out enable_vllm (--vllm) to run it with transformers"
    if not found.takes_videos:
        raise ModelError(f"{what}, which reads no videos; {instead}")
    if not found.takes_times and writes_times(processor, policy):
        raise ModelError(f"{what}, which drops the times of frames that this model is meant to read; {instead}")


def writes_times(processor: Any, policy: FramePolicy) -> bool:
    """Whether what a processor makes of a clip depends on the times of its frames, as far as that can be found out."""
    try:
        early, late = (_made(processor, policy, times) for times in PROBE_TIMES)
    except Exception:  # it takes no such call: vLLM's class makes its own, and whether that works shows at a video
        return False
    return any(not _same(value, late.get(name)) for name, value in early.items())


def _made(processor: Any, policy: FramePolicy, times: tuple[float, ...]) -> Mapping[str, Any]:
    height, width = target_size(policy, len(times), PROBE_SIDE, PROBE_SIDE)
    frames = np.zeros((len(times), height, width, 3), np.uint8)
    clip = Clip(
        frames, np.array(times), duration_seconds=times[-1] + 1, source_fps=2, source_height=PROBE_SIDE,
        source_width=PROBE_SIDE,
    )  # fmt: skip
    return Asking(processor, PromptOptions()).ask([(CaptionRequest(RequestId(0, 0), "", "When?"), clip)])


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    return isinstance(one, torch.Tensor) == isinstance(other, torch.Tensor)
