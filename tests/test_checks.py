"""Checks of candidates: what each finds, what follows from it, and how packages bring more of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clips
from packages import forget, on_path, write_package
from reelscribe import ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.answering.acceptance import Acceptance
from reelscribe.answering.checks import CHECKS, RETRIED_KINDS, AskAgain, Mark
from reelscribe.rows.tokens import ordinary_text
from reelscribe.runners.run.run import caption_file
from reelscribe.types import FAILURE_KINDS, Candidate, CaptionRequest, CaptionResult, RequestId, Usage
from rows import jsonl, load

REQUEST = CaptionRequest(RequestId(0, 0), "a.mp4", "?", seed=3)
CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


def answer(*candidates: Candidate | str) -> CaptionResult:
    made = tuple(one if isinstance(one, Candidate) else Candidate(one) for one in candidates)
    return CaptionResult(REQUEST.id, made, usage=Usage(7, 9))


def acceptance(*, needs_all: bool = False, **checks: Any) -> Acceptance:
    made = Acceptance(ordinary_text, [""] if needs_all else [])
    return replace(made, checks={**made.checks, **checks}) if checks else made


def loops(candidate: Candidate, _request: CaptionRequest) -> AskAgain | Mark | None:
    words = candidate.text.split()
    if len(words) > 1 and len(set(words)) == 1:
        return AskAgain("the caption repeats one word", advice="--repetition-penalty helps")
    return Mark("short") if len(words) == 1 else None


def leaks(candidate: Candidate, _request: CaptionRequest) -> AskAgain | None:
    return AskAgain("the prompt leaked", spoils_all=True) if candidate.text == "leaked" else None


@pytest.mark.parametrize(
    ("candidates", "needs_all", "kind", "message"),
    [
        (["a"], False, None, None),
        (["", "a"], False, None, None),
        ([""], False, "empty_caption", "the model gave no text for candidate 0 of 1"),
        (["", "<__dj__video> "], False, "empty_caption", "the model gave no text for candidate 0, 1 of 2"),
        (["a", "", "b"], True, "empty_caption", "the model gave no text for candidate 1 of 3"),
        (
            ["", Candidate("", reasoning="hm")],
            False,
            "no_answer",
            ("the model reasoned, but gave no answer for candidate 0, 1 of 2; --thinking-tokens (thinking_tokens) and "
            "--max-tokens (max_tokens) are its budgets"),
        ),
        (
            ["", Candidate("a", mean_logprob=float("nan")), "b"],
            False,
            "not_finite",
            "the model computed numbers that are not finite for this video",
        ),
        (["a", "go go go"], False, None, None),
        (
            ["go go", "go go go"],
            False,
            "rejected",
            "the caption repeats one word for candidate 0, 1 of 2 (check 'loops'); --repetition-penalty helps",
        ),
        (["", "a b", "leaked"], False, "rejected", "the prompt leaked for this video (check 'leaks')"),
        (["", "go go go"], False, "empty_caption", "the model gave no text for candidate 0 of 2"),
        (["a", "go go"], True, "rejected", ("the caption repeats one word for candidate 1 of 2 (check 'loops'); "
         "--repetition-penalty helps")),
    ],
)  # fmt: skip
def test_what_makes_another_try_worth_making(
    candidates: list[Any], needs_all: bool, kind: str | None, message: str | None
) -> None:
    judge = acceptance(needs_all=needs_all, loops=loops, leaks=leaks)
    result, lack = judge.checked(REQUEST, answer(*candidates))
    assert (lack and (lack.kind, lack.message)) == (kind and (kind, message))
    assert result.usage == Usage(7, 9)
    if needs_all and kind:
        assert result.candidates, "what is of use is kept where a later try may give no more"
    elif kind:
        assert result.failure == lack
    assert judge.lack(REQUEST, result) == lack


def test_a_candidate_that_a_check_refuses_is_never_kept() -> None:
    verdicts = acceptance(loops=loops).verdicts(REQUEST, [Candidate("go go"), Candidate("<__dj__video> a cat ")])
    assert [(one.candidate.text, one.check) for one in verdicts] == [("", "loops"), ("a cat", "")]


def test_marks_are_remarks_and_keep_a_candidate() -> None:
    result, lack = acceptance(loops=loops).checked(REQUEST, answer("cat", "a cat"))
    assert lack is None
    assert [one.candidate.marks for one in acceptance(loops=loops).verdicts(REQUEST, result.candidates)] == [
        ("short",),
        (),
    ]


def test_an_error_of_a_check_is_the_rows() -> None:
    def broken(candidate: Candidate, request: CaptionRequest) -> None:
        raise ZeroDivisionError("no")

    result, lack = acceptance(broken=broken).checked(REQUEST, answer("a"))
    assert result.failure is not None
    assert (result.failure.kind, lack) == ("internal_error", None)


def test_another_try_is_another_seed_each_time() -> None:
    judge = acceptance()
    seeds = [judge.next_try(REQUEST, tries=tries).seed for tries in (1, 2, 3)]
    assert len({REQUEST.seed, *seeds}) == 4
    assert judge.next_try(judge.next_try(REQUEST)) == judge.next_try(REQUEST, tries=2)


def test_kinds_of_findings_are_kinds_of_failures() -> None:
    assert set(FAILURE_KINDS) >= RETRIED_KINDS
    with pytest.raises(ValueError, match=r"'timeout'; choose from no_answer, empty_caption, not_finite, rejected"):
        AskAgain("it took long", kind="timeout")


# what CONTRIBUTING.md says of packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs the package that CONTRIBUTING.md shows, or one with another source."""
    text = CONTRIBUTING.read_text("utf-8").partition("## How to add a check")[2].partition("\n## ")[0]
    toml, python = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("toml", "python"))
    ((name, place),) = re.findall(r'^(\w+) = "(.+)"$', toml, re.MULTILINE)

    def install(source: str = python) -> Path:
        site = write_package(
            tmp_path / "site",
            "my-checks",
            modules={place.partition(":")[0]: source},
            points={"reelscribe.checks": {name: place}},
        )
        on_path(monkeypatch, site)
        return site

    yield install
    CHECKS._loaded.clear()
    forget()


def scripted(words: Callable[[CaptionRequest, int], str], **given: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words), **given)


def test_the_check_of_a_package_lets_a_video_be_asked_about_again(installed) -> None:
    installed()
    seen: dict[str, list[int]] = {}

    def words(request: CaptionRequest, i: int) -> str:
        seen.setdefault(request.video, []).append(request.seed)
        return "a red car" if request.video == "good" or len(seen[request.video]) > (1 if i else 3) else "car"

    operator = scripted(words, caption_key="said", failure_key="why", keep_original_sample=False, caption_num=2)
    assert list(operator.planner.acceptance.checks) == ["not_finite", "empty", "short"]
    made = operator.run([{"text": "", "videos": [name]} for name in ("good", "late")])
    assert [row["said"] for row in made] == [["a red car"]] * 2
    assert [len(set(seeds)) for seeds in seen.values()] == [1, 1], "one candidate of use is enough"


def test_a_video_whose_captions_a_package_refuses_fails_with_its_sentence(installed, tmp_path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "bad.mp4"}, {"video": "good.mp4"}])

    def words(request: CaptionRequest, _i: int) -> str:
        return "a red car" if "good" in request.video else "car"

    caption_file(scripted(words), source, tmp_path / "before.jsonl")
    assert [row["captions"] for row in load(tmp_path / "before.jsonl")] == [["car"], ["a red car"]]
    installed()
    caption_file(scripted(words), source, tmp_path / "out.jsonl")
    assert [row["captions"] for row in load(tmp_path / "out.jsonl")] == [None, ["a red car"]]
    (failure,) = load(tmp_path / "out.jsonl.failures.jsonl")
    assert (failure["kind"], failure["attempts"]) == ("rejected", 2)
    assert failure["message"] == "the caption has fewer than three words for candidate 0 of 1 (check 'short')"


def test_checks_of_packages_are_part_of_what_makes_runs_the_same(installed, tmp_path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "b.mp4"}])
    asked: list[str] = []

    def words(request: CaptionRequest, _i: int) -> str:
        asked.append(Path(request.video).stem)
        return "car" if "a.mp4" in request.video else "a red car"

    caption_file(scripted(words), source, tmp_path / "out.jsonl")
    installed()
    with pytest.raises(SettingsError, match=r'checks was null and is now \["short"\]'):
        caption_file(scripted(words), source, tmp_path / "out.jsonl")
    asked.clear()
    caption_file(scripted(words), source, tmp_path / "out.jsonl", update=True)
    assert asked == ["a", "a"], "what passes the new check is kept"
    assert [row["captions"] for row in load(tmp_path / "out.jsonl")] == [None, ["a red car"]]


def test_a_check_that_cannot_be_loaded_ends_a_run_before_its_model(installed, tmp_path) -> None:
    installed("import no_such_module")
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    with pytest.raises(SettingsError, match=r"the check 'short' of my-checks \(my_checks:short\) cannot be loaded"):
        caption_file(scripted(lambda request, i: pytest.fail("asked")), source, tmp_path / "out.jsonl")


def test_the_command_takes_checks_of_packages(installed, tmp_path) -> None:
    site = installed()
    clips.render_video(tmp_path / "clip.mp4", count=12)
    done = subprocess.run(
        [sys.executable, "-m", "reelscribe", "caption", str(tmp_path / "clip.mp4"), "--model", "reelscribe/shapes",
         "-o", str(tmp_path / "out.jsonl"), "--max-tokens", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    (failure,) = (json.loads(line) for line in (tmp_path / "out.jsonl.failures.jsonl").read_text("utf-8").splitlines())
    assert failure["kind"] == "rejected"
