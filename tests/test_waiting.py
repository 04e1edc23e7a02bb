"""Which items make the next batch: budget, size, length, groups, and how long they wait."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.models.hf.waiting import BATCHES_AHEAD, TokenBudget, Waiting

WAIT = 0.5
"""Seconds an item waits for others."""


@dataclass(frozen=True)
class Item:
    prompt_tokens: int
    texts: int = 1
    group: str | None = None


def waiting_for(items, *, max_tokens=1000, max_size=4, now=0.0):
    waiting = Waiting(TokenBudget(max_tokens, max_size, tokens_per_text=10), max_wait_seconds=WAIT)
    for item in items:
        waiting.add(item, now)
    return waiting


def all_batches(items, **budget):
    """What goes out of a stream that has ended, or is full."""
    waiting, stream, batches = waiting_for([], **budget), list(items), []
    while stream or waiting.items:
        while stream and waiting.has_room:
            waiting.add(stream.pop(0), 0.0)
        batches.append(waiting.next_batch(WAIT, idle=True, ended=not stream))
    return batches


def sizes(items, **budget):
    return [len(batch) for batch in all_batches(items, **budget)]


def test_every_item_comes_out_once_in_order():
    items = [Item(n) for n in range(11)]
    assert [one for batch in all_batches(items) for one in batch] == items


def test_a_batch_has_at_most_max_size_items():
    assert sizes([Item(1)] * 10) == [4, 4, 2]


def test_padding_and_candidates_count():
    assert sizes([Item(100)] * 4, max_tokens=220) == [2, 2]
    assert sizes([Item(10), Item(100), Item(10)], max_tokens=220) == [2, 1]
    assert sizes([Item(100, texts=2)] * 2, max_tokens=220) == [1, 1]


def test_an_item_over_the_budget_goes_alone():
    assert sizes([Item(1), Item(10**6), Item(1)]) == [1, 1, 1]


def test_nothing_waits_nothing_goes():
    waiting = waiting_for([])
    assert waiting.next_batch(9.0, idle=True, ended=True) == []
    assert waiting.seconds_left(9.0) is None
    assert waiting.has_room


def test_while_the_model_is_busy_a_batch_goes_on_filling():
    waiting = waiting_for([Item(1)] * 3)
    assert waiting.next_batch(1000.0, idle=False, ended=False) == []
    waiting.add(Item(1), 1000.0)
    assert len(waiting.next_batch(1000.0, idle=False, ended=False)) == 4


def test_where_nothing_runs_the_oldest_waits_its_time_and_no_longer():
    waiting = waiting_for([Item(1)], now=7.0)
    waiting.add(Item(2), 7.4)
    assert waiting.seconds_left(7.25) == 0.25
    assert waiting.next_batch(7.4, idle=True, ended=False) == []
    assert waiting.seconds_left(7.5) == 0
    assert waiting.next_batch(7.5, idle=True, ended=False) == [Item(1), Item(2)]


def test_a_full_batch_does_not_wait():
    assert waiting_for([Item(1)] * 4).next_batch(0.0, idle=True, ended=False) == [Item(1)] * 4
    assert waiting_for([Item(100)] * 2, max_tokens=220).next_batch(0.0, idle=True, ended=False) == [Item(100)] * 2


def test_a_stream_that_has_ended_does_not_wait():
    assert waiting_for([Item(1)]).next_batch(0.0, idle=False, ended=True) == [Item(1)]


def test_prompts_of_like_length_share_a_batch():
    items = [Item(100), Item(900), Item(110), Item(890), Item(95), Item(910)]
    waiting = waiting_for(items, max_tokens=10_000, max_size=3)
    assert waiting.next_batch(0.0, idle=False, ended=False) == [Item(100), Item(110), Item(95)]
    assert waiting.next_batch(0.0, idle=False, ended=False) == [Item(900), Item(890), Item(910)]


def test_the_oldest_is_in_the_next_batch_whatever_its_length():
    waiting = waiting_for([Item(900), *[Item(100)] * 5], max_tokens=10_000)
    assert waiting.next_batch(0.0, idle=False, ended=False) == [Item(900), *[Item(100)] * 3]


def test_groups_do_not_mix():
    items = [Item(1, group="ab"[n % 2]) for n in range(9)]
    batches = all_batches(items)
    assert all(len({one.group for one in batch}) == 1 for batch in batches)
    assert sum(map(len, batches)) == 9


def test_a_full_batch_overtakes_a_group_that_may_wait_and_no_other():
    rare, common = Item(1, group="rare"), Item(1, group="common")
    waiting = waiting_for([rare, *[common] * 4])
    assert waiting.next_batch(WAIT / 2, idle=True, ended=False) == [common] * 4
    for _ in range(4):
        waiting.add(common, WAIT)
    assert waiting.next_batch(WAIT, idle=False, ended=False) == [rare]
    assert waiting.next_batch(WAIT, idle=False, ended=False) == [common] * 4


def test_a_rare_group_alone_waits_for_the_model():
    rare = Item(1, group="rare")
    waiting = waiting_for([rare, *[Item(1, group="common")] * 2])
    assert waiting.next_batch(WAIT, idle=False, ended=False) == []
    assert waiting.next_batch(WAIT, idle=True, ended=False) == [rare]


@pytest.mark.parametrize("item", [Item(1), Item(990), Item(10**6), Item(100, texts=5)])
def test_what_waits_is_bounded_by_the_budget_and_then_goes_out(item):
    waiting = waiting_for([])
    while waiting.has_room:
        waiting.add(item, 0.0)
    budget = TokenBudget(max_tokens=1000, max_size=4, tokens_per_text=10)
    before = waiting.items[:-1]
    assert len(before) < BATCHES_AHEAD * budget.max_size
    assert sum(budget.cost([one]) for one in before) < BATCHES_AHEAD * budget.max_tokens
    assert waiting.next_batch(0.0, idle=False, ended=False) != []


def test_waiting_full_of_incomplete_groups_lets_the_oldest_go():
    waiting = waiting_for([Item(1, group=name) for name in "abcdabcd"])
    assert not waiting.has_room
    assert waiting.next_batch(0.0, idle=False, ended=False) == [Item(1, group="a")] * 2


def test_a_shrunk_budget_makes_smaller_batches():
    budget = TokenBudget(max_tokens=1000, max_size=100, tokens_per_text=0)
    waiting = Waiting(budget, max_wait_seconds=WAIT)
    for _ in range(150):
        waiting.add(Item(10), 0.0)
    first = waiting.next_batch(0.0, idle=False, ended=True)
    assert len(first) == 100
    budget.shrink_below(first)
    assert len(waiting.next_batch(0.0, idle=False, ended=True)) == 50


ITEMS = st.lists(
    st.builds(Item, st.integers(1, 1200), st.integers(1, 4), st.sampled_from([None, "a", "b"])), min_size=1, max_size=40
)


@given(ITEMS, st.integers(1, 5), st.integers(50, 3000))
def test_every_batch_fits_holds_the_oldest_and_loses_nobody(items, max_size, max_tokens):
    budget = TokenBudget(max_tokens=max_tokens, max_size=max_size, tokens_per_text=10)
    left = [*items]
    for batch in all_batches(items, max_size=max_size, max_tokens=max_tokens):
        assert budget.fits(batch)
        assert batch[0] == left[0]
        for one in batch:
            left.remove(one)
    assert left == []


def test_prompts_of_a_batch_may_have_a_limit_of_their_own() -> None:
    budget = TokenBudget(max_tokens=100_000, max_size=16, tokens_per_text=10, max_prompt_tokens=2048)
    assert budget.fits([Item(3000)])
    assert not budget.fits([Item(3000), Item(10)])
    assert budget.fits([Item(600)] * 3)
    assert not budget.fits([Item(600)] * 4)
    assert not budget.fits([Item(1500), Item(100)]), "padded to the longest"
    assert budget.fits([Item(100, texts=8)] * 16)
