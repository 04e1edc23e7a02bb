"""What the vision encoder makes of a clip, made once for all requests that show the clip.

Knows the processors and models of the Qwen-VL families, whose patches and features can be told apart by clip. A clip is
known by the identity of its frames.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import ModelOutput

from .continuation import forward_parameters
from .prompting import has_exact_policy

MAX_FEATURE_BYTES = 256 * 2**20
"""Bytes of features that are kept, on the model's device, for requests of later batches."""
PIXELS = "pixel_values_videos"
"""What processors call the patches of all clips, one behind the other."""
GRIDS = "video_grid_thw"
"""What they call the number of patches of each clip, `[B, 3]`: time, height, width."""

Frames = NDArray[np.uint8]


def can_share(model: Any, processor: Any) -> bool:
    """Whether features can be computed beforehand and handed to the model."""
    takes_features = "mm_encoder_outputs" in forward_parameters(model)
    return takes_features and hasattr(model, "get_video_features") and has_exact_policy(processor)


def places(frames: Iterable[Frames]) -> dict[int, int]:
    """Identity of each distinct clip to the place where it comes first, in that order."""
    first: dict[int, int] = {}
    for place, one in enumerate(frames):
        first.setdefault(id(one), place)
    return first


def sharing_processor(processor: Any) -> Any:
    """A copy of a processor that makes the patches of a repeated clip once; grids and texts it makes for each."""
    sharing = copy.copy(processor)
    sharing.video_processor = _DistinctVideos(processor.video_processor)
    return sharing


class _DistinctVideos:
    """A video processor that looks at each distinct video once."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, videos: Sequence[Sequence[Frames]], **arguments: Any) -> Any:
        from transformers.video_utils import VideoMetadata

        frames = [one for (one,) in videos]
        metadata = [one for (one,) in arguments.pop("video_metadata")]
        first = places(frames)
        made = self._inner(
            [frames[place] for place in first.values()],
            video_metadata=[metadata[place] for place in first.values()],
            **arguments,
        )
        number = {key: number for number, key in enumerate(first)}
        made[GRIDS] = made[GRIDS][[number[id(one)] for one in frames]]
        made["video_metadata"] = [VideoMetadata(**one) for one in metadata]
        return made


@dataclass(frozen=True, slots=True)
class Features:
    """What the vision encoder makes of one clip."""

    pooled: Tensor
    """Embeddings that stand in the prompt, `[tokens, D]`."""
    deepstack: tuple[Tensor, ...]
    """What is added in the first layers of the text model, each `[tokens, D]`."""

    @property
    def nbytes(self) -> int:
        """Bytes they take."""
        return sum(one.nbytes for one in (self.pooled, *self.deepstack))

    def clone(self) -> Features:
        """The same in memory of its own, not in that of a whole batch."""
        return Features(self.pooled.clone(), tuple(one.clone() for one in self.deepstack))


@dataclass
class EncoderOutput(ModelOutput):  # type: ignore[misc]
    """What a model is given in place of its vision encoder's own output, which transformers 5.24 hands on as one."""

    pooler_output: Any = None
    """Embeddings that stand in the prompts, by clip."""
    deepstack_features: Any = None
    """What is added in the first layers, by layer and clip."""


class VisionFeatures:
    """Features of the clips that were shown twice or will be, the latest, bounded in bytes, as long as the clip lives.

    Where no clip is repeated nothing is computed, copied or kept here.

    Args:
        model: a model for which `can_share` is true.
        max_bytes: bytes of features that are kept at most.
    """

    def __init__(self, model: Any, *, max_bytes: int = MAX_FEATURE_BYTES) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, tuple[weakref.ref[Frames], Features]] = OrderedDict()
        self._lock = threading.Lock()

    def in_place_of_pixels(
        self, inputs: Mapping[str, Any], frames: Sequence[Frames], *, later: Iterable[Frames]
    ) -> Mapping[str, Any]:
        """The inputs of a batch, with features in place of pixels where a clip of it is repeated.

        Args:
            inputs: what the processor made of the batch; the pixels of a repeated clip may stand there once.
            frames: the clip of each request of the batch.
            later: clips of requests that are known to be in other batches.
        """
        with self._lock:  # a clip in two batches that run side by side waits here for the other
            return self._in_place_of_pixels(inputs, frames, later)

    def _in_place_of_pixels(
        self, inputs: Mapping[str, Any], frames: Sequence[Frames], later: Iterable[Frames]
    ) -> Mapping[str, Any]:
        self._forget_dead()
        repeated = self._repeated(frames, later)
        if not repeated:
            return inputs
        first = places(frames)
        features = self._features(inputs, first)
        self._keep({key: (frames[first[key]], features[key]) for key in repeated})
        rest = {name: value for name, value in inputs.items() if name != PIXELS}
        return {**rest, "mm_encoder_outputs": {"video": _joined([features[id(one)] for one in frames])}}

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()

    def _forget_dead(self) -> None:
        for key, (clip, _) in [*self._kept.items()]:
            if clip() is None:
                del self._kept[key]

    def _repeated(self, frames: Sequence[Frames], later: Iterable[Frames]) -> list[int]:
        """Identities of the clips of a batch that are shown more than once, as far as is known."""
        times = Counter(map(id, frames))
        again = {*self._kept, *map(id, later)}
        return [key for key, count in times.items() if count > 1 or key in again]

    def _features(self, inputs: Mapping[str, Any], first: Mapping[int, int]) -> dict[int, Features]:
        """Features of each distinct clip, computed where they are not kept."""
        known = {key: self._kept[key][1] for key in first if key in self._kept}
        missing = {key: number for number, key in enumerate(first) if key not in known}
        if missing:
            grids = inputs[GRIDS][list(first.values())]
            pixels = inputs[PIXELS]
            if known:
                parts = pixels.split(grids.prod(-1).tolist())
                pixels, grids = torch.cat([parts[one] for one in missing.values()]), grids[list(missing.values())]
            output = self._model.get_video_features(**{PIXELS: pixels, GRIDS: grids}, return_dict=True)
            known.update(zip(missing, _separate(output), strict=True))
        return known

    def _keep(self, latest: Mapping[int, tuple[Frames, Features]]) -> None:
        for key, (frames, features) in latest.items():
            if key not in self._kept:
                self._kept[key] = weakref.ref(frames), features.clone()
            self._kept.move_to_end(key)
        while sum(features.nbytes for _, features in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)


def _separate(output: Any) -> list[Features]:
    """The encoder's output by clip."""
    deepstack = getattr(output, "deepstack_features", None) or []
    return [
        Features(pooled, tuple(layer[number] for layer in deepstack))
        for number, pooled in enumerate(output.pooler_output)
    ]


def _joined(features: Sequence[Features]) -> Any:
    """The encoder's output for these clips, as the model reads it."""
    layers = zip(*(one.deepstack for one in features), strict=True)
    return EncoderOutput(pooler_output=tuple(one.pooled for one in features), deepstack_features=list(layers))
