"""Requests in flight: bounds, order, errors, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from reelscribe.models.in_flight import InFlight
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, Clip, RequestId

SOON = 10
"""Seconds after which something that must happen at once has not happened."""


@pytest.fixture
def flights():
    made = []

    def make(**settings):
        made.append(InFlight(**{"max_requests": 4, **settings}))
        return made[-1]

    yield make
    for flight in made:
        flight.close()


def jobs(count, clip=None):
    for row in range(count):
        yield CaptionRequest(RequestId(row, 0), f"{row}.mp4", "What?"), clip


def result(request):
    return CaptionResult(request.id, (Candidate(request.video),))


def clip_of(nbytes):
    frames = np.zeros((1, 1, nbytes // 3, 3), np.uint8)
    return Clip(frames, np.zeros(1), duration_seconds=1, source_fps=1, source_height=1, source_width=nbytes // 3)


class Answers:
    """Answers when told to, and knows how many requests it held at once."""

    def __init__(self, wait=0.0):
        self.wait, self.held, self.most, self.cancelled = wait, 0, 0, 0
        self.threads = set()

    async def __call__(self, request, clip):
        self.threads.add(threading.get_ident())
        self.held += 1
        self.most = max(self.most, self.held)
        try:
            await asyncio.sleep(self.wait)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.held -= 1
        return result(request)


def test_every_request_is_answered_once(flights):
    rows = [one.request_id.row for one in flights().stream(jobs(50), Answers(0.001))]
    assert sorted(rows) == list(range(50))


def test_no_more_than_the_bound_is_in_flight(flights):
    answers = Answers(0.005)
    list(flights(max_requests=3).stream(jobs(20), answers))
    assert answers.most == 3


def test_bytes_are_bounded_too(flights):
    answers = Answers(0.005)
    list(flights(max_requests=100, max_bytes=600).stream(jobs(12, clip_of(300)), answers))
    assert answers.most == 2


def test_the_stream_is_pulled_in_a_thread_of_its_own_one_ahead_of_what_is_in_flight(flights):
    pulled, threads = 0, set()

    def source():
        nonlocal pulled
        for job in jobs(10**9):
            pulled += 1
            threads.add(threading.get_ident())
            yield job

    flight = flights(max_requests=4)
    stream = flight.stream(source(), Answers())
    for _ in range(10):
        next(stream)
    stream.close()
    assert pulled <= 10 + 4 + 1
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident(), flight._thread.ident})


def test_results_leave_while_the_next_clip_is_waited_for(flights):
    answered = threading.Event()

    def source():
        yield from jobs(2)
        assert answered.wait(SOON)
        yield from ((replace(request, id=RequestId(2, 0)), clip) for request, clip in jobs(1))

    stream = flights().stream(source(), Answers())
    assert {next(stream).request_id.row for _ in range(2)} == {0, 1}
    answered.set()
    assert [one.request_id.row for one in stream] == [2]


def test_closing_the_stream_early_leaves_no_puller_and_closes_the_clips(flights):
    closed = threading.Event()

    def source():
        try:
            yield from jobs(10**9)
        finally:
            closed.set()

    stream = flights().stream(source(), Answers())
    next(stream)
    stream.close()
    assert closed.is_set()
    assert [thread.name for thread in threading.enumerate() if thread.name == "puller"] == []


def test_closing_does_not_wait_for_clips_that_block(flights):
    waits, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def source():
        try:
            yield from jobs(1)
            waits.set()
            assert go_on.wait(SOON)
            yield from jobs(1)
        finally:
            closed.set()

    stream = flights().stream(source(), Answers())
    next(stream)
    assert waits.wait(SOON)
    stream.close()
    assert not closed.is_set()
    go_on.set()
    assert closed.wait(SOON)


def test_it_is_busy_while_a_request_is_in_flight(flights):
    flight, inside = flights(), []
    assert flight.busy_seconds == {"model": 0.0}

    async def answer(request, clip):
        before = flight.busy_seconds["model"]
        await asyncio.sleep(0.002)
        inside.append(flight.busy_seconds["model"] - before)
        return result(request)

    list(flight.stream(jobs(3), answer))
    busy = flight.busy_seconds["model"]
    assert min(inside) > 0
    assert busy >= max(inside)
    assert flight.busy_seconds == {"model": busy}


def test_answers_are_made_in_another_thread(flights):
    answers = Answers()
    list(flights().stream(jobs(3), answers))
    assert answers.threads.isdisjoint({threading.get_ident()})


def test_a_slow_request_holds_nobody_up(flights):
    async def answer(request, clip):
        await asyncio.sleep(0.3 if request.id.row == 0 else 0)
        return result(request)

    rows = [one.request_id.row for one in flights(max_requests=2).stream(jobs(20), answer)]
    assert rows[-1] == 0


def test_an_error_of_an_answer_comes_out_and_ends_the_rest(flights):
    others = Answers(60)

    async def answer(request, clip):
        if request.id.row == 2:
            raise RuntimeError("a bug")
        return await others(request, clip)

    flight = flights()
    with pytest.raises(RuntimeError, match="a bug"):
        list(flight.stream(jobs(9), answer))
    assert flight.run(asyncio.sleep(0, "still there")) == "still there"
    assert others.held == 0


def test_closing_the_stream_cancels_what_is_in_flight(flights):
    answers = Answers(60)
    flight = flights(max_requests=3)

    def source():
        yield from jobs(2)
        raise OSError("the reader died")

    with pytest.raises(OSError, match="the reader died"):
        list(flight.stream(source(), answers))
    flight.run(asyncio.sleep(0))
    assert answers.held == 0


def test_a_flight_can_be_closed_where_a_loop_is_running_and_runs_one_last_thing():
    last = []

    async def say():
        last.append("bye")

    async def notebook():
        flight = InFlight(max_requests=2)
        list(flight.stream(jobs(3), Answers()))
        flight.close(say)

    asyncio.run(notebook())
    assert last == ["bye"]


def test_a_flight_closed_in_its_own_thread_does_not_wait_for_itself():
    flight = InFlight(max_requests=2)

    async def close():
        flight.close()

    flight.run(close())
    flight._thread.join(5)
    assert not flight._thread.is_alive()


def test_a_closed_flight_leaves_no_thread():
    flight = InFlight(max_requests=2)
    list(flight.stream(jobs(3), Answers()))
    flight.close()
    flight.close()
    assert not flight._thread.is_alive()
    assert flight._loop.is_closed()
