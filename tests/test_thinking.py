"""Models that reason before they answer: what their templates show, budgets, and what becomes of the reasoning."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from transformers import AutoProcessor

import clips
from reelscribe.cli import main
from reelscribe.errors import SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import DEFAULT_THINKING_TOKENS, PromptOptions, ThinkingSettings, generation_config
from reelscribe.models.chat import BUNDLED_MODELS
from reelscribe.models.loading import load_processor
from reelscribe.models.scripted import ScriptedCaptioner
from reelscribe.models.thinking import thinking_of
from reelscribe.operator import VideoCaptioningFromVLMMapper
from reelscribe.types import CaptionRequest, Clip, RequestId
from thinkers import (
    ANSWER,
    CAPTION,
    END,
    GEMMA,
    GLM,
    HEAD,
    QWEN,
    REASONING,
    TEMPLATES,
    THOUGHT,
    chain,
    thinker,
)

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {
    "qwen3_vl_thinking": QWEN,
    "qwen3_5": QWEN,
    "glm4_5v": GLM,
    "glm4_1v_thinking": GLM,
    "kimi_k2_5": chain(["<think>"], THOUGHT, ["</think>"], ANSWER),
    "gemma4": GEMMA,
    "instruct": chain(["\n"], ANSWER),
}
"""Template to what its model writes."""
CUT = "".join(THOUGHT[:3])
"""The reasoning after three tokens."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a checkpoint by its template, made once; or one with words of its own."""
    made = {}

    def make(template, words=None, **settings):
        key = repr((template, words, settings))
        if key not in made:
            folder = tmp_path_factory.mktemp("thinker")
            made[key] = thinker(folder, template, words or WORDS[template], **settings)
        return made[key]

    return make


def clip(frames=4):
    pixels = np.full((frames, 96, 96, 3), 50, np.uint8)
    return Clip(
        pixels, np.arange(frames) / 2, duration_seconds=frames / 2, source_fps=2, source_height=96, source_width=96
    )


def asked(folder, *, candidates=1, rows=(0,), on=False, tokens=DEFAULT_THINKING_TOKENS, sampling=None, **options):
    """The candidates for some requests, one list each."""
    spec = ModelSpec(
        "hf",
        str(folder),
        options=options,
        generation=generation_config({"max_tokens": 40, **(sampling or {})}),
        thinking=ThinkingSettings(on, tokens),
    )
    captioner = load_captioner(spec)
    requests = [
        CaptionRequest(RequestId(row, 0), "v", "What?" + row * " And?", num_candidates=candidates, seed=row)
        for row in rows
    ]
    try:
        results = {one.request_id.row: one for one in captioner.caption([(one, clip()) for one in requests])}
    finally:
        captioner.close()
    assert not any(one.failure for one in results.values()), results
    return [list(results[row].candidates) for row in rows]


def told(candidates):
    return [(one.text, one.reasoning) for one in candidates]


# what templates show


@pytest.mark.parametrize(
    ("template", "off", "on", "opens"),
    [
        ("qwen3_vl_thinking", {}, {}, (True, True)),
        ("qwen3_5", {"enable_thinking": False}, {}, (False, True)),
        ("glm4_5v", {"enable_thinking": False}, {}, (False, False)),
        ("glm4_1v_thinking", {}, {}, (False, False)),
        ("kimi_k2_5", {"thinking": False}, {}, (False, True)),
        ("gemma4", {}, {"enable_thinking": True}, (False, False)),
        (
            HEAD + END + "{{- '<|im_start|>assistant\\n' }}{%- if reasoning_effort|default('high') == 'none' %}"
            "{{- '<think></think>' }}{%- elif reasoning_effort == 'low' %}{{- 'Quick.' }}{%- endif %}{%- endif %}",
            {"reasoning_effort": "none"}, {}, (False, False),
        ),
        (
            "{%- if not no_thinking %}{%- set shows = true %}{%- endif %}" + HEAD + END + "{{- '<|im_start|>' }}"
            "{%- if shows %}{{- '<think>' }}{%- endif %}{%- endif %}",
            {"no_thinking": True}, {}, (False, True),
        ),
        (
            "{%- if thinking_budget is defined and thinking_budget == 0 %}{{- 'x' }}{%- endif %}" + HEAD + END
            + "{{- '<seed:think>' }}{%- endif %}",
            {}, {}, (True, True),
        ),
        (
            "{%- if mode is defined %}{{- raise_exception('no') }}{%- endif %}{%- set on = enable_thinking is not "
            "defined or enable_thinking %}" + HEAD + "{% generation %}{% endgeneration %}" + END
            + "{{- '[THINK]' if on else '[THINK][/THINK]' }}{%- endif %}",
            {"enable_thinking": False}, {}, (False, True),
        ),
    ],
)  # fmt: skip
def test_the_switch_is_found_in_the_template(template, off, on, opens):
    processor = processor_with(template)
    for is_on, variables, opened in zip((False, True), (off, on), opens, strict=True):
        found = thinking_of(processor, PromptOptions(), ThinkingSettings(is_on))
        assert (found.variables, found.opens) == (variables, opened)
        assert found.options(PromptOptions()).chat_template_kwargs == variables


def processor_with(template):
    processor = AutoProcessor.from_pretrained(BUNDLED_MODELS["reelscribe/shapes"])
    processor.chat_template = TEMPLATES.get(template, template)
    return processor


def test_what_the_user_gives_to_the_template_counts_before():
    options = PromptOptions(chat_template_kwargs={"enable_thinking": True, "other": 1})
    found = thinking_of(processor_with("qwen3_5"), options, ThinkingSettings())
    assert (found.variables, found.opens) == ({}, True)
    assert found.options(options) is options


def test_a_model_without_reasoning_is_rendered_as_before_and_refuses_to_be_asked_for_it():
    processor = load_processor(str(BUNDLED_MODELS["reelscribe/shapes"]), {})
    processor.apply_chat_template = None  # nothing is rendered for it
    found = thinking_of(processor, PromptOptions(), ThinkingSettings())
    assert (found.marks, found.variables, found.opens, found.note) == (None, {}, False, None)
    with pytest.raises(SettingsError, match=r"thinking is on, but the chat template of m does not support reasoning"):
        thinking_of(processor, PromptOptions(), ThinkingSettings(on=True), model="m")


# captions


@pytest.mark.parametrize(
    ("template", "off", "on"),
    [
        ("qwen3_vl_thinking", REASONING, REASONING),
        ("qwen3_5", None, REASONING),
        ("glm4_5v", None, REASONING),
        ("glm4_1v_thinking", REASONING, REASONING),
        ("kimi_k2_5", None, REASONING),
    ],
)
def test_the_caption_is_what_follows_the_reasoning(model, template, off, on):
    folder = model(template)
    assert told(asked(folder)[0]) == [(CAPTION, off)]
    assert told(asked(folder, on=True)[0]) == [(CAPTION, on)]
    assert told(asked(folder, on=True, tokens=3)[0]) == [(CAPTION, CUT)]


def test_marks_that_are_special_tokens_are_seen(model):
    assert told(asked(model("gemma4"), on=True)[0]) == [(CAPTION, REASONING)]
    assert told(asked(model("gemma4"), on=True, tokens=3)[0]) == [(CAPTION, CUT)]


def test_marks_that_take_several_tokens_are_seen(model):
    words = chain(["\n"], THOUGHT, ["</", "think", ">\n\n"], ANSWER)
    folder = model("qwen3_vl_thinking", words, marks=())
    assert told(asked(folder)[0]) == [(CAPTION, REASONING)]
    forced = {**words, **chain(["\n"], THOUGHT[:3]), ">": ANSWER[0], THOUGHT[2]: THOUGHT[2]}
    folder = model("qwen3_vl_thinking", forced, marks=())
    assert told(asked(folder, tokens=3)[0]) == [(CAPTION, CUT)]


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_each_text_has_its_own_reasoning_and_budget_in_a_batch(model, monkeypatch, on_accelerator):
    if on_accelerator:
        monkeypatch.setattr("reelscribe.models.hf.generate.STEPS_BETWEEN_CHECKS", {})
    words = {**QWEN, "\n": [THOUGHT[0], THOUGHT[4]], THOUGHT[5]: [THOUGHT[6], THOUGHT[1]], ANSWER[1]: ANSWER[1:3]}
    folder = model("qwen3_vl_thinking", words)
    together = asked(folder, candidates=4, rows=range(5), tokens=9)
    alone = [asked(folder, candidates=4, rows=(row,), tokens=9, max_batch_size=1)[0] for row in range(5)]
    assert [told(one) for one in together] == [told(one) for one in alone]
    found = {one.reasoning for row in together for one in row}
    assert len(found) > 2
    for one in (one for row in together for one in row):
        assert one.reasoning_tokens <= 9 + 1  # and the mark
        assert one.reasoning_tokens == 10 or one.reasoning.endswith(THOUGHT[-1])
        assert one.text.startswith("A red")
        assert one.text.endswith(" by now")


def test_the_limit_the_stops_and_the_probability_are_those_of_the_answer(model):
    off = asked(model("qwen3_5"), sampling={"max_tokens": 3})[0][0]
    on = asked(model("qwen3_vl_thinking"), sampling={"max_tokens": 3, "stop": [" the"]})[0][0]
    assert (off.text, off.finish_reason, off.tokens) == (CAPTION[:9], "length", 3)
    assert (on.text, on.finish_reason, on.tokens) == ("A red", "length", 3)  # what follows the mark counts
    assert on.reasoning == REASONING  # the stop string stands in it
    assert on.reasoning_tokens == len(THOUGHT) + 1
    stopped = asked(model("qwen3_vl_thinking"), sampling={"stop": [" drives"]})[0][0]
    assert (stopped.text, stopped.finish_reason) == ("A red car", "stop")
    even = {**QWEN, "\n": [THOUGHT[0], THOUGHT[1]]}  # two tokens are as likely in the reasoning, none in the answer
    one = asked(model("qwen3_vl_thinking", even), sampling={"temperature": 0.0})[0][0]
    assert one.mean_logprob == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8])
def test_a_budget_is_spent_to_the_token(model, tokens):
    endless = {**QWEN, THOUGHT[-1]: THOUGHT[0]}
    one = asked(model("qwen3_vl_thinking", endless), tokens=tokens)[0][0]
    assert (one.text, one.reasoning_tokens) == (CAPTION, tokens + 1)
    assert one.reasoning == "".join((THOUGHT * 2)[:tokens])


# failures


NO_ANSWERS = {
    "ends in its reasoning": chain(["\n"], THOUGHT),
    "ends behind its reasoning": {**chain(["\n"], THOUGHT, ["</think>"])},
}


def operator(folder, **settings):
    params = {"keep_original_sample": True, "failure_key": "failure", "caption_key": "captions", **settings}
    params.setdefault("sampling_params", {"max_tokens": 40})
    return VideoCaptioningFromVLMMapper(str(folder), **params)


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return str(clips.render_video(tmp_path_factory.mktemp("movies") / "a.mp4"))


@pytest.mark.parametrize("words", NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize("keep", ["random_any", "all"])
def test_no_answer_is_a_failure_of_its_own_kind(model, movie, words, keep):
    op = operator(model("qwen3_vl_thinking", words), caption_num=2, keep_candidate_mode=keep)
    out = op.process_batched({"videos": [[movie]], "text": ["<__dj__video>"]})
    op.close()
    assert out["captions"] == [None]
    assert out["failure"][0]["kind"] == "no_answer"
    assert "--thinking-tokens" in out["failure"][0]["message"]
    assert op.failures[0][2].attempts == 2


def test_an_answer_is_kept_where_another_candidate_has_none(model, movie):
    words = {**QWEN, THOUGHT[0]: [THOUGHT[1], "<|im_end|>"]}
    op = operator(model("qwen3_vl_thinking", words), caption_num=8, reasoning_key="why", keep_original_sample=False)
    out = op.process_batched({"videos": [[movie]], "text": ["<__dj__video>"]})
    op.close()
    assert (out["captions"], out["why"]) == ([[CAPTION]], [[REASONING]])


# the reasoning in the output


def double(request, index):
    return f"<think>Thought {index}.</think>Caption {'AB'[index % 2]} of the red car."


def test_reasoning_goes_to_its_field_and_selection_sees_captions_alone():
    rows = {
        "videos": [["a.mp4", "b.mp4"]],
        "text": ["<__dj__video> caption b of the red car. <|__dj__eoc|><__dj__video>"],
    }
    op = VideoCaptioningFromVLMMapper(
        captioner=ScriptedCaptioner(double), caption_num=4, keep_candidate_mode="similar_one_simhash",
        reasoning_key="why", keep_original_sample=True,
    )  # fmt: skip
    out = op.process_batched(rows)
    assert out["why"][0] is None
    assert out["why"][1][0] == "Thought 1."
    assert "think" not in out["text"][1].lower().replace("thought", "")
    assert "Caption B of the red car." in out["text"][1]


def test_candidates_of_one_text_keep_their_own_reasoning():
    op = VideoCaptioningFromVLMMapper(
        captioner=ScriptedCaptioner(lambda request, i: f"<think>{i}</think>Same." if i else "Same."), caption_num=3,
        keep_candidate_mode="all", reasoning_key="why", keep_original_sample=False,
    )  # fmt: skip
    out = op.process_batched({"videos": [["a.mp4"]], "text": [""]})
    assert out["why"] == [[None], ["1"], ["2"]]


def test_a_captioner_of_the_users_own_leaks_no_reasoning_either():
    class Own(ScriptedCaptioner):
        def _answer(self, request):
            from reelscribe.types import Candidate, CaptionResult

            return CaptionResult(request.id, (Candidate("Hm.</think>A cat."),))

    op = VideoCaptioningFromVLMMapper(captioner=Own(double), caption_key="captions", keep_original_sample=False)
    assert op.process_batched({"videos": [["a.mp4"]], "text": [""]})["captions"] == [["A cat."]]


def test_a_living_captioner_cannot_be_asked_to_think():
    with pytest.raises(SettingsError, match=r"omit thinking \(--thinking\)"):
        VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(double), thinking="on")


# the command


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        clips.render_video(tmp_path / "in" / f"{name}.mp4")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_keeps_reasoning_in_a_field(model, folder):
    out = folder / "out.jsonl"
    said = run("caption", folder / "in", "-o", out, "--model", model("qwen3_vl_thinking"), "--reasoning-key", "why",
               "--candidates", 2, "--keep", "all", "--thinking-tokens", 3, "--temperature", 0)  # fmt: skip
    assert [(row["captions"], row["why"]) for row in lines(out)] == [([CAPTION] * 2, [CUT] * 2)] * 2
    assert "the model reasons first, in at most 3 tokens" in said


def test_every_format_has_the_field(model, folder):
    base = ["caption", folder / "in", "--model", model("qwen3_vl_thinking"), "--reasoning-key", "why"]
    run(*base, "-o", folder / "out.parquet")
    table = pq.read_table(folder / "out.parquet")
    assert table["why"].to_pylist() == [[REASONING]] * 2
    assert str(table.schema.field("why").type) in ("list<element: string>", "list<item: string>")
    run(*base, "-o", folder / "out.csv")
    assert REASONING in (folder / "out.csv").read_text()
    run(*base, "-o", folder / "table", "--format", "videofolder", "--with-videos")
    assert (folder / "table" / "a.txt").read_text().strip() == CAPTION
    assert [row["why"] for row in lines(folder / "table" / "metadata.jsonl")] == [[REASONING]] * 2


def test_a_run_with_reasoning_resumes_and_gets_its_field_later_without_the_model(model, folder):
    out = folder / "out.jsonl"
    base = ["caption", folder / "in", "-o", out, "--model", model("qwen3_vl_thinking")]
    run(*base)
    assert all(row.keys() == {"video", "captions"} for row in lines(out))
    run(*base, "--thinking", "off", "--thinking-tokens", DEFAULT_THINKING_TOKENS)  # the same run
    said = run(*base, "--reasoning-key", "why", "--update")
    assert "2 of these videos were done before" in said
    assert [row["why"] for row in lines(out)] == [[REASONING]] * 2


def test_other_budgets_are_another_run(model, folder):
    base = ["caption", folder / "in", "-o", folder / "out.jsonl", "--model", model("qwen3_5")]
    run(*base)
    said = run(*base, "--thinking", "on", code=1)
    assert 'thinking was null and is now "on"' in said
    run(*base, "--thinking", "on", "--reasoning-key", "why", "--update")
    assert [row["why"] for row in lines(folder / "out.jsonl")] == [[REASONING]] * 2


def test_thinking_is_refused_in_one_line_where_the_model_has_none(folder):
    said = run("caption", folder / "in", "-o", folder / "o.jsonl", "--model", "reelscribe/shapes", "--thinking", "on",
               code=1)  # fmt: skip
    assert said.strip().splitlines()[-1].startswith("error: thinking is on, but the chat template of reelscribe/shapes")


def test_a_field_of_the_rows_own_is_not_replaced(folder):
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"video": str(folder / "in" / "a.mp4"), "why": "because"}) + "\n")
    said = run("caption", rows, "-o", folder / "o.jsonl", "--model", "reelscribe/shapes", "--reasoning-key", "video",
               code=1)  # fmt: skip
    assert "would overwrite the field 'video'" in said
    shutil.rmtree(folder / "in")
