"""Choose the items of the next batch: as many as fit a memory budget, counted in tokens of the key-value cache.

Knows no model and no thread: an item gives the length of its prompt and how many texts it requests.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

BATCHES_AHEAD = 2
"""Batches whose items may wait at once."""


class Costed(Protocol):
    """An item whose cost is known before it is run."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, estimated."""

    @property
    def texts(self) -> int:
        """Texts that are generated from it at once."""

    @property
    def group(self) -> Hashable:
        """Items of different groups cannot share a batch."""


Item = TypeVar("Item", bound=Costed)


@dataclass(slots=True)
class TokenBudget:
    """How much one batch may hold; it can shrink while a stream runs."""

    max_tokens: int
    """Tokens of the key-value cache, padding and texts still to come included."""
    max_size: int
    """Items."""
    tokens_per_text: int
    """Tokens one text may grow by."""
    max_prompt_tokens: int | None = None
    """Tokens of all prompts, padded; None: no limit of its own."""

    def cost(self, batch: Iterable[Costed]) -> int:
        """Tokens the cache of `batch` can grow to: every text on a prompt padded to the longest."""
        items = list(batch)
        longest = max((item.prompt_tokens for item in items), default=0)
        return sum(item.texts for item in items) * (longest + self.tokens_per_text)

    def fits(self, batch: Iterable[Costed]) -> bool:
        """Whether `batch` may run; a single item always may, since no batch is smaller."""
        items = list(batch)
        if len(items) <= 1:
            return True
        fills = self.max_prompt_tokens is not None and _padded(items) > self.max_prompt_tokens
        return len(items) <= self.max_size and self.cost(items) <= self.max_tokens and not fills

    def is_full(self, batch: Iterable[Costed]) -> bool:
        """Whether `batch` has no room for another item like its shortest."""
        items = list(batch)
        return not self.fits([*items, min(items, key=lambda item: item.prompt_tokens)])

    def shrink_below(self, batch: Iterable[Costed]) -> None:
        """After `batch` did not fit: never allow as much again."""
        self.max_tokens = min(self.max_tokens, max(1, self.cost(batch) // 2))


def _padded(items: Sequence[Costed]) -> int:
    return len(items) * max(item.prompt_tokens for item in items)


class Waiting(Generic[Item]):
    """Items that wait for a batch, the oldest first; has no clock, the time is passed as `now`, in seconds.

    Example:
        >>> from types import SimpleNamespace as Clip
        >>> budget = TokenBudget(max_tokens=220, max_size=8, tokens_per_text=10)
        >>> waiting = Waiting(budget, max_wait_seconds=0.1)
        >>> for tokens in (100, 20, 90):
        ...     waiting.add(Clip(prompt_tokens=tokens, texts=1, group=None), now=0.0)
        >>> [item.prompt_tokens for item in waiting.next_batch(0.0, idle=False, ended=False)]
        [100, 90]
        >>> waiting.next_batch(0.05, idle=True, ended=False)
        []
        >>> [item.prompt_tokens for item in waiting.next_batch(0.1, idle=True, ended=False)]
        [20]

    Args:
        budget: what one batch may hold.
        max_wait_seconds: how long an item waits for others while nothing runs.
    """

    def __init__(self, budget: TokenBudget, *, max_wait_seconds: float) -> None:
        self._budget = budget
        self._max_wait_seconds = max_wait_seconds
        self._entries: list[_Entry[Item]] = []

    @property
    def items(self) -> list[Item]:
        """The waiting items."""
        return [entry.item for entry in self._entries]

    @property
    def has_room(self) -> bool:
        """Whether one more may be added: `BATCHES_AHEAD` batches may wait, so that there is a choice."""
        size, cost = len(self._entries), sum(self._budget.cost([item]) for item in self.items)
        budget = self._budget
        return not size or (size < BATCHES_AHEAD * budget.max_size and cost < BATCHES_AHEAD * budget.max_tokens)

    def add(self, item: Item, now: float) -> None:
        """Add `item`."""
        self._entries.append(_Entry(item, now))

    def seconds_left(self, now: float) -> float | None:
        """Time until the oldest has waited long enough, 0 if it has, or None if nothing waits."""
        if not self._entries:
            return None
        return max(0.0, self._entries[0].since_seconds + self._max_wait_seconds - now)

    def next_batch(self, now: float, *, idle: bool, ended: bool) -> list[Item]:
        """Remove and return the items that run next, or none while waiting for more is better.

        A batch goes out when it is full, when no more can come, or when nothing runs and its oldest item has waited
        long enough. The oldest item of all is in it, unless it may wait longer and others make a full batch.

        Args:
            now: the time.
            idle: nothing runs and nothing is ready to run.
            ended: no more will be added.
        """
        if not self._entries:
            return []
        overdue = self.seconds_left(now) == 0
        batches = self._batches()
        if ended or not self.has_room or (idle and overdue):
            return self._take(batches[0])
        full = next((batch for batch in batches if self._budget.is_full(entry.item for entry in batch)), [])
        return self._take(batches[0] if full and overdue else full)

    def _batches(self) -> list[list[_Entry[Item]]]:
        """The best batch of each group, groups by their oldest item."""
        groups: dict[Hashable, list[_Entry[Item]]] = {}
        for entry in self._entries:
            groups.setdefault(entry.item.group, []).append(entry)
        return [_around_oldest(group, self._budget) for group in groups.values()]

    def _take(self, batch: list[_Entry[Item]]) -> list[Item]:
        taken = set(batch)
        self._entries = [entry for entry in self._entries if entry not in taken]
        return [entry.item for entry in batch]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Item]):
    item: Item
    since_seconds: float


def _around_oldest(group: Sequence[_Entry[Item]], budget: TokenBudget) -> list[_Entry[Item]]:
    """The first of a group and those whose prompts are closest to its own in length, as many as fit, in order."""
    oldest, *others = group
    batch = [oldest]
    for entry in sorted(others, key=lambda one: abs(one.item.prompt_tokens - oldest.item.prompt_tokens)):
        if budget.fits(one.item for one in [*batch, entry]):
            batch.append(entry)
    taken = set(batch)
    return [entry for entry in group if entry in taken]
