"""One stream that many ask through: nobody waits for another's answers, and an end of the model is everybody's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.errors import ModelError
from reelscribe.runners.ray.shared_stream import SharedStream, Turns
from reelscribe.runners.ray.suspects import Suspects
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, RequestId

ACCEPTANCE = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda request, i: "")).planner.acceptance


def asked(*rows: int) -> list[tuple[CaptionRequest, Callable[[], None]]]:
    return [(CaptionRequest(RequestId(row, 0), f"{row}.mp4", "?", seed=row), lambda: None) for row in rows]


def answer(request: CaptionRequest, text: str) -> CaptionResult:
    return CaptionResult(request.id, (Candidate(text),))


class Captioner:
    """Answers with a function of the stream."""

    policy = None

    def __init__(self, caption: Callable[[Iterator[Any]], Iterator[CaptionResult]]) -> None:
        self._caption = caption

    def caption(self, clips: Iterable[Any]) -> Iterator[CaptionResult]:
        return self._caption(iter(clips))

    def close(self) -> None:
        pass


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return or raise, made at the same time."""
    made: list[Any] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            made[i] = calls[i]()
        except Exception as exc:
            made[i] = exc

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return made


def test_askers_share_one_stream_and_get_their_own_answers_in_order() -> None:
    streams = []

    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        streams.append(clips)
        for request, _ in clips:
            yield answer(request, f"{request.id.row}")

    stream = SharedStream(Captioner(caption), ACCEPTANCE)
    made = in_threads(*(lambda i=i: stream.ask(asked(i, i + 10, i + 20)) for i in range(5)))
    texts = [[one.candidates[0].text for one in results] for results in made]
    assert texts == [[f"{i}", f"{i + 10}", f"{i + 20}"] for i in range(5)]
    assert len(streams) == 1
    stream.close()


def test_an_asker_does_not_wait_for_another() -> None:
    """The captioner holds the first request until the second has been answered."""

    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        (first, _), (second, _) = next(clips), next(clips)
        yield answer(second, "second")
        done.wait(10)
        yield answer(first, "first")
        for request, _ in clips:
            yield answer(request, "more")

    done = threading.Event()
    stream = SharedStream(Captioner(caption), ACCEPTANCE)
    slow = threading.Thread(target=lambda: stream.ask(asked(1)))
    slow.start()
    (result,) = stream.ask(asked(2))
    assert result.candidates[0].text in ("first", "second")
    done.set()
    slow.join(10)
    stream.close()


def test_an_answer_of_no_use_is_asked_for_once_more_with_another_seed() -> None:
    seeds: list[int] = []

    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        for request, _ in clips:
            seeds.append(request.seed)
            yield answer(request, "" if request.id.row == 1 or len(seeds) < 2 else "words")

    stream = SharedStream(Captioner(caption), ACCEPTANCE)
    (good,), (bad,) = stream.ask(asked(0)), stream.ask(asked(1))
    assert good.candidates[0].text == "words"
    assert bad.failure is not None
    assert bad.failure.kind == "empty_caption"
    assert seeds == [0, ACCEPTANCE.next_try(asked(0)[0][0]).seed, 1, ACCEPTANCE.next_try(asked(1)[0][0]).seed]
    stream.close()


def test_a_captioner_that_holds_answers_back_gets_its_end() -> None:
    """It answers when it has eight requests, or when there are no more."""

    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        for request, _ in list(clips):
            yield answer(request, "late")

    stream = SharedStream(Captioner(caption), ACCEPTANCE, stall_seconds=0.1)
    assert [one.candidates[0].text for one in stream.ask(asked(1, 2))] == ["late", "late"]
    assert [one.candidates[0].text for one in stream.ask(asked(3))] == ["late"]
    stream.close()


def test_what_is_not_answered_when_a_stream_ends_is_a_failure() -> None:
    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        for request, _ in list(clips)[1:]:
            yield answer(request, "there")

    stream = SharedStream(Captioner(caption), ACCEPTANCE, stall_seconds=0.1)
    lost, found = stream.ask(asked(1, 2))
    assert lost.failure is not None
    assert lost.failure.kind == "model_error"
    assert found.candidates
    stream.close()


def test_an_error_is_raised_by_everybody_who_asks_now_or_later() -> None:
    def caption(clips: Iterator[Any]) -> Iterator[CaptionResult]:
        next(clips)
        next(clips)
        raise ModelError("no memory")
        yield

    stream = SharedStream(Captioner(caption), ACCEPTANCE)
    made = in_threads(lambda: stream.ask(asked(1)), lambda: stream.ask(asked(2)))
    assert [str(one) for one in made] == ["no memory", "no memory"]
    with pytest.raises(ModelError, match="no memory"):
        stream.ask(asked(3))


def test_a_captioner_that_ends_by_itself_is_an_error() -> None:
    stream = SharedStream(Captioner(lambda clips: iter(())), ACCEPTANCE)
    with pytest.raises(ModelError, match="stopped before"):
        stream.ask(asked(1))


def test_who_is_alone_is_alone_and_goes_before_those_who_share() -> None:
    turns, log = Turns(), list[str]()
    inside, go = threading.Event(), threading.Event()

    def share(name: str) -> None:
        with turns.shared():
            log.append(name)

    def alone() -> None:
        with turns.alone():
            log.append("alone")
            inside.set()
            go.wait(10)
            log.append("done")

    with turns.shared():
        share("beside")
        first = threading.Thread(target=alone)
        first.start()
        time.sleep(0.1)
        later = threading.Thread(target=share, args=("later",))
        later.start()
        time.sleep(0.1)
        assert log == ["beside"]
    assert inside.wait(10)
    time.sleep(0.1)
    assert log == ["beside", "alone"]
    go.set()
    first.join(10)
    later.join(10)
    assert log == ["beside", "alone", "done", "later"]


def test_videos_of_a_holder_that_died_are_suspects_until_they_have_an_answer() -> None:
    suspects = Suspects()
    assert suspects.begin("first", ["a", "b", "c"]) == {}
    suspects.end(["c"])
    assert suspects.begin("second", ["a", "b", "c", "d"]) == {"a": 0, "b": 0}
    suspects.end(["c", "d"])
    suspects.try_alone("a")
    assert suspects.begin("third", ["a", "b"]) == {"a": 1, "b": 0}
    suspects.end(["a", "b"])
    assert suspects.begin("fourth", ["a", "b"]) == {}
