"""What is asked about a row, what is kept of the answers, and where captions go."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from reelscribe.pipeline import weight_of
from reelscribe.rows.asks import Ask
from reelscribe.rows.data_juicer_rows import DataJuicerRows
from reelscribe.rows.fields import FieldNames
from reelscribe.rows.one_video_rows import OneVideoRows
from reelscribe.rows.plan import Plan, Planner
from reelscribe.types import BadRow, Candidate, CaptionResult, Failure, RequestId, TimeWindow

NAMES = FieldNames(caption_key="made", failure_key="why", finish_reason_key="ended", reasoning_key="thought")
LISTED = DataJuicerRows(NAMES, "videos")
SINGLE = OneVideoRows(NAMES, "video")
TOKEN, END = "<__dj__video>", "<|__dj__eoc|>"


def planner(form: Any, *asks: Ask) -> Planner:
    return Planner(form=form, asks=asks or (Ask(prompt="What?"),), seed=3)


def answers(plan: Plan, *texts: str) -> dict[RequestId, CaptionResult]:
    """The same candidates for every request, told apart by its key."""
    return {
        request.id: CaptionResult(
            request.id,
            tuple(
                Candidate(f"{text} {request.id.video}{request.id.ask}", "length", i, -0.5)
                for i, text in enumerate(texts)
            ),
        )
        for request in plan.requests
    }


def test_a_request_without_a_name_is_of_the_one_unnamed_ask() -> None:
    assert RequestId(3, 1) == RequestId(3, 1, "") == (3, 1, "")
    assert RequestId(3, 1, "dense") != RequestId(3, 1)


def test_requests_of_one_video_stand_next_to_each_other() -> None:
    short, dense = Ask("short", "In one sentence.", num_candidates=2), Ask("dense", "In detail.", "Be exact.")
    plan = planner(LISTED, short, dense).plan({"text": "", "videos": ["a.mp4", "b.mp4"]}, 7)
    assert [request.id for request in plan.requests] == [
        (7, 0, "short"), (7, 0, "dense"), (7, 1, "short"), (7, 1, "dense")
    ]  # fmt: skip
    assert [(one.prompt, one.system_prompt, one.num_candidates) for one in plan.requests[:2]] == [
        ("In one sentence.", None, 2), ("In detail.", "Be exact.", 1)
    ]  # fmt: skip
    assert len({request.seed for request in plan.requests}) == 4


def test_answers_are_found_by_their_keys_in_any_order() -> None:
    rules = planner(LISTED, Ask("short", "S", keep="all"), Ask("dense", "D", keep="random_any"))
    plan = rules.plan({"text": "", "videos": ["a.mp4", "b.mp4"]}, 0)
    found = answers(plan, "words", "more")
    backwards = dict(reversed(list(found.items())))
    outcome = rules.finish(plan, backwards, 0)
    assert outcome == rules.finish(plan, found, 0)
    assert [[one.text for one in kept] for kept in outcome.kept["short"]] == [
        ["words 0short", "words 1short"], ["more 0short", "more 1short"]
    ]  # fmt: skip
    ((first, second),) = outcome.kept["dense"]
    assert first.text.endswith(" 0dense")
    assert second.text.endswith(" 1dense")


def test_the_row_travels_with_its_plan_and_is_left_as_it_was() -> None:
    row = {"video": "a.mp4", "text": f"old {TOKEN} words", "deep": {"list": [1, 2]}, "long": "x" * 1000}
    before = pickle.dumps(row)
    rules = planner(SINGLE)
    plan = rules.plan(row, 0)
    outcome = rules.placed(rules.finish(plan, answers(plan, "new"), 0))
    assert plan.sample is row
    assert outcome.sample is row
    assert weight_of(plan.sample) == weight_of(row)
    assert outcome.samples == [{**row, "made": ["new 0"], "ended": ["length"], "thought": [None], "why": None}]
    assert pickle.dumps(row) == before


def test_data_juicers_rows_are_generated_behind_the_original() -> None:
    row = {"text": f"{TOKEN} old {END} no video {END} {TOKEN}{TOKEN} two", "videos": ["a", "b", "c"]}
    rules = planner(LISTED, Ask(prompt="What?", keep="all"))
    plan = rules.plan(row, 0)
    outcome = rules.placed(rules.finish(plan, answers(plan, "x", "y"), 0))
    assert [one["text"] for one in outcome.samples] == [
        row["text"],
        f"{TOKEN} x 0 {END}{TOKEN} x 1 {TOKEN} x 2 {END}",
        f"{TOKEN} y 0 {END}{TOKEN} y 1 {TOKEN} y 2 {END}",
    ]
    assert [one["made"] for one in outcome.samples] == [None, ["x 0", "x 1", "x 2"], ["y 0", "y 1", "y 2"]]
    assert [slot.original for slot in plan.slots] == ["old", "two", "two"]


def test_the_text_of_a_row_with_one_video_may_be_its_prompt() -> None:
    names = replace(NAMES, prompt_key="text")
    rules = planner(OneVideoRows(names, "video"))
    (request,) = rules.plan({"video": "a.mp4", "text": f" {TOKEN} Who? "}, 0).requests
    assert request.prompt == "Who?"


def test_seconds_in_a_row_with_one_video_may_be_text() -> None:
    rules = planner(SINGLE)
    row = {"video": "a.mp4", "start_seconds": "1.5", "end_seconds": ""}
    assert rules.plan({**row, "end_seconds": None}, 0).requests[0].window == TimeWindow(1.5, None)
    (video, failure) = rules.plan(row, 0).failure or (None, None)
    assert (video, failure and failure.kind) == (0, "bad_sample")


@pytest.mark.parametrize(
    ("form", "row", "video", "what"),
    [
        (LISTED, {"text": TOKEN * 3, "videos": ["a", "b"]}, 2, "3 video tokens but the sample has 2 videos"),
        (LISTED, {"text": "", "videos": ["a"], "made": ["mine"]}, 0, "'made', which this run would overwrite"),
        (LISTED, {"text": "", "videos": ["a"], "end_seconds": -1}, 0, "must be seconds"),
        (SINGLE, {"video": "a", "start_seconds": "soon"}, 0, "must be seconds"),
        (SINGLE, {"video": "a", "start_seconds": 3, "end_seconds": 1}, 0, "must not end before it starts"),
    ],
)
def test_a_row_that_does_not_fit_is_a_failure_of_its_own(form: Any, row: Any, video: int, what: str) -> None:
    rules = planner(form)
    plan = rules.plan(row, 0)
    assert plan.requests == ()
    assert plan.failure is not None
    assert (plan.failure[0], plan.failure[1].kind) == (video, "bad_sample")
    assert what in plan.failure[1].message
    outcome = rules.placed(rules.finish(plan, {}, 0))
    assert outcome.failures == [plan.failure]
    assert len(outcome.samples) == 1
    assert outcome.samples[0]["why"]["message"] == plan.failure[1].message


@pytest.mark.parametrize("form", [LISTED, SINGLE])
def test_a_row_that_cannot_be_read_passes_every_form(form: Any) -> None:
    row = BadRow({"id": 5}, failure=Failure("bad_sample", "no row"))
    rules = planner(form)
    outcome = rules.placed(rules.finish(rules.plan(row, 0), {}, 0))
    (made,) = outcome.samples
    assert isinstance(made, BadRow)
    assert made["id"] == 5
    assert made["why"]["message"] == "no row"


@pytest.mark.parametrize(
    ("form", "row"), [(LISTED, {"text": "t", "videos": []}), (SINGLE, {"video": None}), (SINGLE, {"video": ""})]
)
def test_a_row_without_videos_is_passed_on(form: Any, row: Any) -> None:
    rules = planner(form)
    plan = rules.plan(row, 0)
    assert (plan.requests, plan.failure) == ((), None)
    (made,) = rules.placed(rules.finish(plan, {}, 0)).samples
    assert {name: made[name] for name in row} == row
    dropped = planner(replace(form, names=replace(NAMES, keep_original=False)))
    assert dropped.placed(dropped.finish(dropped.plan(row, 0), {}, 0)).samples == []


@pytest.mark.parametrize("form", [LISTED, SINGLE])
def test_plans_and_rules_cross_processes(form: Any) -> None:
    rules = planner(form)
    row = {"text": "t", "videos": ["a"], "video": "a"}
    again = pickle.loads(pickle.dumps(rules))
    assert again == rules
    assert again.plan(row, 4) == pickle.loads(pickle.dumps(rules.plan(row, 4)))


def test_an_error_while_captions_are_placed_is_the_rows_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: Any) -> Any:
        raise ZeroDivisionError("nobody knows")

    rules = planner(LISTED)
    plan = rules.plan({"text": "", "videos": ["a"]}, 0)
    monkeypatch.setattr(DataJuicerRows, "_generated", broken)
    outcome = rules.placed(rules.finish(plan, answers(plan, "words"), 0))
    ((_, failure),) = outcome.failures
    assert (failure.kind, failure.message) == ("internal_error", "ZeroDivisionError: nobody knows")
    assert [one["why"]["kind"] for one in outcome.samples] == ["internal_error"]
