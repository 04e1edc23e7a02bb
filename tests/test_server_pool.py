"""Several servers on loopback: shares, failures, outages, and the model that none names."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from click.testing import CliRunner

import reelscribe.models.server.captioner as server_module
import reelscribe.models.server.http_client as http_client
from chat_server import ChatServer, error, running, slowly
from reelscribe import VideoCaptioningFromVLMMapper, cli, timing
from reelscribe.errors import ModelError, SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.server.captioner import base_urls
from reelscribe.types import CaptionRequest, Clip, RequestId
from rows import jsonl, load

NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def fleet(monkeypatch):
    """Starts servers, and ends them."""
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.01)
    with ExitStack() as stack:

        def start(count=2, **settings):
            servers = [ChatServer() for _ in range(count)]
            for server in servers:
                vars(server).update(settings)
            return servers, [stack.enter_context(running(server)) for server in servers]

        yield start


@pytest.fixture
def connect():
    made = []

    def make(urls, *, model="served", **options):
        made.append(load_captioner(ModelSpec("server", model, {"base_url": urls, **options})))
        return made[-1]

    yield make
    for captioner in made:
        captioner.close()


def jobs(count, candidates=1):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    shown = Clip(frames, np.array([0.0, 0.5]), duration_seconds=1, source_fps=2, source_height=32, source_width=32)
    for row in range(count):
        yield CaptionRequest(RequestId(row, 0), f"{row}.mp4", "What?", num_candidates=candidates, seed=row), shown


def caption(captioner, count, **changes):
    results = sorted(captioner.caption(jobs(count, **changes)), key=lambda result: result.request_id)
    assert [result.request_id.row for result in results] == list(range(count))
    return results


def texts(results):
    return [result.candidates[0].text if result.failure is None else result.failure.kind for result in results]


def right(count):
    return [f"text {row}" for row in range(count)]


def answered(captioner):
    """Requests that each server answered, as the summary tells them."""
    lines = [line for line in captioner.notes if "requests answered" in line]
    return [int(line.split(": ")[1].split()[0]) for line in lines]


def wait_for(condition):
    """A while at most."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


# shares


def test_servers_share_the_requests_and_the_summary_counts_them(fleet, connect):
    servers, urls = fleet(3, behave=slowly(0.01))
    captioner = connect(urls, max_in_flight=2)
    assert texts(caption(captioner, 60)) == right(60)
    assert sorted(body["seed"] for server in servers for body in server.asked) == list(range(60))
    assert answered(captioner) == [len(server.asked) for server in servers]
    assert min(answered(captioner)) > 10
    assert max(server.most for server in servers) == 2
    assert captioner.notes[0].startswith("3 servers: frames ")


def test_a_slow_server_gets_less(fleet, connect):
    (slow, _), urls = fleet(2)
    slow.behave = slowly(0.2)
    captioner = connect(urls, max_in_flight=4)
    assert texts(caption(captioner, 80)) == right(80)
    assert answered(captioner)[0] < answered(captioner)[1] / 2


def test_one_server_says_what_it_said_before(fleet, connect):
    _, (url,) = fleet(1)
    captioner = connect(url)
    caption(captioner, 3)
    assert len(captioner.notes) == 1
    assert captioner.notes[0].startswith(f"server {url}: frames ")


def test_candidates_of_one_video_may_come_from_several_servers(fleet, connect):
    _, urls = fleet(2, takes_n=False)
    (result,) = caption(connect(urls), 1, candidates=4)
    assert [one.text for one in result.candidates] == right(4)


# trouble


def test_a_server_that_dies_midway_loses_nothing(fleet, connect, caplog):
    (dying, _), urls = fleet(2, behave=slowly(0.005))
    captioner = connect(urls, max_in_flight=4)
    alive = 10 + len(dying.bodies)
    dying.behave = lambda body, nth: (0, {}, {}) if nth >= alive else slowly(0.005)(body, nth)
    with caplog.at_level(logging.WARNING):
        assert texts(caption(captioner, 100)) == right(100)
    assert answered(captioner)[0] == 10
    assert f"the server {urls[0]} is left out" in caplog.text
    assert "left out" in captioner.notes[1]


def test_a_server_that_gives_500_is_left_out(fleet, connect):
    (bad, _), urls = fleet(2)
    captioner = connect(urls, max_tries=1, max_in_flight=4)
    bad.behave = lambda body, nth: error(500, "no \x1b[2J memory")
    assert texts(caption(captioner, 60)) == right(60)
    assert answered(captioner) == [0, 60]
    assert len(bad.asked) < 30


def test_a_server_that_comes_back_is_used_again(fleet, connect, caplog):
    (ill, _), urls = fleet(2, behave=slowly(0.005))
    captioner = connect(urls, max_in_flight=2)
    usual = len(ill.bodies)
    ill.behave = lambda body, nth: error(503, "busy") if nth < usual + 3 else slowly(0.005)(body, nth)
    with caplog.at_level(logging.WARNING):
        assert texts(caption(captioner, 200)) == right(200)
    assert answered(captioner)[0] > 10
    assert f"the server {urls[0]} answers again" in caplog.text


def test_an_outage_of_all_is_waited_out(fleet, connect):
    servers, urls = fleet(2)
    captioner = connect(urls, max_in_flight=4)
    end = time.monotonic() + 0.5
    for server in servers:
        server.behave = lambda body, nth: error(503, "no room") if time.monotonic() < end else None
    assert texts(caption(captioner, 30)) == right(30)


def test_an_outage_of_all_that_does_not_end_stops_the_run(fleet, connect):
    servers, urls = fleet(2)
    captioner = connect(urls, give_up_seconds=0.3)
    for server in servers:
        server.behave = lambda body, nth: error(503, "no room")
    with pytest.raises(ModelError, match=rf"none of the servers {urls[0]}, {urls[1]} has answered a request for 0.3 s"):
        caption(captioner, 3)


def test_a_request_that_all_servers_fail_on_is_given_up_alone(fleet, connect):
    servers, urls = fleet(2)

    def behave(body, nth):
        return error(500, "crash") if body["seed"] == 5 and body["max_tokens"] > 1 else None

    for server in servers:
        server.behave = behave
    expected = right(40)
    expected[5] = "server_error"
    assert texts(caption(connect(urls, max_tries=3), 40)) == expected


def test_a_server_that_forgot_the_model_is_left_out_until_none_has_it(fleet, connect):
    (first, second), urls = fleet(2)
    captioner = connect(urls)
    first.behave = lambda body, nth: error(404, "no such model")
    assert texts(caption(captioner, 20)) == right(20)
    second.behave = first.behave
    with pytest.raises(ModelError, match="404: no such model"):
        caption(captioner, 2)


# the start


def test_a_server_that_is_not_there_at_the_start_is_left_out(fleet, connect):
    _, (url,) = fleet(1)
    captioner = connect([NOBODY, url])
    assert texts(caption(captioner, 20)) == right(20)
    assert answered(captioner) == [0, 20]


def test_a_server_that_comes_later_is_used_where_it_serves_the_model(fleet, connect, caplog):
    (_, later), (url, other) = fleet(2, behave=slowly(0.01))
    later.models, later.behave = None, lambda body, nth: error(503, "loading")
    captioner = connect([url, other], max_in_flight=2)
    assert texts(caption(captioner, 5)) == right(5)
    later.models = [{"id": "other"}]
    wait_for(lambda: "does not serve 'served'; it serves 'other'" in caplog.text)
    later.behave = slowly(0.01)
    assert texts(caption(captioner, 10)) == right(10)
    assert later.asked == []
    later.models = [{"id": "served"}]
    wait_for(lambda: f"{other} is available now" in caplog.text)
    assert texts(caption(captioner, 20)) == right(20)
    assert later.asked


def test_a_server_that_hangs_at_the_start_does_not_hold_the_others_up(fleet, connect, monkeypatch):
    monkeypatch.setattr(server_module, "START_SECONDS", 3.0)
    (hanging, _), urls = fleet(2)
    over = threading.Event()
    hanging.behave = lambda body, nth: over.wait(60) and None
    captioner = connect(urls)
    assert texts(caption(captioner, 5)) == right(5)
    over.set()


def test_no_server_at_all_names_them_all():
    with pytest.raises(ModelError, match=r"127.0.0.1:9/v1: .*; no answer from the server http://127.0.0.1:10/v1"):
        load_captioner(ModelSpec("server", "served", {"base_url": [NOBODY, "http://127.0.0.1:10"]}))


def test_a_server_of_another_model_is_an_error(fleet, connect):
    (_, other), urls = fleet(2)
    other.models = [{"id": "other"}]
    with pytest.raises(ModelError, match=rf"{urls[1]} does not serve 'served'; it serves 'other'"):
        connect(urls)


def test_servers_that_understand_different_forms_are_asked_in_the_one_they_share(fleet, connect):
    (_, plain), urls = fleet(2)
    plain.takes_video = plain.takes_n = False
    captioner = connect(urls)
    caption(captioner, 10, candidates=2)
    assert "sent as JPEG images" in captioner.notes[0]
    assert "a request for each candidate" in captioner.notes[0]


# the model that is not named


@pytest.mark.parametrize(
    ("listed", "model"),
    [
        (["one"], "one"),
        (["a", "Qwen/Qwen3-VL-8B-Instruct"], "Qwen/Qwen3-VL-8B-Instruct"),
    ],
)
def test_the_one_model_that_is_served_need_not_be_named(fleet, connect, listed, model):
    servers, urls = fleet(2, models=[{"id": name} for name in listed])
    captioner = connect(urls, model="", processor="reelscribe/shapes")
    caption(captioner, 4)
    assert captioner.model == model
    assert {body["model"] for server in servers for body in server.bodies} == {model}
    assert any(repr(model) in note for note in captioner.notes)


def test_several_models_must_be_chosen_from(fleet, connect):
    _, urls = fleet(1, models=[{"id": "a"}, {"id": "b\x1b[2J"}])
    with pytest.raises(ModelError, match=r"serves several models: 'a', 'b\\x1b\[2J'; name one with --model"):
        connect(urls, model="")


def test_servers_must_agree_on_the_model(fleet, connect):
    (_, other), urls = fleet(2)
    other.models = [{"id": "other"}]
    with pytest.raises(ModelError, match="do not serve the same model: .* serves 'served'; .* serves 'other'"):
        connect(urls, model="")


# settings, and the commands


def test_addresses_count_once():
    assert base_urls(["http://a:1", "http://a:1/v1/", "http://b:1"]) == ["http://a:1/v1", "http://b:1/v1"]
    with pytest.raises(SettingsError, match="empty list"):
        base_urls([])


def test_the_bound_on_videos_at_once_is_each_servers(fleet, connect):
    _, urls = fleet(2)
    captioner = connect(urls, max_in_flight=3)
    captioner.batch_size = 5
    assert (captioner.batch_size, captioner._flight.max_requests) == (5, 10)


def test_an_operator_takes_a_list_and_no_model(fleet, video):
    _, urls = fleet(2)
    operator = VideoCaptioningFromVLMMapper(model_params={"base_url": urls}, keep_original_sample=False)
    again = VideoCaptioningFromVLMMapper(**json.loads(json.dumps(operator.parameters)))
    made = [one.run([{"text": "", "videos": [str(video("h264.mp4"))]}]) for one in (operator, again)]
    assert [one.served_model for one in (operator, again)] == ["served", "served"]
    operator.close(), again.close()
    assert made[0] == made[1] != []
    named = VideoCaptioningFromVLMMapper("a", model_params={"base_url": urls})
    assert named.spec.model == "a"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command_shares_its_videos_and_keeps_their_order(fleet, video, tmp_path):
    """The output is that of one server, also where one of several dies; the summary speaks of no loading."""
    rows = jsonl(tmp_path / "in.jsonl", [{"id": i, "video": str(video("h264.mp4"))} for i in range(40)])
    (one,), (alone,) = fleet(1)
    (dying, _), urls = fleet(2)
    for name, addresses in (("alone", [alone]), ("several", urls)):
        dying.behave = lambda body, nth: (0, {}, {}) if len(dying.asked) > 5 else None
        servers = [word for address in addresses for word in ("--server", address)]
        result = run("caption", rows, "-o", tmp_path / f"{name}.jsonl", *servers, "--batch-size", 4)
        assert result.exit_code == 0, result.output
        assert f"connecting to {', '.join(addresses)}" in result.stderr
        assert " s to reach the server" in result.stdout
        assert "load" not in result.output
        assert "faster device" not in result.output
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "several.jsonl").read_bytes()
    assert [row["id"] for row in load(tmp_path / "several.jsonl")] == list(range(40))
    assert "requests answered" in result.stdout
    assert len(one.asked) == 40


def test_failures_are_tried_again_at_the_servers_of_the_run(fleet, video, tmp_path):
    rows = jsonl(tmp_path / "in.jsonl", [{"video": str(video("h264.mp4"))} for _ in range(3)])
    servers, urls = fleet(2)
    output = tmp_path / "out.jsonl"
    for server in servers:
        server.behave = lambda body, nth: error(400, "not now") if body["max_tokens"] > 1 else None
    options = [word for url in urls for word in ("--server", url)]
    assert run("caption", rows, "-o", output, *options).exit_code == 3
    for server in servers:
        server.behave = lambda body, nth: None
        server.bodies.clear()
    assert run("retry", output).exit_code == 0
    assert sum(len(server.asked) for server in servers) == 3


def test_a_run_goes_on_at_other_servers_but_not_with_another_model(fleet, video, tmp_path):
    rows = jsonl(tmp_path / "in.jsonl", [{"id": i, "video": str(video("h264.mp4"))} for i in range(12)])
    (first, second), urls = fleet(2)
    output = tmp_path / "out.jsonl"
    first.behave = lambda body, nth: error(400, "no") if len(first.asked) == 6 else None
    assert run("caption", rows, "-o", output, "--server", urls[0], "--max-failures", "0").exit_code == 4
    second.models = [{"id": "other"}]
    result = run("caption", rows, "-o", output, "--server", urls[1])
    assert result.exit_code == 1
    assert 'model_revision was "served" and is now "other"' in result.stderr
    second.models = first.models
    result = run("caption", rows, "-o", output, "--server", urls[1], "--server", urls[1] + "/")
    assert result.exit_code == 3
    assert len(second.asked) < 12


def test_a_recipe_and_bench_take_several_servers(fleet, video, tmp_path):
    rows = jsonl(tmp_path / "in.jsonl", [{"text": "", "videos": [str(video("h264.mp4"))]} for _ in range(3)])
    servers, urls = fleet(2)
    recipe = tmp_path / "recipe.yaml"
    operator = {"video_captioning_from_vlm_mapper": {"model_params": {"base_url": urls}}}
    recipe.write_text(
        json.dumps({"dataset_path": str(rows), "export_path": str(tmp_path / "out.jsonl"), "process": [operator]})
    )
    assert run("process", "--config", recipe).exit_code == 0
    assert sum(len(server.asked) for server in servers) == 3
    result = run("bench", rows, "--server", urls[0], "--server", urls[1])
    assert result.exit_code == 0, result.output
    assert "videos in flight" in " ".join(result.output.split())


def test_advice_beside_a_server_is_of_replicas(fleet, video, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "NEARLY_FULL", 0.0)
    rows = jsonl(tmp_path / "in.jsonl", [{"video": str(video("h264.mp4"))} for _ in range(3)])
    _, urls = fleet(1, behave=slowly(0.5))
    result = run("caption", rows, "-o", tmp_path / "out.jsonl", "--server", urls[0], "--batch-size", 1)
    (bound,) = [line for line in result.stdout.splitlines() if line.startswith("bound")]
    assert "more replicas of the server (repeat --server), more videos in flight (--batch-size)" in bound


def test_answers_with_escape_sequences_reach_no_terminal(fleet, video, tmp_path):
    rows = jsonl(tmp_path / "in.jsonl", [{"video": str(video("h264.mp4"))}])
    (server,), (url,) = fleet(1)
    server.behave = lambda body, nth: error(400, "\x1b]0;owned\x07 \x9b2J \u202e") if body["max_tokens"] > 1 else None
    result = run("caption", rows, "-o", tmp_path / "out.jsonl", "--server", url)
    assert result.exit_code == 3
    assert all(line.isprintable() for line in result.output.splitlines())
    (failure,) = load(tmp_path / "out.jsonl.failures.jsonl")
    assert failure["message"].isprintable()
    server.behave = lambda body, nth: error(401, "\x1b[2J")
    result = run("caption", rows, "-o", tmp_path / "new.jsonl", "--server", url)
    assert result.exit_code == 1
    assert "401: \\x1b[2J" in result.stderr
    assert all(line.isprintable() for line in result.output.splitlines())
