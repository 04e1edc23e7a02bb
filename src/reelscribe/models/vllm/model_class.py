"""The class with which vLLM runs a checkpoint: what it uses of a video, and whether it is a hybrid.

vLLM is queried before its engine starts, in this process (0032); a class that would show a model no video, or a video
without the times that the model should read, is refused here instead of failing on every row.
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
"""Two sets of frame times of one small clip, to test whether a processor writes them into the prompt."""
PROBE_SIDE = 224


@dataclass(frozen=True, slots=True)
class EngineClass:
    """What vLLM reports about a checkpoint."""

    name: str
    """The class that runs it."""
    takes_videos: bool
    """Whether it reads videos at all."""
    takes_times: bool
    """Whether it passes the times of frames to the model's processor."""
    is_fallback: bool
    """Whether it is transformers' own model inside vLLM."""
    is_hybrid: bool
    """Whether some layers keep a state instead of keys and values, as in Qwen3.5."""


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
    """Refuse a class that shows the model no video, or drops the times that its processor writes into the prompt.

    Raises:
        ModelError: the message says which.
    """
    what = f"vLLM runs it with {found.name}" + (", transformers' own model" if found.is_fallback else "")
    instead = "leave out enable_vllm (--vllm) to run it with transformers"
    if not found.takes_videos:
        raise ModelError(f"{what}, which reads no videos; {instead}")
    if not found.takes_times and writes_times(processor, policy):
        raise ModelError(f"{what}, which drops the times of frames that this model is meant to read; {instead}")


def writes_times(processor: Any, policy: FramePolicy) -> bool:
    """Whether a processor's output for a clip depends on the times of its frames, as far as can be determined."""
    try:
        early, late = (_made(processor, policy, times) for times in PROBE_TIMES)
    except Exception:  # unsupported call: vLLM's class makes its own, and a video will show whether that works
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
