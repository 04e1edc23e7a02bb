"""Requests until their final results, whoever asks: what is of no use is asked again, so often and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from reelscribe.answering.acceptance import Acceptance
from reelscribe.answering.tries import Final, Tries, caption
from reelscribe.errors import ModelError
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, Failure, RequestId

ACCEPTANCE = Acceptance(str.strip)


def request(row: int = 0) -> CaptionRequest:
    return CaptionRequest(RequestId(row, 0), f"{row}.mp4", "?", seed=row)


def answer(text: str, row: int = 0) -> CaptionResult:
    return CaptionResult(RequestId(row, 0), (Candidate(text),))


def failed(kind: str, row: int = 0) -> CaptionResult:
    return CaptionResult(RequestId(row, 0), failure=Failure(kind, "no"))


@pytest.mark.parametrize("max_tries", [1, 2, 3, 5])
def test_a_request_is_asked_so_often_and_its_failure_says_how_often(max_tries: int) -> None:
    tries, one, seeds = Tries(replace(ACCEPTANCE, max_tries=max_tries)), request(), []
    taken: Any = one
    while isinstance(taken, CaptionRequest):
        seeds.append(taken.seed)
        taken = tries.accept(answer("", row=tries.hand_out(taken).id.row))
    assert len(seeds) == len(set(seeds)) == max_tries
    assert taken.request == one, "answers are kept under what was asked first"
    assert (taken.result.failure.kind, taken.result.failure.attempts) == ("empty_caption", max_tries)
    assert not tries.awaits


@pytest.mark.parametrize("kind", ["empty_caption", "no_answer", "not_finite", "rejected"])
def test_a_failure_that_another_seed_may_avoid_is_asked_again_whoever_found_it(kind: str) -> None:
    tries = Tries(ACCEPTANCE)
    tries.hand_out(request())
    again = tries.accept(failed(kind))
    assert isinstance(again, CaptionRequest)
    tries.hand_out(again)
    done = tries.accept(answer(" words "))
    assert isinstance(done, Final)
    assert [one.text for one in done.result.candidates] == [" words "]


@pytest.mark.parametrize("kind", ["timeout", "model_error", "server_error", "internal_error"])
def test_other_failures_are_final(kind: str) -> None:
    tries = Tries(ACCEPTANCE)
    tries.hand_out(request())
    done = tries.accept(failed(kind))
    assert isinstance(done, Final)
    assert (done.result.failure, done.result.failure and done.result.failure.attempts) == (Failure(kind, "no"), 1)


def test_any_failure_of_a_second_try_says_that_it_was_one() -> None:
    tries = Tries(ACCEPTANCE)
    tries.hand_out(request())
    again = tries.accept(answer(""))
    assert isinstance(again, CaptionRequest)
    tries.hand_out(again)
    done = tries.accept(failed("timeout"))
    assert isinstance(done, Final)
    assert done.result.failure is not None
    assert done.result.failure.attempts == 2


def test_what_nobody_waits_for_is_no_answer() -> None:
    tries = Tries(ACCEPTANCE)
    assert tries.accept(answer("early")) is None
    tries.hand_out(request())
    again = tries.accept(answer(""))
    assert tries.accept(answer("twice")) is None, "the second try has not been handed out"
    assert not tries.awaits
    assert isinstance(again, CaptionRequest)
    tries.hand_out(again)
    assert tries.awaits
    assert isinstance(tries.accept(answer("good")), Final)
    assert tries.accept(answer("late")) is None


def test_requests_that_a_captioner_leaves_are_lost() -> None:
    tries = Tries(ACCEPTANCE)
    for row in range(3):
        tries.hand_out(request(row))
    tries.accept(answer("there", row=1))
    assert [one.request_id.row for one in tries.lost()] == [0, 2]
    done = [tries.accept(one) for one in tries.lost()]
    assert [isinstance(one, Final) and one.result.failure and one.result.failure.kind for one in done] == [
        "model_error",
        "model_error",
    ]
    assert tries.lost() == []


class Clips:
    """Rows in order; notes that it was closed."""

    def __init__(self, count: int) -> None:
        self._rows = iter(range(count))
        self.ended = self.closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for row in self._rows:
            return request(row), None
        self.ended = True
        raise StopIteration

    def close(self) -> None:
        self.closed = True


class Captioner:
    """Takes so many clips."""

    policy = None

    def __init__(self, most: int) -> None:
        self._most = most

    def caption(self, clips: Any) -> Iterator[CaptionResult]:
        for taken, (one, _) in enumerate(clips):
            yield answer("a", row=one.id.row)
            if taken + 1 == self._most:
                return

    def close(self) -> None:
        pass


def test_a_stream_goes_through_a_captioner_to_its_end() -> None:
    clips, seen = Clips(3), list[CaptionResult]()
    caption(Captioner(9), clips, seen.append)
    assert [one.request_id.row for one in seen] == [0, 1, 2]
    assert clips.closed


def test_a_captioner_that_ends_early_is_an_error_and_the_stream_is_closed() -> None:
    clips = Clips(3)
    with pytest.raises(ModelError, match="stopped before consuming every request"):
        caption(Captioner(2), clips, lambda result: None)
    assert clips.closed
