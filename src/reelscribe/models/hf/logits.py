"""Processing of next-token scores: penalties, filters, and sampling.

Tensor functions, one row per text, every setting a column, so that texts with different settings share a batch. Knows
no model and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..captioner import Sampling

OFF = float("-inf")
"""Score of a token that must not be chosen."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The settings of R texts as columns `[R, 1]`, and facts about them that need no device synchronisation."""

    temperature: Tensor
    """Softmax temperature; 1 if the text is greedy."""
    top_k: Tensor
    """Number of most likely tokens, int64; the vocabulary size or more is off."""
    top_p: Tensor
    """Probability of the nucleus; 1 is off."""
    min_p: Tensor
    """Share of the most likely token's probability; 0 is off."""
    repetition_penalty: Tensor
    """Divisor for tokens of the prompt and the text; 1 is off."""
    presence_penalty: Tensor
    """Amount subtracted from tokens of the text; 0 is off."""
    greedy: Tensor
    """Bool: the most likely token is taken."""
    ranks: bool
    """Whether any text needs its tokens ranked: a `top_k` or a `top_p`."""
    widest: int | None
    """The largest `top_k` if every sampled text has one, else None; saves ranking the whole vocabulary."""

    @classmethod
    def from_sampling(cls, settings: Sequence[Sampling], *, device: torch.device) -> Knobs:
        """The columns of R settings, on `device`."""

        def column(value: Callable[[Sampling], float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([[value(one)] for one in settings], dtype=dtype, device=device)

        drawn = [one for one in settings if not one.greedy]
        return cls(
            temperature=column(lambda one: one.temperature or 1.0),
            top_k=column(lambda one: one.top_k or np.iinfo(np.int64).max, torch.int64),
            top_p=column(lambda one: one.top_p),
            min_p=column(lambda one: one.min_p),
            repetition_penalty=column(lambda one: one.repetition_penalty),
            presence_penalty=column(lambda one: one.presence_penalty),
            greedy=column(lambda one: one.greedy, torch.bool),
            ranks=any(one.top_k or one.top_p < 1 for one in drawn),
            widest=max((one.top_k for one in drawn), default=None) if all(one.top_k for one in drawn) else None,
        )

    def select(self, index: Tensor) -> Knobs:
        """The rows `index` `[K]`, in that order."""
        columns = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("ranks", "widest")}
        return replace(self, **{name: column.index_select(0, index) for name, column in columns.items()})


def penalise_repeats(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Penalise tokens of the prompt or the text: positive scores are divided, negative ones multiplied.

    Args:
        scores: float `[R, V]`.
        seen: bool `[R, V]`, tokens of the prompt or the text.
        penalty: float `[R, 1]`; 1 is off.

    The rule of CTRL (https://arxiv.org/abs/1909.05858, section 4.1) in the form transformers and vLLM use.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def penalise_presence(scores: Tensor, written: Tensor, penalty: Tensor) -> Tensor:
    """Subtract `penalty` `[R, 1]` from the scores `[R, V]` of tokens already `written` (bool `[R, V]`)."""
    return scores - penalty * written


def filter_scores(scores: Tensor, knobs: Knobs) -> Tensor:
    """Apply temperature, top-k, top-p and min-p, in this order; dropped tokens score minus infinity.

    Ties at the threshold are all kept, so that the result does not depend on how a sort breaks them.

    Args:
        scores: float `[R, V]`.
        knobs: settings of the R rows; ignored for greedy rows.
    """
    scores = scores / knobs.temperature
    if knobs.ranks:
        scores = scores.masked_fill(scores < _edge(scores, knobs), OFF)
    floor = scores.amax(-1, keepdim=True) + knobs.min_p.log()
    return scores.masked_fill(scores < floor, OFF)


def _edge(scores: Tensor, knobs: Knobs) -> Tensor:
    """The lowest score that top-k and then top-p let through, `[R, 1]`."""
    width = min(knobs.widest or scores.shape[-1], scores.shape[-1])
    ranked = scores.topk(width).values
    edge = ranked.gather(1, knobs.top_k.clamp(max=width) - 1)
    probabilities = ranked.masked_fill(ranked < edge, OFF).softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    last = (likelier < knobs.top_p).sum(-1, keepdim=True) - 1
    return torch.where(knobs.top_p < 1, torch.maximum(edge, ranked.gather(1, last.clamp(min=0))), edge)


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution, tokens in vocabulary order.

    A row's choice depends only on its own scores and its own number.

    Args:
        scores: float `[R, V]`, minus infinity for dropped tokens.
        uniforms: float `[R]` in [0, 1).

    Returns:
        int64 `[R]`.
    """
    cumulative = scores.softmax(-1).cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[-1] - 1)
    rounded_out = scores.gather(1, chosen) == OFF
    return torch.where(rounded_out, scores.argmax(-1, keepdim=True), chosen)[:, 0]


def uniforms_of(seed: int, candidate: int, count: int) -> np.ndarray:
    """The `count` numbers in [0, 1), float32, with which candidate `candidate` of a request with `seed` is sampled."""
    return np.random.default_rng([seed % 2**64, candidate]).random(count, dtype=np.float32)
