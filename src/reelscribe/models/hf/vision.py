"""The vision encoder's features of a clip, computed once for all requests that show the clip.

Knows how a family's features are separated by clip: they are in the order of the prompts, so a clip has as many as its
prompt has places for them. A clip is identified by the identity of its frames.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import ModelOutput

from .joining import IDS, JoinedInputs
from .kv_cache import FEATURES, takes_features

MAX_FEATURE_BYTES = 256 * 2**20
"""Bytes of features that are cached, on the model's device, for requests of later batches."""
PIXELS = "pixel_values_videos"
"""Processors' name for the concatenated pixels of all clips."""
STILLS = "pixel_values"
"""Their name in processors that treat a video as a row of pictures."""
GRIDS = "video_grid_thw"
"""Name, in processors of the Qwen-VL families, of the number of patches of each clip, `[B, 3]`: time, height, width."""

Frames = NDArray[np.uint8]

MODALITIES = {"video": PIXELS, "image": STILLS}
"""A model's name for its encoder's input, to the processors' name."""


def can_share(model: Any, processor: Any) -> bool:
    """Whether features can be computed in advance and passed to the model."""
    has_encoder = any(hasattr(model, f"get_{modality}_features") for modality in MODALITIES)
    return takes_features(model) and has_encoder and getattr(processor, "video_processor", None) is not None


def places(frames: Iterable[Frames]) -> dict[int, int]:
    """Identity of each distinct clip to the index of its first occurrence, in that order."""
    first: dict[int, int] = {}
    for place, one in enumerate(frames):
        first.setdefault(id(one), place)
    return first


MOST_BY_ROUNDING = 0.02
"""Rounding tolerance as a share of the spread of features, in half precision too."""


class NotSeparableError(Exception):
    """The encoder's output cannot be separated by clip."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Features of one clip, in the model's own form: one tensor, or several."""

    parts: tuple[Tensor, ...]
    """The tensors; more than one only where they come in several."""
    whole: bool
    """Whether those of all clips are concatenated in one tensor."""

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(part.nbytes for part in self.parts)

    def clone(self) -> Layer:
        """A copy in its own memory."""
        return Layer(tuple(part.clone() for part in self.parts), self.whole)


@dataclass(frozen=True, slots=True)
class Features:
    """The vision encoder's output for one clip."""

    modality: str
    """A key of `MODALITIES`."""
    pooled: Layer
    """Embeddings placed in the prompt."""
    deepstack: tuple[Layer, ...]
    """Features added in the first layers of the text model."""

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(one.nbytes for one in (self.pooled, *self.deepstack))

    def clone(self) -> Features:
        """A copy in its own memory, not in that of a whole batch."""
        return Features(self.modality, self.pooled.clone(), tuple(one.clone() for one in self.deepstack))


@dataclass
class EncoderOutput(ModelOutput):  # type: ignore[misc]
    """Replacement for the vision encoder's own output, which transformers 5.24 passes on as one object."""

    pooler_output: Any = None
    """Embeddings placed in the prompts, by clip."""
    deepstack_features: Any = None
    """Features added in the first layers, by layer and clip."""


class VisionFeatures:
    """A cache of features of clips that are shown more than once, bounded in bytes, for the clip's lifetime.

    If no clip is repeated nothing is computed, copied or kept here.

    Args:
        model: a model for which `can_share` is true.
        max_bytes: most bytes of features that are kept.
    """

    def __init__(self, model: Any, *, max_bytes: int = MAX_FEATURE_BYTES) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, tuple[weakref.ref[Frames], Features]] = OrderedDict()
        self._lock = threading.Lock()
        self.apart = False
        """Whether the encoder gets each clip alone, because it mixes clips that it gets together."""

    def mixes(self, inputs: Mapping[str, Any], frames: Sequence[Frames]) -> bool:
        """Whether the first clip of a batch has other features together with the others than alone."""
        first = places(frames)
        key = next(iter(first))
        beside = self._encoded(inputs, first, [*first])[key]
        alone = self._encoded(inputs, first, [key])[key]
        return any(map(_differ, beside.pooled.parts, alone.pooled.parts))

    def in_place_of_pixels(
        self, inputs: Mapping[str, Any], frames: Sequence[Frames], *, later: Iterable[Frames]
    ) -> Mapping[str, Any]:
        """The inputs of a batch, with features instead of pixels if one of its clips is repeated.

        Args:
            inputs: the processor's output for the batch; the pixels of a repeated clip may occur once.
            frames: the clip of each request of the batch.
            later: clips of requests that are known to be in other batches.

        Raises:
            NotSeparableError: the features of the batch cannot be separated by clip.
        """
        with self._lock:  # a clip in two batches that run side by side waits here for the other
            return self._in_place_of_pixels(inputs, frames, later)

    def _in_place_of_pixels(
        self, inputs: Mapping[str, Any], frames: Sequence[Frames], later: Iterable[Frames]
    ) -> Mapping[str, Any]:
        self._forget_dead()
        repeated = self._repeated(frames, later)
        if not repeated and not self.apart:
            return inputs
        first = places(frames)
        features = self._features(inputs, first)
        self._keep({key: (frames[first[key]], features[key]) for key in repeated})
        rest = {name: value for name, value in inputs.items() if not name.startswith(STILLS)}
        shown = [features[id(one)] for one in frames]
        return {**rest, FEATURES: {shown[0].modality: _joined(shown)}}

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()

    def _forget_dead(self) -> None:
        for key, (clip, _) in [*self._kept.items()]:
            if clip() is None:
                del self._kept[key]

    def _repeated(self, frames: Sequence[Frames], later: Iterable[Frames]) -> list[int]:
        """Identities of the clips of a batch that are shown more than once, as far as known."""
        times = Counter(map(id, frames))
        again = {*self._kept, *map(id, later)}
        return [key for key, count in times.items() if count > 1 or key in again]

    def _features(self, inputs: Mapping[str, Any], first: Mapping[int, int]) -> dict[int, Features]:
        """Features of each distinct clip, computed if they are not cached."""
        known = {key: self._kept[key][1] for key in first if key in self._kept}
        missing = [key for key in first if key not in known]
        for keys in [[key] for key in missing] if self.apart else [missing] if missing else []:
            known |= self._encoded(inputs, first, keys)
        return known

    def _encoded(self, inputs: Mapping[str, Any], first: Mapping[int, int], keys: Sequence[int]) -> dict[int, Features]:
        """Features of some of the distinct clips of a batch, from one call of the encoder."""
        encoder = encoder_of(self._model, inputs)
        given = _given(encoder, inputs, [*first.values()], [*map([*first].index, keys)])
        room = _room(self._model, inputs, [first[key] for key in keys])
        output = encoder.encode(**given, return_dict=True)
        return dict(zip(keys, _separate(output, encoder.modality, room, len(keys)), strict=True))

    def _keep(self, latest: Mapping[int, tuple[Frames, Features]]) -> None:
        for key, (frames, features) in latest.items():
            if key not in self._kept:
                self._kept[key] = weakref.ref(frames), features.clone()
            self._kept.move_to_end(key)
        while sum(features.nbytes for _, features in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model's method that encodes one modality, and which inputs it is given."""

    modality: str
    """A key of `MODALITIES`."""
    encode: Callable[..., Any]
    """The method."""
    names: tuple[str, ...]
    """Its arguments among the inputs."""


def encoder_of(model: Any, inputs: Mapping[str, Any]) -> Encoder:
    """The encoder for the pixels of a batch; its arguments are those of the inner model's method, as in `generate`.

    Raises:
        NotSeparableError: the model has no encoder for them.
    """
    for modality, pixels in MODALITIES.items():
        inner = getattr(getattr(model, "base_model", model), f"get_{modality}_features", None)
        if pixels in inputs and inner is not None:
            names = tuple(name for name in inspect.signature(inner).parameters if name in inputs)
            outer = getattr(model, f"get_{modality}_features", inner)
            return Encoder(modality, outer if _takes(outer, names) else inner, names)
    raise NotSeparableError(f"{type(model).__name__} has no encoder for {sorted(inputs)}")


def _takes(function: Callable[..., Any], names: Iterable[str]) -> bool:
    parameters = inspect.signature(function).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return takes_all or set(names) <= set(parameters)


def _given(encoder: Encoder, inputs: Mapping[str, Any], first: Sequence[int], wanted: Sequence[int]) -> dict[str, Any]:
    """The encoder's inputs for some of the distinct clips of a batch.

    Args:
        encoder: the encoder.
        inputs: of the batch, pixels once for each distinct clip.
        first: the request that shows each distinct clip first.
        wanted: numbers of clips, counted in `first`.
    """
    rows = inputs.rows if isinstance(inputs, JoinedInputs) else _rows_by_grids(inputs, first)
    given: dict[str, Any] = {}
    for name in encoder.names:
        if name not in rows:
            given[name] = inputs[name]
            continue
        by_clip = name.startswith(STILLS)
        if by_clip and len(wanted) == len(first):
            given[name] = inputs[name]
            continue
        parts = inputs[name].split(list(rows[name]))
        given[name] = torch.cat([parts[one if by_clip else first[one]] for one in wanted])
    return given


def _rows_by_grids(inputs: Mapping[str, Any], first: Sequence[int]) -> dict[str, list[int]]:
    grids = inputs[GRIDS]
    return {PIXELS: grids[list(first)].prod(-1).tolist(), GRIDS: [1] * len(grids)}


def _room(model: Any, inputs: Mapping[str, Any], requests: Sequence[int]) -> list[list[int]]:
    """The number of placeholders for features in some prompts, by each token that may mark them."""
    ids = inputs.get(IDS)
    config = getattr(model, "config", None)
    if ids is None or config is None:
        return []
    marks = (getattr(config, f"{name}_token_{end}", None) for name in ("video", "image") for end in ("id", "index"))
    known = dict.fromkeys(mark for mark in marks if isinstance(mark, int))
    return [(ids[list(requests)] == mark).sum(-1).tolist() for mark in known]


def _separate(output: Any, modality: str, room: Sequence[Sequence[int]], count: int) -> list[Features]:
    """The encoder's output by clip.

    Args:
        output: its output for `count` clips.
        modality: a key of `MODALITIES`.
        room: `_room` of the prompts that show them.
        count: how many clips.

    Raises:
        NotSeparableError: it is not certain what belongs to which clip.
    """
    layers = getattr(output, "deepstack_features", None) or []
    pooled = _by_clip(output.pooler_output, room, count)
    deepstack = [_by_clip(layer, room, count) for layer in layers]
    return [Features(modality, one, tuple(layer[number] for layer in deepstack)) for number, one in enumerate(pooled)]


def _by_clip(values: Tensor | Sequence[Tensor], room: Sequence[Sequence[int]], count: int) -> list[Layer]:
    """As many rows, or tensors, as clips belong to one each, since none has less than one; else the placeholders in the
    prompts give the counts."""
    whole = isinstance(values, Tensor)
    if count == 1:
        return [Layer((values,) if whole else tuple(values), whole)]
    if len(values) == count:
        return [Layer((values[one : one + 1] if whole else values[one],), whole) for one in range(count)]
    sizes = [one[..., 0].numel() for one in values]
    for counts in room:
        if sum(counts) == sum(sizes) and (ends := _ends(sizes, counts)) is not None:
            parts = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            return [Layer((part,) if whole else tuple(part), whole) for part in parts]
    raise NotSeparableError(f"features of shape {sizes} for {count} clips")


def _ends(sizes: Sequence[int], counts: Sequence[int]) -> list[int] | None:
    """Where each clip's items end, if its placeholders are filled by whole items."""
    reached = {total: number for number, total in enumerate(accumulate(sizes), start=1)}
    ends = [reached.get(total) for total in accumulate(counts)]
    return None if None in ends else [end for end in ends if end is not None]


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float().reshape(one.shape)
    return bool((one - other).std() > MOST_BY_ROUNDING * other.std())


def _joined(features: Sequence[Features]) -> Any:
    """The encoder's output for these clips, as the model reads it."""
    layers = zip(*(one.deepstack for one in features), strict=True)
    return EncoderOutput(
        pooler_output=_together([one.pooled for one in features]), deepstack_features=[*map(_together, layers)]
    )


def _together(layers: Sequence[Layer]) -> Tensor | tuple[Tensor, ...]:
    parts = tuple(part for layer in layers for part in layer.parts)
    if not layers[0].whole:
        return parts
    if len({part.shape[1:] for part in parts}) > 1:  # rows of different lengths, which the model flattens anyway
        return torch.cat([part.flatten(0, -2) for part in parts])[None]
    return torch.cat(parts)
