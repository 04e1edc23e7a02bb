"""Grouping a stream into batches that fit a memory budget, counted in tokens of the key-value cache.

Knows no model: an item says how long its prompt is and how many texts it asks for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Costed(Protocol):
    """An item whose cost is known before it is run."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, estimated."""

    @property
    def texts(self) -> int:
        """Texts that are written from it at once."""

    @property
    def group(self) -> Hashable:
        """Items of different groups cannot share a batch."""


Item = TypeVar("Item", bound=Costed)


@dataclass(slots=True)
class TokenBudget:
    """How much one batch may hold; it can shrink while a stream runs."""

    max_tokens: int
    """Tokens of the key-value cache, padding and unwritten texts included."""
    max_size: int
    """Items."""
    tokens_per_text: int
    """Tokens one text may grow by."""

    def cost(self, batch: Iterable[Costed]) -> int:
        """Tokens the cache of `batch` can grow to: every text on a prompt padded to the longest."""
        items = list(batch)
        longest = max((item.prompt_tokens for item in items), default=0)
        return sum(item.texts for item in items) * (longest + self.tokens_per_text)

    def fits(self, batch: Iterable[Costed]) -> bool:
        """Whether `batch` may run; a single item always may, since there is no smaller batch."""
        items = list(batch)
        return len(items) <= 1 or (len(items) <= self.max_size and self.cost(items) <= self.max_tokens)

    def shrink_below(self, batch: Iterable[Costed]) -> None:
        """After `batch` did not fit: never try as much again."""
        self.max_tokens = min(self.max_tokens, max(1, self.cost(batch) // 2))


def token_batches(items: Iterable[Item], *, budget: TokenBudget) -> Iterator[list[Item]]:
    """Group `items` as they come.

    A batch goes out when the next item of its group would not fit in it, or when a full batch's number of items is
    held over all groups: then the largest goes first. Nothing is pulled while a batch is out.

    Example:
        >>> from types import SimpleNamespace as Clip
        >>> clips = [Clip(prompt_tokens=100, texts=1, group=None) for _ in range(5)]
        >>> budget = TokenBudget(max_tokens=220, max_size=8, tokens_per_text=10)
        >>> [len(batch) for batch in token_batches(clips, budget=budget)]
        [2, 2, 1]
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        batch = waiting.setdefault(item.group, [])
        if not budget.fits([*batch, item]):
            yield waiting.pop(item.group)
            batch = waiting.setdefault(item.group, [])
        batch.append(item)
        if sum(map(len, waiting.values())) >= budget.max_size:
            yield waiting.pop(max(waiting, key=lambda group: len(waiting[group])))
    yield from waiting.values()
