"""Batches by token budget."""

from __future__ import annotations

from dataclasses import dataclass

from reelscribe.models.batching import TokenBudget, token_batches


@dataclass(frozen=True)
class Item:
    prompt_tokens: int
    texts: int = 1
    group: str | None = None


def batches(items, max_tokens=1000, max_size=4):
    budget = TokenBudget(max_tokens=max_tokens, max_size=max_size, tokens_per_text=10)
    return list(token_batches(items, budget=budget))


def test_every_item_comes_out_once_in_order():
    items = [Item(n) for n in range(11)]
    assert [one for batch in batches(items) for one in batch] == items


def test_a_batch_has_at_most_max_size_items():
    assert [len(batch) for batch in batches([Item(1)] * 10)] == [4, 4, 2]


def test_padding_and_candidates_count():
    assert [len(batch) for batch in batches([Item(100)] * 4, max_tokens=220)] == [2, 2]
    assert [len(batch) for batch in batches([Item(10), Item(100), Item(10)], max_tokens=220)] == [2, 1]
    assert [len(batch) for batch in batches([Item(100, texts=2)] * 2, max_tokens=220)] == [1, 1]


def test_an_item_over_the_budget_goes_alone():
    assert [len(batch) for batch in batches([Item(1), Item(10**6), Item(1)])] == [1, 1, 1]


def test_groups_do_not_mix():
    items = [Item(1, group="ab"[n % 2]) for n in range(9)]
    for batch in batches(items):
        assert len({one.group for one in batch}) == 1
    assert sum(map(len, batches(items))) == 9


def test_look_ahead_is_bounded():
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield Item(1, group=str(pulled % 3))

    stream = token_batches(endless(), budget=TokenBudget(max_tokens=1000, max_size=4, tokens_per_text=10))
    out = sum(len(next(stream)) for _ in range(5))
    assert pulled - out < 4


def test_a_shrunk_budget_makes_smaller_batches():
    budget = TokenBudget(max_tokens=1000, max_size=100, tokens_per_text=0)
    stream = token_batches([Item(10)] * 150, budget=budget)
    first = next(stream)
    assert len(first) == 100
    budget.shrink_below(first)
    assert len(next(stream)) == 50
