"""A transformers model that has read a batch of prompts: its cache, its masks, its positions.

The vision encoder and the prompt run once, the encoder first, as in `generate`; `select` copies or drops rows of the
cache, so that several texts continue from one prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .positions import corrected

FEATURES = "mm_encoder_outputs"
"""The argument of `forward` for the vision encoder's output, by modality."""

Axes = Mapping[str, int]
"""Tensors that a cache carries besides keys and values, by name, and which of their axes is the batch axis."""


class CachedContinuation:
    """A `generate.Continuation` over transformers' dynamic cache.

    Args:
        model: the model.
        cache: its state for the rows.
        mask: `[R, P]`, 0 where a row is padding.
        positions: of each row's last token, or None if the model computes them itself.
        logits: of each row's next token.
        carried: tensors of the cache that `select` must treat like keys and values.
    """

    def __init__(
        self, model: Any, *, cache: Any, mask: Tensor, positions: Tensor | None, logits: Tensor, carried: Axes
    ) -> None:
        self._model = model
        self._cache = cache
        self._mask = mask
        self._positions = positions
        self._carried = carried
        self.logits = logits
        """Scores of each row's next token, `[R, V]`."""

    @classmethod
    def read(cls, model: Any, inputs: Mapping[str, Any], *, carried: Axes | None = None) -> CachedContinuation:
        """Run the vision encoder and the prompts, once.

        Args:
            model: a decoder-only transformers model.
            inputs: its processor's output for B prompts, left-padded, on the model's device; features may replace
                pixels, as `FEATURES`.
            carried: tensors that its cache carries besides keys and values (`carried_axes`).
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        positions = _positions(model, inputs)
        output = model(
            **_accepted(model, _encoded(model, inputs)),
            **_given(model, position_ids=positions, logits_to_keep=1),
            **_with_cache(model, cache),
        )
        last = None if positions is None else positions[..., -1:].clone()
        return cls(
            model, cache=cache, mask=inputs["attention_mask"], positions=last, logits=output.logits[:, -1],
            carried=carried or {},
        )  # fmt: skip

    def advance(self, tokens: Tensor) -> None:
        """Append `tokens` int64 `[R]`, one a row, and compute the next scores."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        if self._positions is not None:
            self._positions = self._positions + 1
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            **_given(self._model, position_ids=self._positions, logits_to_keep=1),
            **_with_cache(self._model, self._cache),
        )
        self.logits = output.logits[:, -1]

    def select(self, index: Tensor) -> None:
        """Make the rows `index` int64 `[K]` the batch, in that order."""
        # reorder_cache gathers any rows, and every type of layer has it; batch_select_indices is for attention only.
        self._cache.reorder_cache(index)
        for path, axis in self._carried.items():
            owner, name = _owner(self._cache, path)
            _put(owner, name, _at(owner, name).index_select(axis, index))
        self._mask = self._mask.index_select(0, index)
        self.logits = self.logits.index_select(0, index)
        if self._positions is not None:
            self._positions = self._positions.index_select(-2, index)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the cache holds, by its path."""
        return dict(_tensors(self._cache))


def carried_axes(read: Callable[[int], CachedContinuation]) -> dict[str, int]:
    """Tensors with a batch axis in a model's cache that are not selected with keys and values, found by trying.

    A tensor is selected if one of its axes grows with the number of rows; for one that is not, the batch axis is the
    one that is longer when two rows were read.

    Args:
        read: makes the model read one prompt so many times, side by side.
    """
    one = read(1)
    before = _shapes(one)
    one.select(one.logits.new_zeros(2, dtype=torch.long))
    after = _shapes(one)
    unmoved = {path for path, shape in before.items() if after.get(path) == shape and 1 in shape}
    if not unmoved:
        return {}
    two = _shapes(read(2))
    changed = {path: _changed(before[path], two.get(path, ())) for path in unmoved}
    return {path: axes[0] for path, axes in changed.items() if axes}


def _shapes(model: CachedContinuation) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in model.tensors().items()}


def _changed(one: tuple[int, ...], two: tuple[int, ...]) -> list[int]:
    return [axis for axis, (few, many) in enumerate(zip(one, two, strict=False)) if (few, many) == (1, 2)]


def _tensors(owner: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Tensors in an object, its lists, dicts and the objects in them, by path (`layers.3.keys`)."""
    for name, value in _parts(owner):
        place = f"{path}{name}"
        if isinstance(value, Tensor):
            yield place, value
        elif depth and not isinstance(value, str | bytes | int | float | torch.nn.Module):
            yield from _tensors(value, f"{place}.", depth - 1)


def _parts(owner: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(owner, Mapping):
        yield from ((str(name), value) for name, value in owner.items() if isinstance(name, str | int))
    elif isinstance(owner, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(owner))
    else:
        yield from getattr(owner, "__dict__", {}).items()


def _owner(root: Any, path: str) -> tuple[Any, str]:
    *way, name = path.split(".")
    for step in way:
        root = _at(root, step)
    return root, name


def _at(owner: Any, name: str) -> Any:
    if isinstance(owner, Mapping):
        return owner[name] if name in owner else owner[int(name)]
    return owner[int(name)] if isinstance(owner, list | tuple) else getattr(owner, name)


def _put(owner: Any, name: str, value: Tensor) -> None:
    if isinstance(owner, dict):
        owner[name if name in owner else int(name)] = value
    elif isinstance(owner, list):
        owner[int(name)] = value
    else:
        setattr(owner, name, value)


def takes_features(model: Any) -> bool:
    """Whether the model's `forward` accepts its vision encoder's output instead of pixels."""
    return FEATURES in forward_parameters(model)


def _encoded(model: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs with features instead of pixels and of other inputs of the encoder, as `generate` makes them.

    Given pixels, `forward` calls the same encoder, but in some families without all the arguments it needs.
    """
    encode = getattr(model, "_prepare_multimodal_encoder_kwargs_for_generation", None)
    if not takes_features(model) or FEATURES in inputs or encode is None:
        return inputs
    encoded: Mapping[str, Any] = encode({name: value for name, value in inputs.items() if name != "input_ids"})
    return {**encoded, "input_ids": inputs["input_ids"]} if encoded.get(FEATURES) else inputs


def _positions(model: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Positions of the prompts' tokens, `[B, P]`, or `[4, B, P]` (text, time, height, width) for M-RoPE.

    They come from the model's own method, which `generate` uses too and which knows the model's rotary layout.
    """
    if "position_ids" not in forward_parameters(model):
        return None
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    positions: Tensor = model._prepare_position_ids_for_generation(inputs["input_ids"], rest)
    return corrected(positions, inputs, model_type=model.config.model_type)


def _accepted(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    parameters = forward_parameters(model)
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in inputs.items() if takes_all or name in parameters}


def _given(model: Any, **values: Any) -> dict[str, Any]:
    """Those of `values` that are set and that the model's `forward` names."""
    parameters = forward_parameters(model)
    return {name: value for name, value in values.items() if value is not None and name in parameters}


def _with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Arguments for the model to read and extend `cache`."""
    return {cache_argument(model): cache, "use_cache": True}


def cache_argument(model: Any) -> str:
    """The name of the cache argument of the model's `forward`: `cache` since transformers 5.24, `past_key_values`
    before."""
    return "cache" if "cache" in forward_parameters(model) else "past_key_values"


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """The named arguments of the model's `forward`."""
    return _parameters_of(type(model).forward)


@lru_cache(maxsize=16)
def _parameters_of(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters
