"""The thread that writes: order, errors, and a line that holds the giver back."""

from __future__ import annotations

import threading

import pytest

from reelscribe.runners.run.writer import Writer


def test_items_are_written_in_order_by_one_thread() -> None:
    written, threads = list[int](), set[int]()

    def write(item: int) -> None:
        written.append(item)
        threads.add(threading.get_ident())

    writer = Writer(write, max_waiting=3)
    for item in range(1000):
        writer.put(item)
    writer.finish()
    assert written == list(range(1000))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_one_item_is_written_though_no_other_follows() -> None:
    written = threading.Event()
    writer = Writer[int](lambda _item: written.set())
    writer.put(0)
    assert written.wait(60)
    writer.finish()


def test_an_error_is_raised_where_items_come_from_and_nothing_is_written_behind_it() -> None:
    written = list[int]()

    def write(item: int) -> None:
        if item == 5:
            raise ValueError("five")
        written.append(item)

    writer = Writer(write, max_waiting=2)
    with pytest.raises(ValueError, match="five"):  # noqa: PT012 - at which of them is not said
        for item in range(100):
            writer.put(item)
        writer.finish()
    writer.close()
    assert written == [0, 1, 2, 3, 4]


def test_a_full_line_holds_the_giver_back() -> None:
    may_write, begun = threading.Event(), threading.Event()
    given = list[int]()

    def write(_item: int) -> None:
        begun.set()
        may_write.wait(60)

    writer = Writer(write, max_waiting=4)

    def give() -> None:
        for item in range(100):
            writer.put(item)
            given.append(item)

    giver = threading.Thread(target=give)
    giver.start()
    assert begun.wait(60)
    giver.join(0.2)
    assert len(given) <= 4, "those in line, and those in the hands of the thread"
    may_write.set()
    giver.join(60)
    writer.finish()
    assert len(given) == 100
