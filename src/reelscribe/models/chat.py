"""Model names, chat messages and frame policies.

Shared by every back end that runs a Hugging Face checkpoint in this process; runs no model itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..entry_points import FRAME_POLICIES as GROUP
from ..entry_points import Table
from ..errors import ModelError
from ..types import CaptionRequest
from ..video.frames.moments import FramePolicy, target_size
from .captioner import PromptOptions, PromptOrder
from .names import BUNDLED_MODELS, is_hub_name, local_folder
from .processor_rule import DEFAULT_MAX_FRAMES, processor_rule
from .processor_size import least_frames, sized_policy

Message = dict[str, Any]

TOKENS_PER_FRAME = 1024
"""Assumed for a model whose rule is unknown."""
MOST_RESERVED_TOKENS = 1 << 16
"""Room for a clip of such a model if its processor chooses the number of frames: few clips reach the possible maximum,
and the engine refuses a longer one."""
TOKENS_PER_TIMESTAMP = 12
"""Room for the marks and times around the frames of an exact family."""

_VIDEO = {"type": "video"}


def resolve_model(name: str) -> str:
    """The folder of a bundled model, else `name` as it is: a name on the hub or a local folder.

    Raises:
        ModelError: a local path is not a folder with a model.
    """
    if name in BUNDLED_MODELS:
        return str(BUNDLED_MODELS[name])
    folder = local_folder(name)
    if folder is not None:
        return _checked_folder(folder)
    if is_hub_name(name) and not _is_file(name):
        return name
    what = "is a file" if _is_file(name) else "does not exist"
    raise ModelError(f"model folder {name!r} {what}; give a folder with a config.json, or a name on the hub")


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, or invalid characters
        return False


def _checked_folder(path: Path) -> str:
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return str(path)
    snapshots = sorted(path.glob("snapshots/*/config.json"))
    hint = f"one is in {str(snapshots[-1].parent)!r}" if snapshots else "give the folder that a model was saved to"
    raise ModelError(f"model folder {str(path)!r} has no config.json; {hint}")


def chat_messages(request: CaptionRequest, *, order: PromptOrder = "video_first") -> list[Message]:
    """The conversation of one request in the form chat templates read: a system message if there is one, a user turn.

    Example:
        >>> request = CaptionRequest(RequestId(0, 0), "a.mp4", "What happens?")
        >>> chat_messages(request, order="text_first")[0]["content"]
        [{'type': 'text', 'text': 'What happens?'}, {'type': 'video'}]
    """
    content = [dict(_VIDEO), _text(request.prompt)]
    if order == "text_first":
        content.reverse()
    user = {"role": "user", "content": content}
    if request.system_prompt is None:
        return [user]
    return [{"role": "system", "content": [_text(request.system_prompt)]}, user]


def render_prompt(processor: Any, request: CaptionRequest, options: PromptOptions) -> str:
    """The prompt of a request as the model's chat template renders it, with one placeholder for the video."""
    prompt: str = processor.apply_chat_template(
        chat_messages(request, order=options.prompt_order),
        tokenize=False,
        add_generation_prompt=True,
        **options.chat_template_kwargs,
    )
    return prompt


def wants_special_tokens(processor: Any, prompt: str) -> bool:
    """Whether the tokenizer must add its special tokens: not if the chat template has written them already."""
    bos = processor.tokenizer.bos_token
    return not (bos is not None and prompt.startswith(bos))


def frame_arguments(processor: Any) -> dict[str, Any]:
    """The processor's arguments for the frames: they are the ones to show; if the policy is exact, at their final
    size."""
    if not has_exact_policy(processor):
        return {"do_sample_frames": False}
    return {"do_sample_frames": False, "do_resize": False, "cap_pixels_per_frame": cap_pixels_per_frame(processor)}


def most_video_tokens(policy: FramePolicy, *, exact: bool) -> int:
    """Tokens that no clip of a policy exceeds, marks and times included; shapes longer than 4 to 1 aside.

    Args:
        policy: which frames, at which size.
        exact: whether the policy's sizes are final; otherwise a frame counts `TOKENS_PER_FRAME`.
    """
    most = policy.num_frames or policy.max_frames if policy.rule is None else policy.rule.most_frames()
    if not exact and policy.sizer == "fit":
        tokens = most * TOKENS_PER_FRAME
        return tokens if policy.rule is None or policy.num_frames else min(tokens, MOST_RESERVED_TOKENS)
    return max(_video_tokens(policy, frames, *shape) for frames in range(1, most + 1) for shape in _LARGE_SHAPES)


_LARGE_SHAPES = ((16384, 16384), (16384, 9216), (9216, 16384), (16384, 4096), (4096, 16384))
"""Heights and widths of sources that every budget shrinks."""


def _video_tokens(policy: FramePolicy, frames: int, height: int, width: int) -> int:
    height, width = target_size(policy, frames, height, width)
    steps = -(-frames // policy.temporal_patch)
    return steps * (height * width // policy.multiple**2 + TOKENS_PER_TIMESTAMP)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


DEFAULT_FPS = 2.0
"""Frames per second if a processor gives none."""
DEFAULT_MAX_PIXELS = 1024 * 1024
"""Largest frame, height x width, for a model whose own rule is unknown; its processor shrinks it further."""


def policy_from_processor(processor: Any) -> FramePolicy:
    """The frame policy of the model of a transformers processor.

    Exact for the families of `POLICIES`, whose rules `video.frames` implements. Other processors are asked: how many
    frames and which, if they sample themselves, else which frames make up a moderate number.
    """
    video = _own_video_processor(processor)
    return POLICIES.get(type(video).__name__, _other_policy)(video)


def _own_video_processor(processor: Any) -> Any:
    """The video processor with the size that the processor passes it on every call, if it does (Qwen-Omni)."""
    size = _call_defaults(processor).get("size")
    if size is None:
        return processor.video_processor
    video = copy.copy(processor.video_processor)
    video.size = size
    return video


def _call_defaults(processor: Any) -> Mapping[str, Any]:
    """A processor's default arguments for its video processor: its own attribute since transformers 5.24, one of its
    arguments' class before."""
    own = getattr(processor, "videos_kwargs", None)
    if isinstance(own, Mapping):
        return own
    defaults: Mapping[str, Any] = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    return dict(defaults.get("videos_kwargs", {}))


def has_exact_policy(processor: Any) -> bool:
    """Whether clips arrive as this processor would make them, so that it must not resize them again."""
    return type(processor.video_processor).__name__ in POLICIES


def cap_pixels_per_frame(processor: Any) -> bool:
    """Whether the processor caps the pixels of each frame; unset means it does not.

    Passed explicitly on every call, since transformers warns that the default will change; as of 5.24 it has not.
    """
    return bool(getattr(processor.video_processor, "cap_pixels_per_frame", None))


def _qwen3_policy(video: Any) -> FramePolicy:
    return FramePolicy(sampler="linspace", sizer="video_budget", **_qwen_settings(video))


def _qwen2_policy(video: Any) -> FramePolicy:
    return FramePolicy(sampler="stride", sizer="frame_budget", **_qwen_settings(video))


def _qwen_settings(video: Any) -> dict[str, Any]:
    size = _size(video)
    return {
        "fps": None if video.num_frames is not None else float(video.fps or DEFAULT_FPS),
        "num_frames": video.num_frames,
        "min_frames": video.min_frames,
        "max_frames": video.max_frames,
        "temporal_patch": video.temporal_patch_size,
        "multiple": video.patch_size * video.merge_size,
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "frame_cap_tokens": video.max_video_tokens if video.cap_pixels_per_frame else None,
    }


def _size(video: Any) -> Mapping[str, int]:
    return video.size if isinstance(video.size, Mapping) else dict(video.size)


OTHER_POLICY = FramePolicy(
    sampler="linspace",
    sizer="fit",
    fps=DEFAULT_FPS,
    min_frames=2,
    max_frames=DEFAULT_MAX_FRAMES,
    multiple=1,
    max_pixels=DEFAULT_MAX_PIXELS,
)
"""Frames for a model whose processor is unknown: one behind a server."""

SAMPLES_WHEN_READING = frozenset({"SmolVLMVideoProcessor"})
"""Video processors that sample whatever their `do_sample_frames` is, because the whole processor tells them to."""


def _other_policy(video: Any) -> FramePolicy:
    """A policy with the processor's own rule for moments, and for sizes if it is known."""
    from .loading import quiet_transformers

    with quiet_transformers():
        samples = bool(video.do_sample_frames) or type(video).__name__ in SAMPLES_WHEN_READING
        rule = processor_rule(video, samples=samples, least=least_frames(video))
        policy = replace(
            OTHER_POLICY,
            rule=rule,
            temporal_patch=int(getattr(video, "temporal_patch_size", None) or 1),
            frame_multiple=rule.multiple,
            least_frames=rule.least,
        )
        return sized_policy(policy, video)


POLICIES: Table[Callable[[Any], FramePolicy]] = Table(
    GROUP,
    {"Qwen3VLVideoProcessor": _qwen3_policy, "Qwen2VLVideoProcessor": _qwen2_policy},
    what="frame policy",
    fits=callable,
    rule="a function of a video processor",
)
"""Class of the video processor to the function that reads its settings: Qwen3-VL; Qwen2-VL and Qwen2.5-VL; those of
packages stand under the entry points `reelscribe.frame_policies`."""
