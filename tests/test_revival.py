"""An engine that dies: who is asked again, who is failed, and when the run stops."""

from __future__ import annotations

import asyncio

import pytest

from reelscribe.errors import ModelError
from reelscribe.models.in_flight import InFlight
from reelscribe.models.vllm import revival
from reelscribe.models.vllm.revival import EngineDiedError, RevivingEngine, unless_dead
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, RequestId


class Factory:
    """Starts engines that die of the videos in `poison`, with everything they hold."""

    def __init__(self, *poison, dies_once_at=None, starts=99):
        self.poison, self.dies_once_at, self.starts = set(poison), dies_once_at, starts
        self.engines = []
        self.alone = []

    def __call__(self):
        if len(self.engines) >= self.starts:
            raise ModelError("vLLM does not start")
        self.engines.append(FakeEngine(self))
        return self.engines[-1]


class FakeEngine:
    def __init__(self, factory):
        self.factory, self.held, self.closed, self.answered = factory, 0, 0, 0
        self.dead = asyncio.Event()

    async def answer(self, request, clip):
        if self.dead.is_set():
            raise EngineDiedError
        self.held += 1
        self.factory.alone.append((request.video, self.held))
        try:
            await asyncio.sleep(0.005)
            if request.video in self.factory.poison:
                self.dead.set()
            if self.factory.dies_once_at == request.video:
                self.factory.dies_once_at = None
                self.dead.set()
            if self.dead.is_set():
                raise EngineDiedError
        finally:
            self.held -= 1
        return CaptionResult(request.id, (Candidate(f"caption of {request.video}"),))

    def close(self):
        self.closed += 1


def run(factory, count=20, *, max_requests=8, max_deaths_in_a_row=4):
    """Captions, failures by video, and the reviving engine."""
    flight = InFlight(max_requests=max_requests)

    async def make():
        return RevivingEngine(factory, max_deaths_in_a_row=max_deaths_in_a_row)

    engine = flight.run(make())
    requests = ((CaptionRequest(RequestId(row, 0), f"{row}.mp4", "What?"), None) for row in range(count))
    try:
        results = {one.request_id.row: one for one in flight.stream(requests, engine.answer)}
    finally:
        flight.run(engine.close())
        flight.close()
    assert sorted(results) == list(range(count))
    return {row: one.failure.kind for row, one in results.items() if one.failure is not None}, engine


class DeafEngine(FakeEngine):
    """Tells its first request that it is dead, and leaves the others waiting for ever."""

    async def answer(self, request, clip):
        return await unless_dead(self._answer(request), lambda: self.dead.is_set())

    async def _answer(self, request):
        if request.video in self.factory.poison:
            self.dead.set()
            raise EngineDiedError
        if len(self.factory.engines) == 1:
            await asyncio.Event().wait()
        return CaptionResult(request.id, (Candidate("caption"),))


def test_requests_that_a_dead_engine_forgets_are_asked_again(monkeypatch):
    monkeypatch.setattr(revival, "WATCH_SECONDS", 0.02)
    factory = Factory("5.mp4")
    monkeypatch.setattr("test_revival.FakeEngine", DeafEngine)
    failed, _ = run(factory)
    assert {type(engine) for engine in factory.engines} == {DeafEngine}
    assert failed == {5: "engine_died"}


def test_work_that_ends_is_not_asked_about_the_engine():
    async def work():
        return 7

    assert asyncio.run(unless_dead(work(), lambda: True)) == 7


def test_a_closed_engine_is_not_started_again():
    async def go():
        factory = Factory()
        engine = RevivingEngine(factory, max_deaths_in_a_row=1)
        await engine.close()
        await engine.close()
        with pytest.raises(ModelError, match="closed"):
            await engine.answer(CaptionRequest(RequestId(0, 0), "0.mp4", "What?"), None)
        return factory

    factory = asyncio.run(go())
    assert (len(factory.engines), factory.engines[0].closed) == (1, 1)


def test_an_engine_that_lives_is_started_once():
    factory = Factory()
    failed, engine = run(factory)
    assert (failed, engine.deaths, len(factory.engines)) == ({}, 0, 1)
    assert factory.engines[0].closed == 1


def test_what_an_engine_died_with_is_asked_again():
    factory = Factory(dies_once_at="7.mp4")
    failed, engine = run(factory)
    assert (failed, engine.deaths, len(factory.engines)) == ({}, 1, 2)
    assert all(one.closed == 1 for one in factory.engines)


def test_a_video_that_kills_twice_is_failed_and_nobody_else():
    failed, engine = run(Factory("5.mp4"))
    assert failed == {5: "engine_died"}
    assert engine.deaths == 2


def test_the_second_try_is_alone_in_the_engine():
    factory = Factory("5.mp4")
    run(factory)
    assert [held for video, held in factory.alone if video == "5.mp4"][1] == 1


def test_several_poisonous_videos_are_each_found():
    failed, _ = run(Factory("3.mp4", "4.mp4", "17.mp4"))
    assert failed == dict.fromkeys([3, 4, 17], "engine_died")


def test_an_engine_that_dies_of_everything_stops_the_run():
    with pytest.raises(ModelError, match="died 3 times without an answer in between"):
        run(Factory(*(f"{row}.mp4" for row in range(20))), max_deaths_in_a_row=2)


def test_an_engine_that_cannot_be_started_again_stops_the_run_at_once():
    factory = Factory("2.mp4", starts=1)
    with pytest.raises(ModelError, match="does not start"):
        run(factory)
    assert len(factory.engines) == 1


def test_a_start_that_fails_is_an_error():
    with pytest.raises(ModelError, match="does not start"):
        RevivingEngine(Factory(starts=0), max_deaths_in_a_row=1)
