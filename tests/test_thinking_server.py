"""Servers whose models reason, against a small server on loopback: how the switch gets there, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest

import reelscribe.models.server.http_client as http_client
from chat_server import ChatServer, completion, error, running
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import ThinkingSettings, generation_config
from reelscribe.types import CaptionRequest, Clip, RequestId
from thinkers import QWEN, TEMPLATES, thinker

ANSWER = "A red car drives by."
SPLIT_IN_WORDS = ["Let", " me", "</think>", "\n\n", "A", " red", " car", " drives", " by", ".", "<|im_end|>"]


@pytest.fixture
def server():
    return ChatServer()


@pytest.fixture
def connect(server, monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.01)
    made = []
    with running(server) as url:

        def make(*, on=False, tokens=100, sampling=None, **options):
            spec = ModelSpec(
                "server",
                "served",
                {"base_url": url, **options},
                generation=generation_config({"max_tokens": 20, **(sampling or {})}),
                thinking=ThinkingSettings(on, tokens),
            )
            made.append(load_captioner(spec))
            return made[-1]

        yield make
        for captioner in made:
            captioner.close()


def answered(captioner, candidates=1):
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    clip = Clip(frames, np.arange(4) / 2, duration_seconds=2, source_fps=24, source_height=32, source_width=64)
    request = CaptionRequest(RequestId(0, 0), "v.mp4", "What?", num_candidates=candidates)
    (result,) = captioner.caption([(request, clip)])
    return result


def saying(server, message, *, finish="stop", words=None, prompt_tokens=None):
    """Let the server answer every request with this message, or what a function makes of the body."""

    def behave(body, nth):
        answer = completion(body)
        variables = body.get("chat_template_kwargs", {})
        for choice in answer["choices"]:
            found = message(body) if callable(message) else message
            choice["message"] = {"role": "assistant", **found}
            choice["finish_reason"] = finish(body) if callable(finish) else finish
            choice["logprobs"] = words and {"content": [{"token": word, "logprob": -0.5} for word in words]}
        if prompt_tokens is not None:
            answer["usage"]["prompt_tokens"] = prompt_tokens(variables)
        return 200, answer, {}

    server.behave = behave


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"reasoning_content": "Let me.", "content": ANSWER}, "Let me."),
        ({"reasoning": "Let me.", "content": f"\n\n{ANSWER}"}, "Let me."),
        ({"reasoning_content": None, "reasoning": "Let me.", "content": ANSWER}, "Let me."),
        ({"reasoning_content": "Let me.", "content": f"<answer>{ANSWER}</answer>"}, "Let me."),
        ({"content": f"<think>Let me.</think>{ANSWER}"}, "Let me."),
        ({"content": f"Let me.\n</think>\n\n{ANSWER}"}, "Let me."),
        ({"reasoning_content": "Let", "content": f"me.</think>{ANSWER}"}, "Let\n\nme."),
        ({"content": [{"type": "thinking", "thinking": "Let me."}, {"type": "text", "text": ANSWER}]}, "Let me."),
        ({"reasoning_content": 7, "content": ANSWER}, None),
        ({"content": ANSWER}, None),
    ],
)
def test_reasoning_is_parted_from_the_answer(connect, server, message, reasoning):
    captioner = connect()
    saying(server, message)
    (one,) = answered(captioner).candidates
    assert (one.text, one.reasoning) == (ANSWER, reasoning)


@pytest.mark.parametrize("message", [{"reasoning_content": "Let me", "content": None}, {"content": "<think>Let me"}])
def test_an_answer_without_room_is_asked_for_again_with_room_and_so_are_the_next(connect, server, message):
    captioner = connect(sampling={"stop": ["END"]})
    whole = {"reasoning_content": "Let me look.", "content": f"{ANSWER} END more"}

    def has_room(body):
        return body["max_tokens"] > 20

    saying(
        server, lambda body: whole if has_room(body) else message, finish=lambda b: "stop" if has_room(b) else "length"
    )
    results = [answered(captioner), answered(captioner)]
    assert [one.candidates[0].text.strip() for one in results] == [ANSWER] * 2
    assert [body["max_tokens"] for body in server.asked] == [20, 120, 120]
    assert [body.get("thinking_token_budget") for body in server.asked] == [None, 100, 100]
    assert [body.get("stop") for body in server.asked] == [["END"], None, None]  # not in its reasoning
    assert len({body["seed"] for body in server.asked}) == 1


def test_a_budget_that_the_server_refuses_is_left_out(connect, server):
    captioner = connect(on=True)
    usual = server.behave

    def behave(body, nth):
        return (
            error(400, "unknown field thinking_token_budget") if "thinking_token_budget" in body else usual(body, nth)
        )

    server.behave = behave
    assert answered(captioner).candidates[0].text == "text 0"
    assert answered(captioner).candidates[0].text == "text 0"
    assert ["thinking_token_budget" in body for body in server.asked] == [True, False, False]
    assert {body["max_tokens"] for body in server.asked} == {120}


def test_the_tokens_of_the_answer_count_alone(connect, server):
    captioner = connect(on=True, sampling={"max_tokens": 4})
    saying(server, {"reasoning": "Let me", "content": ANSWER}, words=SPLIT_IN_WORDS)
    (one,) = answered(captioner).candidates
    assert (one.text, one.finish_reason, one.tokens, one.reasoning_tokens) == ("A red car", "length", 4, 3)
    assert one.mean_logprob == -0.5


def test_a_server_that_gives_no_answer_is_a_failure_of_its_own_kind(connect, server, tmp_path):
    import clips

    captioner = connect()
    saying(server, {"reasoning_content": "Let me", "content": ""}, finish="length")
    op = VideoCaptioningFromVLMMapper(captioner=captioner, failure_key="failure", caption_num=2)
    video = str(clips.render_video(tmp_path / "a.mp4"))
    out = op.process_batched({"videos": [[video]], "text": [""]})
    assert [one["kind"] for one in out["failure"]] == ["no_answer"]


# the switch


@pytest.mark.parametrize(
    ("name", "on", "sent"),
    [
        ("enable_thinking", False, {"enable_thinking": False}),
        ("thinking", False, {"thinking": False}),
        ("enable_thinking", True, {"enable_thinking": True}),
        ("thinking", True, {"thinking": True}),
    ],
)
def test_a_switch_that_changes_the_prompt_is_found(connect, server, name, on, sent):
    default = not on
    saying(server, {"content": ANSWER}, prompt_tokens=lambda given: 100 + 2 * given.get(name, default))
    captioner = connect(on=on)
    answered(captioner)
    assert server.asked[0]["chat_template_kwargs"] == sent
    assert "reason" in captioner.notes[-1]


def test_a_switch_that_ends_reasoning_is_found(connect, server):
    def quiet(body):
        return body.get("chat_template_kwargs", {}).get("enable_thinking") is False

    saying(server, lambda body: {"content": ANSWER} if quiet(body) else {"reasoning": "Let", "content": None})
    answered(connect())
    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_knows_no_switch_gets_none_and_what_the_user_sends_stays(connect, server):
    answered(connect())
    assert "chat_template_kwargs" not in server.asked[0]
    trials = len(server.bodies)
    answered(connect(chat_template_kwargs={"enable_thinking": True}))
    assert server.asked[1]["chat_template_kwargs"] == {"enable_thinking": True}
    assert len(server.bodies) == trials + 2  # no trial of a switch

    def strict(body, nth):
        return error(400, "unknown field") if "chat_template_kwargs" in body else None

    server.behave = strict
    answered(connect(on=True))
    assert "chat_template_kwargs" not in server.asked[2]


def test_the_template_of_a_model_that_is_known_here_is_looked_at(connect, server, tmp_path):
    folder = thinker(tmp_path / "m", "qwen3_5", QWEN)
    answered(connect(processor=str(folder)))
    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}
    answered(connect(processor=str(folder), on=True))
    assert "chat_template_kwargs" not in server.asked[1]  # it reasons by itself
    assert server.asked[1]["thinking_token_budget"] == 100


def test_a_text_that_was_cut_where_the_template_opens_reasoning_is_no_caption(connect, server, tmp_path):
    folder = thinker(tmp_path / "m", TEMPLATES["qwen3_vl_thinking"], QWEN)
    captioner = connect(processor=str(folder))
    saying(server, {"content": "Okay, the user wants"}, finish="length")
    (one,) = answered(captioner).candidates
    assert (one.text, one.reasoning) == ("", "Okay, the user wants")
