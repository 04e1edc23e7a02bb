"""Batches formed and prepared ahead: who waits for whom, errors, and what is left behind."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import Queue

import pytest

from reelscribe.models.hf.batches import Batch, PreparedBatches
from reelscribe.models.hf.waiting import TokenBudget, Waiting

SOON = 10
"""Seconds after which something that must happen at once has not happened."""
NEVER = 3600.0


@dataclass(frozen=True)
class Item:
    number: int
    prompt_tokens: int = 1
    texts: int = 1
    group: str | None = None


class Kitchen:
    """Prepares when told to, and says what it prepares."""

    def __init__(self, *, free=True):
        self.free = threading.Event()
        self.began, self.threads = Queue(), set()
        if free:
            self.free.set()

    def __call__(self, items):
        self.began.put([item.number for item in items])
        self.threads.add(threading.get_ident())
        assert self.free.wait(SOON)
        if any(item.number < 0 for item in items):
            raise ValueError("it cannot be prepared")
        return [10 * item.number for item in items]


@pytest.fixture
def streams():
    """Batches over numbers; everything is closed in the end."""
    made = []

    def make(numbers, prepare=None, *, size=2, wait=NEVER, **arguments):
        waiting = Waiting(TokenBudget(10**6, size, tokens_per_text=0), max_wait_seconds=wait)
        made.append(PreparedBatches(numbers, item_of=Item, waiting=waiting, prepare=prepare or Kitchen(), **arguments))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def numbers_of(batch):
    return [item.number for item in batch.items]


def test_every_item_is_in_one_batch_in_order(streams):
    batches = [*streams(range(7))]
    assert [numbers_of(batch) for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [batch.prepared() for batch in batches] == [[0, 10], [20, 30], [40, 50], [60]]


def test_an_empty_stream_has_no_batches(streams):
    assert [*streams([])] == []


def test_the_next_batch_is_prepared_in_another_thread_while_the_present_one_runs(streams):
    kitchen = Kitchen()
    batches = streams(range(6), kitchen)
    running = next(batches)
    assert [kitchen.began.get(timeout=SOON) for _ in range(2)] == [[0, 1], [2, 3]]
    assert running.prepared() == [0, 10]
    assert kitchen.threads.isdisjoint({threading.get_ident()})


def test_one_prepared_batch_waits_at_most(streams):
    taken, prepared = 0, 0

    def prepare(items):
        nonlocal prepared
        prepared += 1
        assert prepared <= taken + 1
        return items

    batches = streams(range(40), prepare)
    for _ in range(20):
        taken += 1  # before it is taken: the next one may be prepared at once
        assert next(batches).prepared()
    assert prepared >= 20


def test_where_it_is_not_ahead_batches_are_prepared_by_their_owner(streams):
    kitchen = Kitchen()
    batches = streams(range(4), kitchen, ahead=False)
    assert [batch.prepared() for batch in batches] == [[0, 10], [20, 30]]
    assert kitchen.threads == {threading.get_ident()}


def blocked_after(*numbers):
    """A stream that gives some numbers and then one more, `-0`, when it is let go."""
    go_on = threading.Event()

    def source():
        yield from numbers
        assert go_on.wait(SOON)
        yield 99

    return source(), go_on


def test_a_batch_that_is_not_full_goes_out_after_its_time_where_nothing_runs(streams):
    source, go_on = blocked_after(1)
    batches = streams(source, size=8, wait=0.02)
    assert numbers_of(next(batches)) == [1]
    assert not go_on.is_set()
    go_on.set()
    assert numbers_of(next(batches)) == [99]


def test_while_one_runs_the_next_goes_on_filling(streams):
    kitchen, runs = Kitchen(), threading.Event()

    def source():
        yield 0
        assert runs.wait(SOON)
        yield from (1, 2, 3)

    batches = streams(source(), kitchen, size=3, wait=0.0)
    assert numbers_of(next(batches)) == [0]
    runs.set()
    assert [kitchen.began.get(timeout=SOON) for _ in range(2)] == [[0], [1, 2, 3]]


def test_when_an_item_has_waited_long_enough_the_clock_says(streams):
    clock, waits = [0.0], threading.Event()
    source, go_on = blocked_after(1)
    batches = streams(source, size=8, wait=100.0, now=lambda: (waits.set(), clock[0])[1])
    got = Queue()
    taker = threading.Thread(target=lambda: got.put(next(batches)), daemon=True)
    taker.start()
    assert waits.wait(SOON)
    assert got.empty()
    clock[0] = 100.0
    batches._notify()
    assert numbers_of(got.get(timeout=SOON)) == [1]
    go_on.set()
    taker.join(SOON)


def test_an_error_of_the_stream_is_raised_where_batches_are_taken(streams):
    def broken():
        yield 1
        raise OSError("the reader died")

    batches = streams(broken(), size=1)
    with pytest.raises(OSError, match="the reader died"):
        list(batches)


def test_an_error_of_an_item_is_raised_where_batches_are_taken():
    def item_of(number):
        raise TypeError("it is no item")

    waiting = Waiting(TokenBudget(10, 1, 0), max_wait_seconds=0)
    with (
        PreparedBatches([1], item_of=item_of, waiting=waiting, prepare=list) as batches,
        pytest.raises(TypeError, match="no item"),
    ):
        next(batches)


def test_an_error_of_preparing_belongs_to_the_batch(streams):
    first, second, third = streams([1, 2, 3, -4, 5, 6])
    assert first.prepared() == [10, 20]
    with pytest.raises(ValueError, match="cannot be prepared"):
        second.prepared()
    assert third.prepared() == [50, 60]


def test_parts_are_prepared_by_whoever_runs_them(streams):
    kitchen = Kitchen()
    (batch,) = streams([1, 2, 3], kitchen, size=3)
    parts = list(batch.parts(2))
    assert [part.prepared() for part in parts] == [[10, 20], [30]]
    assert threading.get_ident() in kitchen.threads
    assert [[item.number for item in part.later()] for part in parts] == [[3], []]


def test_what_is_prepared_is_handed_over_and_made_again_where_it_was_let_go():
    kitchen = Kitchen()
    batch = Batch([Item(1)], kitchen)
    batch.prepare()
    assert batch.prepared() == [10]
    batch.prepare()
    batch.release()
    assert batch.prepared() == [10]
    assert kitchen.began.qsize() == 3


def test_alone_nothing_else_is_prepared_or_held(streams):
    kitchen = Kitchen()
    batches = streams(range(6), kitchen)
    running = next(batches)
    assert [kitchen.began.get(timeout=SOON) for _ in range(2)] == [[0, 1], [2, 3]]
    with running.alone():
        assert batches._next is not None
        assert batches._next._prepared is None
        following = next(batches)
        assert kitchen.began.empty()
    assert following.prepared() == [20, 30]


def test_alone_waits_for_what_is_being_prepared_and_lets_go_of_it(streams):
    began, finish, order = threading.Event(), threading.Event(), []

    def prepare(items):
        if items[0].number == 1:
            began.set()
            assert finish.wait(SOON)
            order.append("prepared")
        return items

    def run_alone():
        with running.alone():
            order.append(("alone", batches._next._prepared))

    batches = streams(range(2), prepare, size=1)
    running = next(batches)
    assert began.wait(SOON)
    other = threading.Thread(target=run_alone, daemon=True)
    other.start()
    other.join(0.05)
    assert order == [], "it waits for what is being prepared"
    finish.set()
    other.join(SOON)
    assert order == ["prepared", ("alone", None)]


def test_a_single_owner_may_change_threads(streams):
    batches, taken, order = streams(range(6)), [], []
    for _ in range(2):
        thread = threading.Thread(target=lambda: taken.append(next(batches)), daemon=True)
        thread.start()
        thread.join(SOON)

    def run_alone():
        with taken[-1].alone():
            order.append("alone")

    thread = threading.Thread(target=run_alone, daemon=True)
    thread.start()
    thread.join(SOON)
    assert order == ["alone"]
    assert {item.number for item in taken[-1].later()} <= {4, 5}, "its first batch is done"


def test_of_several_owners_one_is_alone_when_the_others_are_between_batches(streams):
    batches, order = streams(range(4), size=1, owners=2), []
    taken, go_on = threading.Event(), threading.Event()

    def other_owner():
        next(batches)
        taken.set()
        assert go_on.wait(SOON)
        order.append("the other has ended")
        next(batches)
        order.append("the other goes on")

    thread = threading.Thread(target=other_owner, daemon=True)
    thread.start()
    assert taken.wait(SOON)
    mine = next(batches)
    assert not batches.is_last
    threading.Timer(0.05, go_on.set).start()
    with mine.alone():
        thread.join(0.05)
        order.append("alone")
    thread.join(SOON)
    assert order == ["the other has ended", "alone", "the other goes on"]


def test_later_items_are_known(streams):
    source, go_on = blocked_after(1, 2, 3)
    kitchen = Kitchen()
    batches = streams(source, kitchen, size=1)
    batch = next(batches)
    assert kitchen.began.get(timeout=SOON) == [1]
    assert kitchen.began.get(timeout=SOON) == [2]
    assert {item.number for item in batch.later()} <= {2, 3}
    go_on.set()


def threads_named(*names):
    return [thread for thread in threading.enumerate() if thread.name in names]


def test_closing_early_ends_both_threads_and_closes_the_stream(streams):
    closed = threading.Event()

    def endless():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    batches = streams(endless())
    next(batches)
    batches.close()
    assert closed.is_set()
    assert threads_named("puller", "prepare-batches") == []


def test_closing_does_not_wait_for_a_stream_that_blocks(streams, monkeypatch):
    monkeypatch.setattr("reelscribe.models.puller.JOIN_SECONDS", 0.01)
    source, go_on = blocked_after(1)
    batches = streams(source, size=1)
    next(batches)
    batches.close()
    go_on.set()
    for thread in threads_named("puller", "prepare-batches"):
        thread.join(SOON)
    assert threads_named("puller", "prepare-batches") == []


def test_closing_while_preparing_lets_go_of_what_is_made(streams, monkeypatch):
    monkeypatch.setattr("reelscribe.models.puller.JOIN_SECONDS", 0.01)
    kitchen = Kitchen(free=False)
    batches = streams(range(4), kitchen)
    kitchen.began.get(timeout=SOON)
    batches.close()
    kitchen.free.set()
    batches._thread.join(SOON)
    assert not batches._thread.is_alive()
    assert batches._next is None
