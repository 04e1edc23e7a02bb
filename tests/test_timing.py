"""Clocks of stages, and the line that names the one that binds a run."""

from __future__ import annotations

from reelscribe.timing import ADVICE, BusyClock, Stage, StageTimes


def test_a_clock_adds_up_the_time_in_which_anybody_holds_it() -> None:
    now = 0.0
    clock = BusyClock(lambda: now)
    with clock:
        now = 2.0
        with clock:
            now = 3.0
        assert clock.seconds == 3.0, "the span that goes on counts"
        now = 4.0
    now = 10.0
    assert clock.seconds == 4.0


def test_while_one_of_two_is_at_work_half_of_the_time_counts() -> None:
    now = 0.0
    clock = BusyClock(lambda: now, places=2)
    with clock:
        now = 2.0
        with clock:
            now = 3.0
        now = 4.0
        assert clock.seconds == 2.5, "the span that goes on counts"
    now = 10.0
    assert clock.seconds == 2.5
    with clock.held(2):
        now = 11.0
    assert clock.seconds == 3.5, "one that has both places counts whole"


def times(**busy: tuple[float, int]) -> StageTimes:
    return StageTimes(10.0, tuple(Stage(name, seconds, workers) for name, (seconds, workers) in busy.items()))


def test_the_line_names_the_stage_that_binds_the_others_and_what_would_help() -> None:
    line = times(rows=(0.1, 1), decode=(19.4, 2), model=(6.1, 1), write=(0.0, 1)).line()
    assert line == f"decode-bound: 2 workers at 97 %, model at 61 %: {ADVICE['decode']}"
    assert "--workers" in line


def test_a_run_that_no_stage_binds_says_so() -> None:
    assert times(decode=(3.0, 1), model=(5.0, 1)).line() == (
        "mostly model, no stage was busy all the time: model at 50 %, decode at 30 %"
    )
    assert StageTimes(0.0, ()).line() == "nothing to do"
    assert times(rows=(0.0, 1)).line() == "nothing to do"


def test_the_profile_is_plain() -> None:
    assert times(decode=(10.0, 2)).with_stage(Stage("write", 2.0), seconds=8.0).as_dict() == {
        "seconds": 8.0,
        "binding": "decode",
        "stages": {
            "decode": {"busy_seconds": 10.0, "workers": 2, "share": 0.625},
            "write": {"busy_seconds": 2.0, "workers": 1, "share": 0.25},
        },
    }


def test_advice_can_be_that_of_another_place() -> None:
    times = StageTimes(10.0, (Stage("decode", 1.0), Stage("model", 9.9)))
    told = times.with_advice("model", "more replicas").line()
    assert told.endswith(": more replicas")
    assert "faster device" in times.line()
