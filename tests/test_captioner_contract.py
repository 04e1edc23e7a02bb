"""What every registered back end promises; a new one is tested by its row in `SPECS`."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from reelscribe.errors import SettingsError
from reelscribe.models import CAPTIONERS, Captioner, ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.types import CaptionRequest, Clip, RequestId, Usage

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = generation_config({"max_tokens": 8})
SPECS = {
    "hf": ModelSpec("hf", "reelscribe/shapes", generation=SHORT),
    "vllm": ModelSpec("vllm", "reelscribe/shapes", generation=SHORT),
    "server": ModelSpec("server", "reelscribe/shapes", {"base_url": "set by the fixture"}, generation=SHORT),
    "scripted": ModelSpec("scripted", "scripted", options={"template": "{video} {i} {prompt}"}, generation=SHORT),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.vllm if name == "vllm" else ()) for name in sorted(CAPTIONERS)],
)
def captioner(request):
    spec = SPECS[request.param]
    if request.param == "server":
        spec = replace(spec, options={"base_url": request.getfixturevalue("chat_url")})
    loaded = load_captioner(spec)
    yield loaded
    loaded.close()


def clip(captioner):
    if captioner.policy is None:
        return None
    frames = np.zeros((4, 96, 128, 3), np.uint8)
    frames[:, 20:60, 20:60] = (220, 30, 30)
    return Clip(frames, np.arange(4) / 4, duration_seconds=1, source_fps=4, source_height=96, source_width=128)


def jobs(captioner, count, candidates=1):
    for row in range(count):
        request = CaptionRequest(RequestId(row, row % 2), f"{row}.mp4", "What?", num_candidates=candidates, seed=row)
        yield request, clip(captioner)


def by_id(results):
    return {result.request_id: result for result in results}


def test_every_back_end_is_tested():
    assert set(SPECS) == set(CAPTIONERS)


def test_it_is_a_captioner(captioner):
    assert isinstance(captioner, Captioner)


def test_its_policy_crosses_processes(captioner):
    assert pickle.loads(pickle.dumps(captioner.policy)) == captioner.policy


def test_its_spec_crosses_processes():
    for spec in SPECS.values():
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_no_requests_no_results(captioner):
    assert list(captioner.caption(iter(()))) == []


def test_one_result_for_each_request(captioner):
    results = list(captioner.caption(jobs(captioner, 7)))
    assert sorted(result.request_id for result in results) == [RequestId(row, row % 2) for row in range(7)]
    assert all(result.failure is None for result in results)


@pytest.mark.parametrize("candidates", [1, 3])
def test_as_many_candidates_as_asked_for(captioner, candidates):
    for result in captioner.caption(jobs(captioner, 2, candidates)):
        assert len(result.candidates) == candidates
        assert result.usage.completion_tokens == sum(one.tokens for one in result.candidates) or result.usage == Usage()
        for one in result.candidates:
            assert isinstance(one.text, str)
            assert one.tokens > 0
            assert one.finish_reason in ("stop", "length")


def test_results_do_not_depend_on_order(captioner):
    wanted = list(jobs(captioner, 5, candidates=2))
    forwards, backwards = (by_id(captioner.caption(iter(order))) for order in (wanted, wanted[::-1]))
    texts = [{key: [one.text for one in r.candidates] for key, r in run.items()} for run in (forwards, backwards)]
    assert texts[0] == texts[1]


def test_it_answers_before_the_stream_ends(captioner):
    pulled = 0

    def endless():
        nonlocal pulled
        for job in jobs(captioner, 10**9):
            pulled += 1
            yield job

    stream = captioner.caption(endless())
    for _ in range(40):
        next(stream)
    stream.close()
    assert pulled <= 40 + 64


def test_an_error_of_the_stream_is_not_swallowed(captioner):
    def broken():
        yield from jobs(captioner, 2)
        raise OSError("the reader died")

    with pytest.raises(OSError, match="the reader died"):
        list(captioner.caption(broken()))


def test_an_unknown_back_end_is_an_error():
    with pytest.raises(SettingsError, match="choose from hf"):
        load_captioner(ModelSpec("no-such", "model"))
