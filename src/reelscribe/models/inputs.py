"""Call a model's processor for the inputs of requests: with which text, and in which form.

Knows processors; runs no model. The forms are tried on a tiny clip (`Asking.settle`), because what a processor accepts
is not documented.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..types import CaptionRequest, Clip
from ..video.frames.moments import frame_metadata
from .captioner import PromptOptions
from .chat import frame_arguments, has_exact_policy, render_prompt, wants_special_tokens

Shown = tuple[CaptionRequest, Clip]
"""A request and its clip."""
Made = Mapping[str, Any]
"""A processor's output: tensors by name."""

KINDS = "mm_token_type_ids"
"""The type of each token, text or not, which some processors return only on request."""
SECONDS = "video_second_per_grid"
"""Name, in processors of Qwen-Omni, of the seconds between the steps of each clip; they use an argument, `fps`."""


def _nested(metadata: Sequence[dict[str, Any]]) -> Any:
    return [[one] for one in metadata]


def _single(metadata: Sequence[dict[str, Any]]) -> Any:
    from transformers.video_utils import VideoMetadata

    [one] = metadata
    return VideoMetadata(**one)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to call a processor."""

    videos: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for its videos, besides those that every processor gets."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for its text, besides those that every processor gets."""
    metadata: Callable[[Sequence[dict[str, Any]]], Any] = _nested
    """How it is given the metadata of all clips."""


FORMS = (Form(), Form({"do_resize": True}), Form(metadata=_single), Form({"do_resize": True}, metadata=_single))
"""The ways that are tried, in this order: a list of metadata per text; frames of any size, if its own default accepts
only those that need no resizing; the metadata of the single video."""


class Asking:
    """A processor, and the form in which it is called.

    Args:
        processor: of the model.
        options: how prompts are rendered.
        device: where it resizes and cuts frames; None: its own choice.
    """

    def __init__(self, processor: Any, options: PromptOptions, *, device: Any = None) -> None:
        self._processor = processor
        self._options = options
        self._device = device
        self.form = Form()
        """How it is called."""

    def settle(self, model: Any, shown: Shown) -> None:
        """Find the first of `FORMS` that the processor accepts; if it accepts none the first is used.

        Args:
            model: the model that reads the inputs.
            shown: a request to try with.
        """
        for form in FORMS[:1] if has_exact_policy(self._processor) else FORMS:
            made = self._tried(form, shown)
            if made is not None:
                self.form = self._with_kinds(form, made, model, shown)
                return

    def ask(self, shown: Sequence[Shown], *, processor: Any = None) -> Made:
        """The processor's inputs for some requests in one call, left-padded.

        Args:
            shown: requests and their clips.
            processor: used instead of the model's own, of the same type.
        """
        texts = [render_prompt(self._processor, request, self._options) for request, _ in shown]
        made: Made = (processor or self._processor)(
            text=texts,
            videos=[[_writable(clip.frames)] for _, clip in shown],
            text_kwargs=self._text_arguments(texts[0]),
            videos_kwargs=self._video_arguments([clip for _, clip in shown]),
            return_tensors="pt",
        )
        return self._with_seconds(made, [clip for _, clip in shown])

    def _with_seconds(self, made: Made, clips: Sequence[Clip]) -> Made:
        """The same with the clips' own seconds between steps, if the processor has assumed another rate."""
        if SECONDS not in made:
            return made
        frames = self._processor.video_processor.temporal_patch_size
        seconds = [_own_seconds(float(one), clip, frames) for one, clip in zip(made[SECONDS], clips, strict=True)]
        value = made[SECONDS]
        own = value.new_tensor(seconds) if isinstance(value, torch.Tensor) else type(value)(seconds)
        return {**made, SECONDS: own}

    def _tried(self, form: Form, shown: Shown) -> Made | None:
        kept, self.form = self.form, form
        try:
            return self.ask([shown])
        except Exception:  # whatever a processor raises for an unsupported form
            return None
        finally:
            self.form = kept

    def _with_kinds(self, form: Form, made: Made, model: Any, shown: Shown) -> Form:
        """The form, with `KINDS` requested if the model's positions need them and the processor can return them."""
        positions = getattr(getattr(model, "base_model", model), "get_rope_index", None)
        if positions is None or KINDS in made or KINDS not in inspect.signature(positions).parameters:
            return form
        asking = replace(form, text={f"return_{KINDS}": True})
        told = self._tried(asking, shown)
        return asking if told is not None and KINDS in told else form

    def _text_arguments(self, prompt: str) -> dict[str, Any]:
        arguments = {"padding": True, "padding_side": "left", **self.form.text}
        if not wants_special_tokens(self._processor, prompt):
            arguments["add_special_tokens"] = False
        return arguments

    def _video_arguments(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """The frames are the ones to show, with their own times; if the policy is exact, at their final size."""
        arguments: dict[str, Any] = {
            **frame_arguments(self._processor),
            "video_metadata": self.form.metadata([frame_metadata(clip) for clip in clips]),
            "input_data_format": "channels_last",
            **self.form.videos,
        }
        if self._device is not None:
            arguments["device"] = self._device
        return arguments


def _own_seconds(assumed: float, clip: Clip, frames: int) -> float:
    """Seconds between the steps of a clip, `frames` frames each: those assumed, if the clip has as many frames as that
    rate gives, up to a step; else its span divided by its steps, as in transformers for Qwen2.5-VL."""
    metadata = frame_metadata(clip)
    span = metadata["total_num_frames"] / metadata["fps"]
    if abs(span * frames / assumed - len(clip.frames)) < frames:
        return assumed
    return float(span * frames / len(clip.frames))


def _writable(frames: np.ndarray) -> np.ndarray:
    return frames if frames.flags.writeable and frames.flags.c_contiguous else frames.copy()
