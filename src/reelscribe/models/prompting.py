"""What is said to a model and what it wants to see: names, chat messages, frame policies.

Shared by every back end that runs a Hugging Face checkpoint in this process; runs no model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError
from ..record import CaptionRequest
from ..video.sampling import FramePolicy

BUNDLED_MODELS = {"reelscribe/shapes": Path(__file__).parent / "demo"}
"""Models that come with the package: name to folder."""

PromptOrder = Literal["video_first", "text_first"]
Message = dict[str, Any]

_VIDEO = {"type": "video"}


def resolve_model(name: str) -> str:
    """The folder of a bundled model, else `name` as it is: a name on the hub or a local folder.

    Raises:
        ModelError: for a local path that is no folder with a model in it.
    """
    if name in BUNDLED_MODELS:
        return str(BUNDLED_MODELS[name])
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if path.is_absolute() or name.startswith((".", "~")):
        what = "is a file" if path.exists() else "does not exist"
        raise ModelError(f"model folder {name!r} {what}; give a folder with a config.json, or a name on the hub")
    return name


def _checked_folder(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise ModelError(f"model folder {str(path)!r} has no config.json; give the folder that a model was saved to")
    return str(path)


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


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


DEFAULT_FPS = 2.0
"""Frames per second where a processor names none."""
DEFAULT_MAX_FRAMES = 32
"""Most frames for a model whose own rule is not known here."""
DEFAULT_MAX_PIXELS = 1024 * 1024
"""Largest frame, height x width, for such a model; its processor shrinks it further."""


def policy_from_processor(processor: Any) -> FramePolicy:
    """What the model behind a transformers processor wants to see.

    Exact for the families of `POLICIES`, whose rules `video.sampling` follows; others get frames at a moderate rate
    and size, and their processor resizes them.
    """
    video = processor.video_processor
    return POLICIES.get(type(video).__name__, _other_policy)(video)


def has_exact_policy(processor: Any) -> bool:
    """Whether clips arrive as this processor itself would have made them, so that it must not resize them again."""
    return type(processor.video_processor).__name__ in POLICIES


def cap_pixels_per_frame(processor: Any) -> bool:
    """Whether the processor caps the pixels of each frame; unset means it does not.

    Said explicitly on every call, because transformers 5.22 changes what unset means.
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


def _other_policy(video: Any) -> FramePolicy:
    number = getattr(video, "num_frames", None)
    return FramePolicy(
        sampler="linspace",
        sizer="fit",
        fps=None if number else DEFAULT_FPS,
        num_frames=number,
        min_frames=2,
        max_frames=DEFAULT_MAX_FRAMES,
        multiple=1,
        max_pixels=DEFAULT_MAX_PIXELS,
    )


POLICIES: dict[str, Callable[[Any], FramePolicy]] = {
    "Qwen3VLVideoProcessor": _qwen3_policy,
    "Qwen2VLVideoProcessor": _qwen2_policy,
}
"""Class of the video processor to the function that reads its settings: Qwen3-VL; Qwen2-VL and Qwen2.5-VL."""
