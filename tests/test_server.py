"""The captioner of OpenAI-compatible servers, against a small server on loopback that does what a test says."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import logging
import math
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import reelscribe.models.server.http_client as http_client
from chat_server import ChatServer, completion, error, running, slowly
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.errors import ModelError, SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import PromptOptions, generation_config
from reelscribe.models.server.captioner import base_url
from reelscribe.models.server.chat_answer import AnswerError, read_answer, read_models
from reelscribe.models.server.chat_api import ChatFormat, error_text, result_of
from reelscribe.types import CaptionRequest, Clip, RequestId

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 32, 64, 3), np.uint8)
IRREGULAR = (0.0, 0.217, 1.003, 1.5)


@pytest.fixture
def server():
    return ChatServer()


@pytest.fixture
def url(server):
    with running(server) as address:
        yield address


@pytest.fixture
def connect(url, monkeypatch):
    """Captioners of the server."""
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.01)
    made = []

    def make(sampling=None, *, model="served", **options):
        generation = generation_config(sampling)
        made.append(load_captioner(ModelSpec("server", model, {"base_url": url, **options}, generation=generation)))
        return made[-1]

    yield make
    for captioner in made:
        captioner.close()


def clip(pts=IRREGULAR):
    frames = FRAMES[: len(pts)]
    return Clip(frames, np.array(pts), duration_seconds=2.0, source_fps=24, source_height=32, source_width=64)


def jobs(count=1, *, candidates=1, **changes):
    for row in range(count):
        yield (
            CaptionRequest(RequestId(row, 0), f"{row}.mp4", "What?", num_candidates=candidates, seed=row, **changes),
            clip(),
        )


def caption(captioner, **changes):
    return sorted(captioner.caption(jobs(**changes)), key=lambda result: result.request_id)


def texts(results):
    return [[one.text for one in result.candidates] for result in results]


def pictures(url):
    """The frames in a data URL."""
    _, _, data = url.partition(";base64,")
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in data.split(",")])


# what is sent


def test_the_video_goes_with_its_own_times(connect, server):
    caption(connect(frame_format="png"))
    (body,) = server.asked
    (shown, asked) = body["messages"][0]["content"]
    assert asked == {"type": "text", "text": "What?"}
    assert shown["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert np.array_equal(pictures(shown["video_url"]["url"]), FRAMES)
    times = body["media_io_kwargs"]["video"]
    assert [index / times["fps"] for index in times["frames_indices"]] == pytest.approx(IRREGULAR)
    assert (times["duration"], times["total_num_frames"], times["num_frames"]) == (2.0, 2000, -1)
    assert body["mm_processor_kwargs"] == {"do_sample_frames": False}


def test_frames_are_jpeg_unless_told_otherwise(connect, server):
    caption(connect())
    shown = pictures(server.asked[0]["messages"][0]["content"][0]["video_url"]["url"])
    assert 0 < np.abs(shown.astype(int) - FRAMES).mean() < 20


def test_the_bundled_models_own_rule_is_followed(connect, server):
    server.models = [{"id": "reelscribe/shapes"}]
    captioner = connect(model="reelscribe/shapes")
    assert captioner.policy.max_frames == 8
    caption(captioner)
    assert server.asked[0]["mm_processor_kwargs"]["do_resize"] is False
    assert "the model's own rule" in captioner.notes[0]


def test_where_the_model_was_loaded_from_tells_its_rule(connect, server):
    from reelscribe.models.chat import BUNDLED_MODELS

    server.models = [{"id": "served", "root": str(BUNDLED_MODELS["reelscribe/shapes"])}]
    assert connect().policy.max_frames == 8


def test_a_model_that_is_not_known_gets_the_general_rule(connect):
    captioner = connect()
    assert (captioner.policy.fps, captioner.policy.max_frames) == (2.0, 32)
    assert "a general rule" in captioner.notes[0]


def test_another_models_rule_can_be_named(connect):
    assert connect(processor="reelscribe/shapes").policy.max_frames == 8
    with pytest.raises(ModelError, match="processor './nowhere' cannot be loaded"):
        connect(processor="./nowhere")


def test_the_users_settings_are_sent_and_nothing_else(connect, server):
    caption(connect({"temperature": 0.3, "top_k": 20, "stop": ["END"], "max_tokens": 99}))
    sent = {key: value for key, value in server.asked[0].items() if "kwargs" not in key and key != "messages"}
    settings = {"temperature": 0.3, "top_k": 20, "stop": ["END"], "max_tokens": 99}
    assert sent == {"model": "served", "seed": 0, "logprobs": True, **settings}


def test_one_candidate_of_an_unknown_model_is_left_to_the_server(connect, server):
    caption(connect())
    assert {"temperature", "top_p"}.isdisjoint(server.asked[0])
    assert server.asked[0]["max_tokens"] == 512


def test_several_candidates_are_sampled(connect, server):
    caption(connect(), candidates=3)
    assert (server.asked[0]["temperature"], server.asked[0]["top_p"], server.asked[0]["n"]) == (0.9, 0.95, 3)


def test_the_generation_config_of_a_known_model_rules(connect, server):
    captioner = connect(processor="reelscribe/shapes")
    caption(captioner)
    assert server.asked[0]["temperature"] == 0
    caption(captioner, candidates=2)
    assert server.asked[1]["temperature"] == 0.9


def test_what_the_models_own_config_would_fill_in_is_sent_as_it_is_meant():
    """Qwen2.5-VL's config draws in name only; a server puts its top_k of 1 where none is sent."""
    own = {"do_sample": True, "temperature": 1e-6, "top_k": 1, "repetition_penalty": 1.05}
    chat = ChatFormat("m", PromptOptions(), generation_config({}), own, "jpeg", {})
    fields, same = chat.sampling(4)
    assert not same
    assert fields == {"temperature": 0.9, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.05, "max_tokens": 512}


def test_greedy_candidates_are_one_text(connect, server):
    (result,) = caption(connect({"temperature": 0}), candidates=3)
    assert "n" not in server.asked[0]
    assert [one.text for one in result.candidates] == ["text 0"] * 3
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (100, 9)


def test_the_system_message_and_the_order(connect, server):
    caption(
        connect(prompt_order="text_first", chat_template_kwargs={"enable_thinking": False}), system_prompt="Be brief."
    )
    body = server.asked[0]
    assert body["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "video_url"]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


# what the server understands


def test_a_server_without_video_gets_images_behind_their_times(connect, server):
    server.takes_video = False
    captioner = connect(frame_format="png")
    caption(captioner)
    parts = server.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 4 + ["text"]
    marks = [part["text"] for part in parts[:-1:2]]
    assert marks == ["<0.0 seconds>", "<0.2 seconds>", "<1.0 seconds>", "<1.5 seconds>"]
    assert np.array_equal(pictures(parts[3]["image_url"]["url"])[0], FRAMES[1])
    assert {"media_io_kwargs", "mm_processor_kwargs"}.isdisjoint(server.asked[0])
    assert "as PNG images" in captioner.notes[0]
    assert "--trust-request-mm-kwargs" in captioner.notes[0]


def test_frames_that_only_fill_up_a_step_are_no_images(connect, server):
    server.takes_video = False
    request = CaptionRequest(RequestId(0, 0), "a.mp4", "What?")
    list(connect().caption([(request, clip(pts=(0.0, 0.5, 0.5)))]))
    parts = server.asked[0]["messages"][0]["content"]
    assert sum(part["type"] == "image_url" for part in parts) == 2


@pytest.mark.parametrize("takes_n", [True, False])
def test_candidates_are_the_same_with_and_without_n(connect, server, takes_n):
    server.takes_n = takes_n
    results = caption(connect(), count=3, candidates=4)
    assert texts(results) == [[f"text {row + i}" for i in range(4)] for row in range(3)]
    assert len(server.asked) == (3 if takes_n else 12)
    assert {(r.usage.prompt_tokens, r.usage.completion_tokens) for r in results} == {(100, 12)}


def test_probabilities_are_told_where_the_server_tells_them(connect, server):
    (result,) = caption(connect())
    assert (result.candidates[0].tokens, result.candidates[0].mean_logprob) == (3, -0.5)
    server.takes_logprobs = False
    (result,) = caption(connect())
    assert (result.candidates[0].tokens, result.candidates[0].mean_logprob) == (3, None)


def test_a_server_that_understands_nothing_is_an_error(connect, server):
    server.behave = lambda body, nth: error(400, "I read no pictures")
    with pytest.raises(ModelError, match="does not accept frames as a video or as images: .*I read no pictures"):
        connect()
    with pytest.raises(ModelError, match="--trust-request-mm-kwargs"):
        connect(video_form="video")


def test_a_server_that_breaks_down_over_a_form_is_asked_in_another(connect, server):
    def behave(body, nth):
        return error(500, "cannot read video_url") if "media_io_kwargs" in body else None

    server.behave = behave
    assert texts(caption(connect())) == [["text 0"]]


def test_a_server_that_gives_one_choice_whatever_n_says_is_asked_for_each(connect, server):
    server.behave = lambda body, nth: (200, completion({**body, "n": 1}), {})
    (result,) = caption(connect(), candidates=3)
    assert [one.text for one in result.candidates] == ["text 0", "text 1", "text 2"]


# trouble


def test_trouble_that_passes_is_waited_out(connect, server):
    captioner = connect()
    start = len(server.bodies)
    troubles = {0: error(429, "slow down"), 1: error(503, "busy"), 2: error(500, "oops"), 3: (0, {}, {})}
    server.behave = lambda body, nth: troubles.get(nth - start)
    (result,) = caption(captioner)
    assert result.failure is None
    assert len(server.asked) == 5


def test_the_server_says_how_long_to_wait(connect, server):
    captioner = connect()
    start = len(server.bodies)
    server.behave = lambda body, nth: error(429, "slow down", **{"Retry-After": "0.4"}) if nth == start else None
    began = time.monotonic()
    caption(captioner)
    assert time.monotonic() - began >= 0.4


def test_a_refusal_is_a_failure_of_its_row_and_not_repeated(connect, server):
    def behave(body, nth):
        return error(400, "bad pixels") if body["seed"] == 1 and body["max_tokens"] > 1 else None

    server.behave = behave
    results = caption(connect(), count=3)
    assert [result.failure.kind if result.failure else None for result in results] == [None, "server_error", None]
    assert "status 400: bad pixels" in results[1].failure.message
    assert len(server.asked) == 3


def test_a_request_that_is_too_long_says_what_to_do(connect, server):
    captioner = connect()
    server.behave = lambda body, nth: error(400, "This model's maximum context length is 4096 tokens")
    (result,) = caption(captioner)
    assert result.failure.kind == "too_many_tokens"
    assert "max_frames" in result.failure.message


def test_a_request_the_server_always_fails_on_is_given_up_while_others_are_answered(connect, server):
    def behave(body, nth):
        return error(500, "crash") if body["seed"] == 0 and body["max_tokens"] > 1 else None

    server.behave = behave
    results = caption(connect(max_tries=3), count=6)
    assert [bool(result.failure) for result in results] == [True, False, False, False, False, False]
    assert results[0].failure.kind == "server_error"
    assert "given up after" in results[0].failure.message


def test_the_last_request_of_a_run_is_given_up_too(connect, server):
    """Nobody else is answered in the meantime, but the server is there."""
    captioner = connect(max_tries=3)
    caption(captioner, count=2)
    server.behave = lambda body, nth: error(500, "crash")
    (result,) = caption(captioner)
    assert result.failure.kind == "server_error"
    assert "given up after 3 tries" in result.failure.message


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(connect, server):
    captioner = connect(timeout_seconds=0.3)
    start = len(server.bodies)

    def behave(body, nth):
        if nth == start:
            time.sleep(0.8)

    server.behave = behave
    (result,) = caption(captioner)
    assert result.failure is None
    assert len(server.asked) == 2


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_text_the_server_broke_off_is_asked_for_again(connect, server, reason):
    captioner = connect()
    start = len(server.bodies)

    def behave(body, nth):
        answer = completion(body)
        answer["choices"][0]["finish_reason"] = reason if nth == start else "stop"
        return 200, answer, {}

    server.behave = behave
    (result,) = caption(captioner)
    assert result.failure is None
    assert len(server.asked) == 2


@pytest.mark.parametrize("trouble", [error(503, "no room"), (0, {}, {})])
def test_a_server_that_answers_nobody_any_more_stops_the_run(connect, server, trouble):
    captioner = connect(give_up_seconds=0.3)
    server.models = None
    server.behave = lambda body, nth: trouble if trouble[0] else (time.sleep(0.35), trouble)[1]
    with pytest.raises(ModelError, match=r"has answered no request for 0.3 seconds"):
        caption(captioner, count=3)


def test_a_key_that_is_no_longer_good_stops_the_run(connect, server):
    captioner = connect()
    server.key = "new"
    with pytest.raises(ModelError, match="401: invalid key.*api_key_env"):
        caption(captioner)


def test_what_is_no_answer_is_a_failure(connect, server):
    captioner = connect()
    server.behave = lambda body, nth: (200, {"hello": "world"}, {})
    (result,) = caption(captioner)
    assert "does not follow the chat API" in result.failure.message


def test_text_the_servers_filter_ended_is_a_failure(connect, server):
    captioner = connect()

    def behave(body, nth):
        answer = completion(body)
        answer["choices"][0]["finish_reason"] = "content_filter"
        return 200, answer, {}

    server.behave = behave
    (result,) = caption(captioner)
    assert "content filter" in result.failure.message


def test_text_cut_at_the_limit_says_so_and_null_is_empty(connect, server):
    captioner = connect()

    def behave(body, nth):
        answer = completion(body)
        answer["choices"][0] |= {"finish_reason": "length", "message": {"content": None}}
        return 200, answer, {}

    server.behave = behave
    (result,) = caption(captioner)
    assert (result.candidates[0].finish_reason, result.candidates[0].text) == ("length", "")


def test_a_text_cut_inside_a_character_ends_before_it(connect, server):
    captioner = connect()
    texts_of = ["一只猫\ufffd", "a \ufffd b\ufffd\ufffd", "whole"]

    def behave(body, nth):
        answer = completion(body)
        for choice in answer["choices"]:
            choice |= {"finish_reason": "length", "message": {"content": texts_of[choice["index"]]}}
        return 200, answer, {}

    server.behave = behave
    (result,) = caption(captioner, candidates=3)
    assert [one.text for one in result.candidates] == ["一只猫", "a \ufffd b", "whole"]


def test_an_outage_loses_no_row(server, monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.05)
    with running(server) as address:
        port = int(address.rsplit(":", 1)[1].split("/")[0])
        captioner = load_captioner(ModelSpec("server", "served", {"base_url": address, "max_in_flight": 4}))
        server.behave = slowly(0.01)
        stream = captioner.caption(jobs(count=30))
        done = [next(stream) for _ in range(8)]
    with running(server, port):
        done += stream
    captioner.close()
    assert sorted(result.request_id.row for result in done) == list(range(30))
    assert all(result.failure is None for result in done)


def test_requests_at_once_are_bounded(connect, server):
    def until_three_were_held(body, nth):
        latest = time.monotonic() + 10
        while server.most < 3 and time.monotonic() < latest:
            time.sleep(0.002)

    captioner = connect(max_in_flight=3)
    server.behave = until_three_were_held
    caption(captioner, count=20)
    assert server.most == 3


def test_an_answer_that_drips_in_is_given_up_at_the_limit(connect, server):
    """Something arrives all the time, so that no single wait is long."""
    captioner = connect(timeout_seconds=0.5, max_tries=2)
    caption(captioner)
    ended = threading.Event()

    def drip():
        yield b'{"choices": ['
        while not ended.wait(0.05):
            yield b" "

    server.behave = lambda body, nth: (200, drip(), {})
    (result,) = caption(captioner)
    ended.set()
    assert result.failure.kind == "server_error"
    assert "no complete answer within 0.5 seconds" in result.failure.message


def bomb(mebibytes):
    packer = zlib.compressobj(9, wbits=31)
    zeros = b" " * (1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(mebibytes)), packer.flush()])


@pytest.mark.parametrize("status", [200, 500])
def test_a_packed_answer_takes_no_more_memory_than_is_allowed(connect, server, status):
    captioner = connect(max_answer_bytes=1 << 20, max_tries=2)
    caption(captioner)
    packed = bomb(512)
    server.behave = lambda body, nth: (status, packed, {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        (result,) = caption(captioner)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.failure.kind == "server_error"
    assert status == 500 or "larger than 1048576 bytes (max_answer_bytes)" in result.failure.message
    assert most < 32 << 20


def test_an_answer_without_an_end_is_a_failure(connect, server):
    captioner = connect(max_answer_bytes=1 << 16)
    server.behave = lambda body, nth: (200, itertools.repeat(b" " * 4096), {})
    (result,) = caption(captioner)
    assert "larger than 65536 bytes" in result.failure.message


@pytest.mark.parametrize("packing", ["gzip", "x-gzip", "deflate", "identity"])
def test_packed_answers_are_read(connect, server, packing):
    wbits = {"deflate": 15}.get(packing, 31)

    def behave(body, nth):
        data = json.dumps(completion(body)).encode()
        return 200, data if packing == "identity" else zlib.compress(data, wbits=wbits), {"Content-Encoding": packing}

    server.behave = behave
    assert texts(caption(connect())) == [["text 0"]]


@pytest.mark.parametrize("packing", ["br", "gzip, gzip", "zstd", "\x1b[2J"])
def test_packings_nobody_asked_for_are_failures(connect, server, packing):
    captioner = connect()
    server.behave = lambda body, nth: (200, b"xxxx", {"Content-Encoding": packing})
    (result,) = caption(captioner)
    assert result.failure.kind == "server_error"
    assert result.failure.message.isprintable()


def test_a_damaged_packing_is_a_failure(connect, server):
    captioner = connect()
    server.behave = lambda body, nth: (200, b"xxxx", {"Content-Encoding": "gzip"})
    (result,) = caption(captioner)
    assert "not encoded as its header says" in result.failure.message


# answers of odd shape


def answering(server, change):
    """Let the server change its usual answers."""

    def behave(body, nth):
        answer = completion(body)
        return 200, change(answer) or answer, {}

    server.behave = behave


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}], "A cat."),
        (["A ", "cat."], "A cat."),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Cat."}],
            "Cat.",
        ),
        ([{"type": "text", "text": None}], ""),
        ([], ""),
        ("\ud83d", "\ud83d"),
    ],
)
def test_content_in_parts_is_one_text(connect, server, content, text):
    captioner = connect()
    answering(server, lambda answer: answer["choices"][0]["message"].update(content=content))
    (result,) = caption(captioner)
    assert [one.text for one in result.candidates] == [text]


@pytest.mark.parametrize("content", [5, True, {"text": "x"}, [5], [{"type": "text", "text": 5}], [["x"]]])
def test_content_of_another_kind_is_a_failure(connect, server, content):
    captioner = connect()
    answering(server, lambda answer: answer["choices"][0]["message"].update(content=content))
    (result,) = caption(captioner)
    assert result.failure.kind == "server_error"
    assert "does not follow the chat API (choices.0.message.content: " in result.failure.message


def test_what_only_goes_with_a_text_may_make_no_sense(connect, server):
    captioner = connect()
    odd = {"prompt_tokens": "100", "completion_tokens": float("inf")}
    logprobs = {"content": [{"logprob": float("-inf")}]}
    answering(server, lambda a: a.update(usage=odd) or a["choices"][0].update(logprobs=logprobs, index="x"))
    (result,) = caption(captioner)
    assert (result.candidates[0].text, result.candidates[0].mean_logprob) == ("text 0", None)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (100, 0)
    answering(server, lambda a: a.update(usage=[7]) or a["choices"][0].update(logprobs="x", finish_reason=[1]))
    (result,) = caption(captioner)
    assert (result.candidates[0].finish_reason, result.usage.prompt_tokens) == ("stop", 0)


def test_a_refusal_of_the_model_is_a_failure_with_its_words(connect, server):
    captioner = connect()
    answering(server, lambda a: a["choices"][0].update(message={"content": None, "refusal": "I\x1b[2J cannot."}))
    (result,) = caption(captioner)
    assert result.failure.message == "the model refused to answer: I\\x1b[2J cannot."


def test_more_choices_than_asked_for_are_left_aside(connect, server):
    server.takes_n = False
    captioner = connect()
    answering(server, lambda a: a["choices"].append({"index": 1, "message": {"content": "more"}}))
    (result,) = caption(captioner, candidates=2)
    assert [one.text for one in result.candidates] == ["text 0", "text 1"]


def test_fewer_choices_than_asked_for_are_a_failure(connect, server):
    captioner = connect()
    answering(server, lambda a: a["choices"].clear())
    (result,) = caption(captioner)
    assert "returned 0 candidates where 1 were requested" in result.failure.message


DEEP = b"[" * 100_000


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "data", [DEEP, b'{"choices": ' + DEEP, b"", b"\xff\xfe", b"NaN", b"1" * 5000, b"<html>\x1b[2J"]
)
def test_what_is_no_json_is_a_failure_in_one_printable_line(connect, server, data, status):
    captioner = connect(max_tries=1)
    caption(captioner)
    server.behave = lambda body, nth: (status, data, {})
    (result,) = caption(captioner)
    assert result.failure.kind == "server_error"
    assert result.failure.message.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
REAL = completion({"n": 2, "logprobs": True})


def places(value, path=()):
    """Every place in an answer."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw, real):
    """A real answer with some of its values replaced, or gone."""
    answer = copy.deepcopy(real)
    for path in draw(st.lists(st.sampled_from(list(places(real))), min_size=1, max_size=3)):
        if not path:
            return draw(json_values)
        holder = answer
        try:
            for key in path[:-1]:
                holder = holder[key]
            if draw(st.booleans()):
                holder[path[-1]] = draw(json_values)
            else:
                del holder[path[-1]]
        except (KeyError, IndexError, TypeError):  # another change took this place away
            continue
    return answer


@settings(max_examples=400)
@given(st.one_of(json_values, mutated(REAL)), st.booleans())
def test_any_answer_is_a_result_or_a_failure(value, same):
    request = CaptionRequest(RequestId(0, 0), "a.mp4", "What?", num_candidates=2)
    try:
        answer = read_answer(json.dumps(value).encode())
    except AnswerError:
        return
    result = result_of(request, [answer], counts=[1 if same else 2], same=same)
    if result.failure is not None:
        assert (result.failure.kind, result.failure.message.isprintable()) == ("server_error", True)
        return
    assert len(result.candidates) == 2
    assert all(isinstance(one.text, str) and one.tokens >= 0 for one in result.candidates)
    assert all(one.mean_logprob is None or math.isfinite(one.mean_logprob) for one in result.candidates)
    assert min(result.usage.prompt_tokens, result.usage.completion_tokens) >= 0
    json.dumps([one.text for one in result.candidates])


@settings(max_examples=300)
@given(st.one_of(json_values, mutated({"object": "list", "data": [{"id": "m", "root": "/m"}, {"id": "n"}]})))
def test_any_list_of_models_is_names_or_nothing(value):
    found = read_models(json.dumps(value).encode())
    assert found is None or all(isinstance(one.id, str) and isinstance(one.root, str) for one in found)


@given(st.one_of(json_values, mutated({"error": {"message": "m", "code": 400}})))
def test_any_error_has_a_text(value):
    assert len(error_text(value)) <= 300


@pytest.mark.parametrize(
    "listing", [b"5", b'{"data": 5}', b'{"data": [5, {"id": 7}]}', DEEP, b"<html>", b'{"data": []}']
)
def test_a_list_of_models_of_odd_shape_says_nothing(connect, server, listing):
    server.listing = listing
    assert texts(caption(connect())) == [["text 0"]]


# the server at the start


def test_no_server_is_one_line():
    with pytest.raises(ModelError, match="no answer from the server http://127.0.0.1:9/v1"):
        load_captioner(ModelSpec("server", "served", {"base_url": "http://127.0.0.1:9"}))


def test_another_model_is_named(connect):
    with pytest.raises(ModelError, match="does not serve 'other'; it serves 'served'"):
        connect(model="other")


def test_a_server_that_lists_no_models_is_taken_at_its_word(connect, server):
    server.models = None
    assert texts(caption(connect(model="any"))) == [["text 0"]]


def test_the_key_comes_from_the_environment_and_is_never_told(connect, server, monkeypatch, caplog):
    server.key = "sk-very-secret"
    with pytest.raises(ModelError, match="401") as wrong:
        connect()
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with caplog.at_level(logging.DEBUG):
        captioner = connect(api_key_env="MY_KEY")
        server.behave = lambda body, nth: error(500, "no") if nth % 2 else None
        caption(captioner, count=3)
    told = " ".join([str(wrong.value), caplog.text, repr(vars(captioner)), *captioner.notes])
    assert "sk-very-secret" not in told
    assert server.keys == {None, "Bearer sk-very-secret"}


def test_a_key_the_server_repeats_is_not_told(connect, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "  sk-very-secret\n")
    captioner = connect(api_key_env="MY_KEY")
    assert server.keys == {"Bearer sk-very-secret"}
    server.behave = lambda body, nth: error(400, "Bearer sk-very-secret may not do this")
    (result,) = caption(captioner)
    assert result.failure.message == "status 400: Bearer *** may not do this"


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_what_is_no_key_is_an_error_that_does_not_tell_it(connect, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(SettingsError, match="holds no key") as told:
        connect(api_key_env="MY_KEY")
    assert key not in str(told.value)


def test_a_variable_that_is_not_set_is_an_error(connect, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(SettingsError, match="'MY_KEY', but that variable is not set"):
        connect(api_key_env="MY_KEY")


# settings


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/api/v3/", "https://host/api/v3"),
    ],
)
def test_addresses(given, meant):
    assert base_url(given) == meant


@pytest.mark.parametrize(
    "wrong",
    [
        "localhost:8000",
        "ftp://u:secret@host",
        "u:secret@host/v1",
        "http://",
        "http://u:secret@host",
        "http://host?key=secret",
    ],
)
def test_addresses_that_are_none(wrong):
    with pytest.raises(SettingsError) as told:
        base_url(wrong)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"api_key": "sk-1"}, "did you mean api_key_env"),
        ({"tensor_parallel_size": 2}, "has no option 'tensor_parallel_size' for a server .base_url.; expected one of "),
        ({"device": "cuda"}, "a server decides itself"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"video_form": "gif"}, "video_form"),
    ],
)
def test_parameters_that_mean_nothing_are_errors(connect, options, what):
    with pytest.raises(SettingsError, match=what):
        connect(**options)


def test_the_operator_reaches_a_server(url, server, video):
    operator = VideoCaptioningFromVLMMapper(
        "served", caption_num=2, keep_candidate_mode="all", keep_original_sample=False, batch_size=2,
        model_params={"base_url": url},
    )  # fmt: skip
    made = operator.run([{"text": "", "videos": [str(video("h264.mp4"))]}])
    operator.close()
    assert len(made) == 2
    assert operator.spec.options["max_in_flight"] == 2
    frames = pictures(server.asked[0]["messages"][0]["content"][0]["video_url"]["url"])
    assert frames.ndim == 4


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "a  b\nc"}}, "a b c"),
        ({"error": "plain"}, "plain"),
        ({"detail": "gone"}, "gone"),
        ({"message": "m"}, "m"),
        ("<html>", "<html>"),
        (json.loads("[1]"), "[1]"),
    ],
)
def test_error_texts(body, text):
    assert error_text(body) == text
