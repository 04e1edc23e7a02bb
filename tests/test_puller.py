"""Pulling in a thread of its own: order, bounds, ends, errors, and what is left behind."""

from __future__ import annotations

import threading
from queue import Queue

import pytest

from reelscribe.models.puller import Puller, SideBySide

SOON = 10
"""Seconds after which something that must happen at once has not happened."""


def rest_of(puller):
    items = []
    while (item := puller.take(SOON)) is not None:
        items.append(item)
    return items


class Source:
    """An iterator whose items are handed in by the test, and which says what is done to it."""

    def __init__(self):
        self.items, self.asked, self.closed_in = Queue(), Queue(), Queue()

    def __iter__(self):
        return self

    def __next__(self):
        self.asked.put(threading.get_ident())
        item = self.items.get(timeout=SOON)
        if item is StopIteration:
            raise StopIteration
        return item

    def close(self):
        self.closed_in.put(threading.get_ident())


def test_items_come_in_order_and_then_it_has_ended():
    with Puller(range(1, 100)) as puller:
        assert rest_of(puller) == list(range(1, 100))
        assert puller.ended
        assert puller.take() is None


def test_where_nothing_is_ready_nothing_is_given():
    source = Source()
    with Puller(source) as puller:
        source.asked.get(timeout=SOON)
        assert puller.take() is None
        assert puller.take(0.01) is None
        assert not puller.ended
        source.items.put(7)
        assert puller.take(SOON) == 7
        source.items.put(StopIteration)
        assert puller.take(None) is None
        assert puller.ended


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_are_held_ready_than_the_bound(ahead):
    taken, pulled = 0, []

    def source():
        for number in range(1, 50):
            pulled.append(number)
            assert number <= taken + ahead
            yield number

    with Puller(source(), ahead=ahead) as puller:
        for _ in range(20):
            taken += 1  # before it is taken: the next one may be asked for at once
            assert puller.take(SOON) == taken
    assert len(pulled) <= 20 + ahead


def test_an_error_comes_behind_the_items_before_it():
    def broken():
        yield from (1, 2)
        raise OSError("the reader died")

    with Puller(broken(), ahead=5) as puller:
        assert [puller.take(SOON), puller.take(SOON)] == [1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="the reader died"):
                puller.take(SOON)
        assert not puller.ended


@pytest.mark.parametrize("items", [None, 3])
def test_what_cannot_be_iterated_is_an_error_of_the_owner(items):
    with Puller(items) as puller, pytest.raises(TypeError):
        puller.take(SOON)


def test_the_owner_is_told_of_items_and_of_the_end():
    told = Queue()
    with Puller([1, 2], notify=lambda: told.put(None)) as puller:
        told.get(timeout=SOON)
        assert puller.take() == 1
        told.get(timeout=SOON)
        assert puller.take() == 2
        told.get(timeout=SOON)
        assert puller.ended


def test_the_iterable_is_advanced_and_closed_in_one_thread_that_ends():
    source = Source()
    puller = Puller(source)
    source.items.put(1)
    assert puller.take(SOON) == 1
    source.items.put(2)
    puller.close()
    assert source.closed_in.get(timeout=SOON) == source.asked.get() != threading.get_ident()
    assert not puller._thread.is_alive()


def test_an_iterable_that_is_used_up_is_closed_too():
    source = Source()
    source.items.put(StopIteration)
    with Puller(source):
        source.closed_in.get(timeout=SOON)


def test_closing_does_not_wait_for_an_iterable_that_blocks(monkeypatch):
    monkeypatch.setattr("reelscribe.models.puller.JOIN_SECONDS", 0.01)
    source = Source()
    puller = Puller(source)
    source.asked.get(timeout=SOON)
    puller.close()
    assert source.closed_in.empty()
    source.items.put("too late")
    source.closed_in.get(timeout=SOON)
    puller._thread.join(SOON)
    assert not puller._thread.is_alive()
    assert puller.take() is None


def test_an_error_after_closing_is_nobodys():
    def source():
        try:
            yield 1
            yield 2
        finally:
            raise RuntimeError("closed")

    puller = Puller(source())
    assert puller.take(SOON) == 1
    puller.close()
    puller._thread.join(SOON)
    assert not puller._thread.is_alive()


def test_several_side_by_side_give_all_they_have_as_it_comes():
    first, second = Source(), Source()
    with SideBySide([first, second]) as both:
        second.items.put(20)
        assert next(both) == 20
        first.items.put(10)
        assert next(both) == 10
        for source in (first, second):
            source.items.put(StopIteration)
        assert list(both) == []
    with SideBySide([range(1, 50), [], range(100, 150)]) as three:
        assert sorted(three) == [*range(1, 50), *range(100, 150)]


def test_an_error_of_one_is_raised_when_the_others_have_ended():
    failed = threading.Event()

    def broken():
        failed.set()
        raise OSError("the first died")
        yield

    def whole():
        assert failed.wait(SOON)
        yield from (1, 2)

    with SideBySide([broken(), whole()]) as both:
        assert [next(both), next(both)] == [1, 2]
        with pytest.raises(OSError, match="the first died"):
            next(both)


def test_what_was_given_before_an_error_is_taken():
    def broken():
        yield 3
        raise OSError("it died")

    with SideBySide([[1, 2], broken()]) as both:
        assert sorted(next(both) for _ in range(3)) == [1, 2, 3]
        with pytest.raises(OSError, match="it died"):
            next(both)


def test_at_the_end_the_streams_are_told_and_waited_for():
    at_work, told, ended = threading.Semaphore(0), threading.Event(), []

    def endless():
        yield 1
        at_work.release()
        assert told.wait(SOON)
        ended.append(True)
        yield 2

    with SideBySide([endless(), endless()], stop=told.set) as both:
        assert [next(both), next(both)] == [1, 1]
        assert at_work.acquire(timeout=SOON)
        assert at_work.acquire(timeout=SOON)
    assert ended == [True, True]
    assert [thread for thread in threading.enumerate() if thread.name == "puller"] == []
