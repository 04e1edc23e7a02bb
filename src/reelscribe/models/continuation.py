"""A transformers model that has read a batch of prompts: its cache, its masks, its positions.

The vision encoder and the prompt run once; `select` copies or drops rows of the cache, so that several texts go on
from one prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class CachedContinuation:
    """A `decoding.Continuation` over transformers' dynamic cache."""

    def __init__(self, model: Any, *, cache: Any, mask: Tensor, positions: Tensor | None, logits: Tensor) -> None:
        self._model = model
        self._cache = cache
        self._mask = mask
        self._positions = positions
        self.logits = logits
        """Scores of each row's next token, `[R, V]`."""

    @classmethod
    def read(cls, model: Any, inputs: Mapping[str, Any]) -> CachedContinuation:
        """Run the vision encoder and the prompts, once.

        Args:
            model: a decoder-only transformers model.
            inputs: what its processor made of B prompts, left-padded, on the model's device.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        positions = _positions(model, inputs)
        output = model(
            **_accepted(model, inputs),
            **_given(model, position_ids=positions, logits_to_keep=1),
            **_with_cache(model, cache),
        )
        last = None if positions is None else positions[..., -1:].clone()
        return cls(model, cache=cache, mask=inputs["attention_mask"], positions=last, logits=output.logits[:, -1])

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
        # reorder_cache gathers any rows, and every kind of layer has it; batch_select_indices is for attention alone.
        self._cache.reorder_cache(index)
        self._mask = self._mask.index_select(0, index)
        self.logits = self.logits.index_select(0, index)
        if self._positions is not None:
            self._positions = self._positions.index_select(-2, index)


def _positions(model: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Positions of the prompts' tokens, `[B, P]`, or `[4, B, P]` (text, time, height, width) for M-RoPE.

    The model's own method gives them: it is what `generate` uses, and it knows the model's rotary layout.
    """
    if "position_ids" not in forward_parameters(model):
        return None
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    positions: Tensor = model._prepare_position_ids_for_generation(inputs["input_ids"], rest)
    return positions


def _accepted(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    parameters = forward_parameters(model)
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in inputs.items() if takes_all or name in parameters}


def _given(model: Any, **values: Any) -> dict[str, Any]:
    """Those of `values` that are set and that the model's `forward` names."""
    parameters = forward_parameters(model)
    return {name: value for name, value in values.items() if value is not None and name in parameters}


def _with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Arguments that make the model read and extend `cache`."""
    return {cache_argument(model): cache, "use_cache": True}


def cache_argument(model: Any) -> str:
    """What the model's `forward` calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in forward_parameters(model) else "past_key_values"


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """What the model's `forward` names."""
    return _parameters_of(type(model).forward)


@lru_cache(maxsize=16)
def _parameters_of(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters
