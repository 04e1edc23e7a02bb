"""Build a batch's inputs by joining what the processor makes of each request alone.

Knows tensors and their names; runs no model. A batch is joined this way for families whose processor makes the same of
several requests in one call (`found_alike`): then clips of different sizes and lengths share a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]

IDS = "input_ids"
"""Processors' names for the tokens of the prompts, `[B, P]`."""
PIXELS = "pixel_values"
"""Prefixes of the names of pixels and their companions."""


class JoinedInputs(dict[str, Any]):
    """The inputs of a batch by name, and how many rows of each belong to which request.

    Pixels are included once per distinct clip, everything else once per request.
    """

    rows: Mapping[str, Sequence[int]]
    """Rows of each tensor that is not a sequence of tokens: per distinct clip, or per request."""

    def __init__(self, values: Mapping[str, Any], rows: Mapping[str, Sequence[int]]) -> None:
        super().__init__(values)
        self.rows = rows


def joined(parts: Sequence[Mapping[str, Any]], *, first: Sequence[int] | None = None, pad_id: int = 0) -> JoinedInputs:
    """Join the inputs of single requests into those of a batch, padded on the left.

    Args:
        parts: what the processor made of each request alone.
        first: the requests whose pixels are taken, the first of each distinct clip; None: all.
        pad_id: the padding token.

    Raises:
        ValueError: their tensors cannot be joined.
    """
    values: dict[str, Any] = {}
    rows: dict[str, list[int]] = {}
    for name, value in parts[0].items():
        of = range(len(parts)) if first is None or not name.startswith(PIXELS) else first
        each = [parts[number][name] for number in of]
        if not isinstance(value, Tensor):
            values[name] = [one for many in each for one in many] if isinstance(value, list) else value
        elif is_sequence(parts[0], name):
            values[name] = _padded(each, pad_id if name == IDS else 0)
        else:
            rows[name] = [len(one) for one in each]
            values[name] = _stacked(name, each)
    return JoinedInputs(values, rows)


def is_sequence(inputs: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor has one value per token of the prompt."""
    value: Tensor = inputs[name]
    return value.shape == inputs[IDS].shape and not value.is_floating_point()


def _padded(each: Sequence[Tensor], filler: int) -> Tensor:
    longest = max(one.shape[1] for one in each)
    return torch.cat([torch.nn.functional.pad(one, (longest - one.shape[1], 0), value=filler) for one in each])


def _stacked(name: str, each: Sequence[Tensor]) -> Tensor:
    if len({one.shape[1:] for one in each}) > 1:
        raise ValueError(f"{name} of shapes {[tuple(one.shape) for one in each]} cannot be concatenated")
    return each[0] if len(each) == 1 else torch.cat(list(each))


def found_alike(
    together: Callable[[Sequence[int]], Mapping[str, Any]], alone: Callable[[int], Mapping[str, Any]], *, pad_id: int
) -> tuple[str, ...] | None:
    """What clips of a joined batch must have in common: nothing, or their `length`; None if batches cannot be joined.

    Tested with three requests with prompts of different length: 0 and 1 show clips of one length and different sizes, 2
    shows one of another length.

    Args:
        together: what the processor makes of several of them.
        alone: what it makes of one.
        pad_id: the padding token.
    """
    parts = [alone(number) for number in range(3)]
    try:
        if not _same(joined(parts[:2], pad_id=pad_id), together((0, 1))):
            return None
    except Exception:  # whatever a processor raises for clips that it cannot process in one call
        return None
    try:
        of_all = joined(parts, pad_id=pad_id)
    except ValueError:
        return ("length",)
    try:
        return () if _same(of_all, together((0, 1, 2))) else ("length",)
    except Exception:  # it does not combine clips of different lengths itself, but its model accepts their tensors
        return ()


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    if set(ours) != set(theirs):
        return False
    return all(_equal(ours[name], theirs[name]) for name in ours)


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return bool(torch.equal(ours, theirs))
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return type(ours) is type(theirs) and bool(np.all(ours == theirs))


class RememberedVideos:
    """A video processor that processes each distinct clip once.

    Args:
        inner: the processor's own.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._made: dict[tuple[int, str], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, videos: Any, **arguments: Any) -> Any:
        """The inner processor's output for one clip; each call gets its own mapping."""
        clip = videos
        while isinstance(clip, list):
            (clip,) = clip
        key = id(clip), repr(arguments.get("video_metadata"))
        if key not in self._made:
            self._made[key] = self._inner(videos, **arguments)
        return copy.copy(self._made[key])


def remembering(processor: Any) -> Any:
    """A copy of a processor that makes the pixels of a repeated clip once, during the copy's lifetime."""
    made = copy.copy(processor)
    made.video_processor = RememberedVideos(processor.video_processor)
    return made
