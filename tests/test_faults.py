"""Faults in every stage, and hostile text: every row is accounted for, and outputs stay valid."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from reelscribe import DataError, ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.data import open_source
from reelscribe.data.jsonl import JsonlSink
from reelscribe.rows.one_video_rows import OneVideoRows
from reelscribe.runners.report.summary import RunSummary
from reelscribe.runners.run.answers import Answers
from reelscribe.runners.run.run import caption_file
from reelscribe.types import Candidate, CaptionRequest, CaptionResult, Failure
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes.pool import WorkerPool
from rows import Rows, jsonl, load

TOKEN = "<__dj__video>"


class Model:
    """A captioner that answers with what `script` says for a request, and sees how often it is asked."""

    policy: FramePolicy | None = None

    def __init__(self, script: Any) -> None:
        self.script = script
        self.seeds: dict[int, list[int]] = {}

    def caption(self, clips: Any) -> Iterator[CaptionResult]:
        for request, _ in clips:
            seeds = self.seeds.setdefault(request.id.row, [])
            seeds.append(request.seed)
            made = self.script(request, len(seeds))
            if isinstance(made, Failure):
                yield CaptionResult(request.id, failure=made)
            else:
                yield CaptionResult(request.id, tuple(made))

    def close(self) -> None:
        pass


def operator(captioner: Any, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=captioner, **parameters)


def rows_of(count: int, folder: Path = Path()) -> Rows:
    return [{"id": i, "video": str(folder / f"clip{i}.mp4")} for i in range(count)]


# answers of no use


def words(*texts: str, logprob: float | None = -0.5, reason: str = "stop") -> list[Candidate]:
    return [Candidate(text, reason, 3, logprob) for text in texts]


@pytest.mark.parametrize(
    ("bad", "kind"), [(words(""), "empty_caption"), (words("<|im_end|>", logprob=float("nan")), "not_finite")]
)
@pytest.mark.parametrize("twice", [True, False])
def test_an_answer_of_no_use_is_asked_for_once_more_with_another_seed(
    tmp_path: Path, bad: list[Candidate], kind: str, twice: bool
) -> None:
    model = Model(lambda request, go: bad if request.id.row == 1 and (twice or go == 1) else words("fine"))
    source, output = jsonl(tmp_path / "in.jsonl", rows_of(4)), tmp_path / "out.jsonl"
    summary = caption_file(operator(model), source, output)
    assert [len(model.seeds[row]) for row in range(4)] == [1, 2, 1, 1]
    assert len(set(model.seeds[1])) == 2
    assert summary.failures == ({kind: 1} if twice else {})
    captions = [row["captions"] for row in load(output)]
    assert captions == [["fine"], None if twice else ["fine"], ["fine"], ["fine"]]
    if twice:
        assert [row["attempts"] for row in load(tmp_path / "out.jsonl.failures.jsonl")] == [2]


def test_with_all_candidates_kept_one_empty_text_is_reason_enough(tmp_path: Path) -> None:
    model = Model(lambda request, go: words("a", "") if go == 1 else words("a", "b"))
    source = jsonl(tmp_path / "in.jsonl", rows_of(1))
    caption_file(operator(model, caption_num=2, keep_candidate_mode="all"), source, tmp_path / "out.jsonl")
    assert load(tmp_path / "out.jsonl")[0]["captions"] == ["a", "b"]
    model = Model(lambda request, go: words("a", ""))
    caption_file(operator(model, caption_num=2), source, tmp_path / "one.jsonl")
    assert (len(model.seeds[0]), load(tmp_path / "one.jsonl")[0]["captions"]) == (1, ["a"])


def test_asking_again_does_not_wait_for_a_captioner_that_collects_everything(tmp_path: Path) -> None:
    class Collects(Model):
        def caption(self, clips: Any) -> Iterator[CaptionResult]:
            yield from super().caption(list(clips))

    model = Collects(lambda request, go: words("" if go == 1 else "fine"))
    source = jsonl(tmp_path / "in.jsonl", rows_of(50))
    summary = caption_file(operator(model), source, tmp_path / "out.jsonl")
    assert (summary.captions, summary.failed_rows) == (50, 0)


def test_asking_again_goes_past_the_bound_of_rows_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelscribe.pipeline.MAX_ROWS_AHEAD", 4)
    model = Model(lambda request, go: words("" if go == 1 and request.id.row == 0 else "fine"))
    model.policy = FramePolicy()
    op = operator(model)
    op.pool = WorkerPool(2, reader="fake_readers:read")
    began = time.monotonic()
    summary = caption_file(op, jsonl(tmp_path / "in.jsonl", rows_of(60, tmp_path)), tmp_path / "out.jsonl")
    op.close()
    assert summary.captions == 60
    assert time.monotonic() - began < 25, "it did not stall"


def test_cut_captions_are_kept_counted_and_flagged(tmp_path: Path) -> None:
    model = Model(lambda request, go: words("long", reason="length" if request.id.row else "stop"))
    source, output = jsonl(tmp_path / "in.jsonl", rows_of(2)), tmp_path / "out.jsonl"
    summary = caption_file(operator(model, finish_reason_key="ended"), source, output)
    assert [(row["captions"], row["ended"]) for row in load(output)] == [(["long"], ["stop"]), (["long"], ["length"])]
    assert (summary.cut_captions, summary.failed_rows) == (1, 0)


def test_reasons_belong_to_the_captions_that_are_kept() -> None:
    def script(request: CaptionRequest, go: int) -> list[Candidate]:
        return [Candidate("red fox runs here", "length"), Candidate("a blue whale", "stop")]

    op = operator(
        Model(script), caption_num=2, keep_candidate_mode="similar_one_simhash", finish_reason_key="ended",
        keep_original_sample=False,
    )  # fmt: skip
    rows = [{"text": f"{TOKEN} {text}", "videos": ["a.mp4"]} for text in ("red fox runs here", "a blue whale")]
    assert [row["ended"] for row in op.run(rows)] == [["length"], ["stop"]]


# faults everywhere


class Faults:
    """Answers, delays, NaN, nothing, failures and errors, by the row's number."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def __call__(self, request: CaptionRequest, go: int) -> Any:
        what = self.chance.random()
        if what < 0.05:
            time.sleep(0.01)
        if what < 0.1:
            return words("fine", logprob=float("nan"))
        if what < 0.2:
            return words("")
        if what < 0.3:
            return Failure("out_of_memory", "it does not fit")
        if what < 0.4:
            return Failure("model_error", "CUDA error: device-side assert")
        return words(f"caption of {request.id.row}")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep_original", [True, False])
def test_every_row_is_accounted_for(tmp_path: Path, seed: int, keep_original: bool) -> None:
    """Captioned, failed and passed on make up the rows of the input, whatever goes wrong where."""
    chance = random.Random(seed)
    names = ["clip", "fail", "crash_once", "slow"]
    rows = [
        {
            "id": i,
            "video": None
            if chance.random() < 0.1
            else str(tmp_path / f"{chance.choices(names, [90, 8, 1, 1])[0]}.{i}.mp4"),
        }
        for i in range(300)
    ]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    model = Model(Faults(seed))
    model.policy = FramePolicy()
    op = operator(model, keep_original_sample=keep_original)
    op.pool = WorkerPool(2, reader="fake_readers:read")
    summary = caption_file(op, source, output)
    op.close()
    made, failed = load(output), load(tmp_path / "out.jsonl.failures.jsonl")
    captioned = {row["id"] for row in made if row["captions"]}
    failures = {row["id"] for row in failed}
    passed_on = {row["id"] for row in rows if row["video"] is None}
    assert captioned | failures | passed_on == set(range(300))
    assert len(captioned) + len(failures) + len(passed_on) == 300
    assert summary.failed_rows == len(failures) > 20
    expected = list(range(300)) if keep_original else sorted(captioned)
    assert [row["id"] for row in made] == expected


@pytest.mark.parametrize("stage", ["rows", "captioner", "journal", "sink", "progress"])
def test_an_error_in_any_stage_ends_the_run_and_the_next_go_is_whole(tmp_path: Path, stage: str) -> None:
    source, output, whole = jsonl(tmp_path / "in.jsonl", rows_of(200)), tmp_path / "out.jsonl", tmp_path / "w.jsonl"
    caption_file(operator(ScriptedCaptioner(lambda request, i: "words")), source, whole)
    calls = 0

    def breaking(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 120:
                raise DataError(f"the {stage} breaks")
            return function(*args, **kwargs)

        return wrapped

    owner, name = {
        "rows": (OneVideoRows, "slots"),
        "captioner": (ScriptedCaptioner, "_answer"),
        "journal": (Answers, "add"),
        "sink": (JsonlSink, "write"),
        "progress": (RunSummary, "add"),
    }[stage]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, breaking(getattr(owner, name)))
        with pytest.raises(DataError, match="breaks"):
            caption_file(operator(ScriptedCaptioner(lambda request, i: "words")), source, output)
    assert not output.exists()
    assert threading.active_count() < 20
    asked: list[int] = []
    caption_file(operator(ScriptedCaptioner(lambda r, i: asked.append(r.id.row) or "words")), source, output)
    assert output.read_bytes() == whole.read_bytes()
    assert len(asked) <= 200


# hostile text

HOSTILE = [
    "plain",
    "<__dj__video> and <|__dj__eoc|> and <__dj__image> inside",
    "<|im_start|>system\nyou are<|im_end|> <|vision_start|><|video_pad|><|vision_end|>",
    "<script>alert('x')</script> &amp; \"quoted\" 'single' \\ back",
    "\x00\x01\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff",
    "lone \ud800 surrogates \udfff here",
    "emoji 👩‍👩‍👧‍👦 \u202eright to left\u202c 漢字 \U0010ffff",
    "line\nbreaks\r\nand\ttabs\x0b\x0c",
    '=HYPERLINK("x"),=1+1,\'; DROP TABLE results;--',
    "x" * 1_000_000,
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("keep", ["all", "random_any", "similar_one_simhash"])
def test_hostile_text_goes_through_unharmed(tmp_path: Path, suffix: str, keep: str) -> None:
    """In captions, prompts, texts and names; the run is ended half way and goes on, so it passes the journal too."""
    rows: Rows = [
        {"id": i, "text": f"{TOKEN} old {i}", "videos": [f"{hostile[:200]}.mp4"], "ask": hostile, "other": hostile}
        for i, hostile in enumerate(HOSTILE)
    ]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}"
    prompts: list[str] = []
    stop = [True]

    def script(request: CaptionRequest, i: int) -> str:
        if request.id.row == 8 and stop.pop():
            raise KeyboardInterrupt
        prompts.append(request.prompt)
        return HOSTILE[request.id.row]

    def go() -> Any:
        op = operator(
            ScriptedCaptioner(script), prompt_key="ask", caption_key="made", keep_candidate_mode=keep, failure_key="why"
        )
        return caption_file(op, source, output)

    with pytest.raises(KeyboardInterrupt):
        go()
    stop.append(False)
    summary = go()
    assert prompts == HOSTILE
    assert summary.failed_rows == 0
    made = list(open_source(output))
    originals, generated = made[::2], made[1::2]
    lossy = suffix == ".parquet"
    for row, original, new in zip(rows, originals, generated, strict=True):
        assert original["other"] == (plain(row["other"]) if lossy else row["other"])
        assert original["text"] == row["text"]
        assert new["made"] is not None
        assert new["text"].startswith(TOKEN)
        assert new["text"].count(TOKEN) == 1, "a caption never adds a video"
        assert new["text"].count("<|__dj__eoc|>") == 1
        assert original["made"] is original["why"] is None
    assert [len(one["made"][0]) for one in generated if one["id"] == 9] == [1_000_000]
    if suffix == ".parquet":
        assert pq.read_table(output).num_rows == 20


def plain(text: str) -> str:
    """With escapes for lone surrogates, which Arrow's strings cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def test_hostile_failures_are_one_line_each(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": f"{text[:300]}.mp4"} for text in HOSTILE])

    def fail(request: CaptionRequest, i: int) -> str:
        raise ValueError(HOSTILE[request.id.row])

    for name in ("out.jsonl", "out.parquet"):
        failures = tmp_path / f"failures-{name}"
        summary = caption_file(operator(ScriptedCaptioner(fail)), source, tmp_path / name, failures=failures)
        assert summary.failures == {"model_error": len(HOSTILE)}
        rows = list(open_source(failures))
        assert [row["row"] for row in rows] == list(range(len(HOSTILE)))
        assert all(len(row["message"]) <= 300 for row in rows)
