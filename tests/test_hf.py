"""The transformers captioner on the bundled checkpoint, and on tiny random models of other families."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from reelscribe.errors import ModelError, SettingsError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import SAMPLED_TEMPERATURE, SAMPLED_TOP_P, generation_config, resolve_sampling
from reelscribe.models.chat import BUNDLED_MODELS, chat_messages, policy_from_processor
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.hf.interrupt import Stopped, stops_when
from reelscribe.models.loading import HFOptions, LoadedModel, load_model, own_device
from reelscribe.types import CaptionRequest, Clip, RequestId
from reelscribe.video.frames.moments import FrameSettings

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = BUNDLED_MODELS["reelscribe/shapes"]
PROMPT = "Describe the input video in 1-2 sentences."
SOON = 60
"""Seconds after which something that must happen at once has not happened."""
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}


def moving(colour, *, frames=8, height=128, width=160, seconds=2.0, backwards=False, pts=None):
    """A square that crosses the picture from left to right, or backwards."""
    pixels = np.full((frames, height, width, 3), 20, np.uint8)
    side = min(height, width) // 4
    places = np.linspace(0, width - side, frames).astype(int)
    for frame, x in zip(pixels, places[::-1] if backwards else places, strict=True):
        frame[height // 3 : height // 3 + side, x : x + side] = COLOURS[colour]
    times = np.arange(frames) * seconds / frames if pts is None else np.asarray(pts, float)
    return Clip(
        pixels, times, duration_seconds=seconds, source_fps=frames / seconds, source_height=height, source_width=width
    )


def ask(row, *, prompt=PROMPT, candidates=1, seed=None, system=None):
    return CaptionRequest(RequestId(row, 0), "v.mp4", prompt, system, candidates, seed=row if seed is None else seed)


def mixed(count, candidates=lambda row: 1):
    """Clips of different sizes, lengths and prompts."""
    sizes = [(128, 160), (96, 160), (160, 128), (128, 128), (96, 192)]
    prompts = [PROMPT, "What happens in the video?", "How long is the video?", "Describe the video in one sentence."]
    for row in range(count):
        height, width = sizes[row % 5]
        clip = moving(
            list(COLOURS)[row % 4], frames=(8, 4, 6)[row % 3], height=height, width=width,
            seconds=1.5 + row % 4, backwards=row % 2 == 1,
        )  # fmt: skip
        system = "You are a helpful assistant." if row % 7 == 3 else None
        yield ask(row, prompt=prompts[row % 4], candidates=candidates(row), system=system), clip


def texts(results):
    return {result.request_id.row: [one.text for one in result.candidates] for result in results}


@pytest.fixture
def build(loaded):
    """Captioners over one loaded model, with other settings."""

    def build_one(sampling=None, **options):
        model = LoadedModel(loaded.model, loaded.processor, HFOptions(**options))
        config = generation_config({"max_tokens": 48, **(sampling or {})})
        return HFCaptioner(model, policy=policy_from_processor(loaded.processor), generation=config)

    return build_one


def test_it_tells_colour_and_direction(build):
    jobs = [(ask(0), moving("red")), (ask(1), moving("blue", backwards=True))]
    told = texts(build().caption(jobs))
    assert told == {0: ["A red square moves from left to right."], 1: ["A blue square moves from right to left."]}


def test_a_batch_says_what_single_videos_say(build):
    jobs = list(mixed(20))
    together, alone = build(max_batch_size=20), build(max_batch_size=1)
    single = {result.request_id.row: result for result in alone.caption(jobs)}
    for result in together.caption(jobs):
        expected = single[result.request_id.row]
        assert result.candidates[0].text == expected.candidates[0].text
        assert result.candidates[0].mean_logprob == pytest.approx(expected.candidates[0].mean_logprob, abs=1e-4)
        assert result.usage == expected.usage


def generated(loaded, request, clip):
    """What transformers' own `generate` writes, greedily, from the processor's own call."""
    processor, model = loaded.processor, loaded.model
    text = processor.apply_chat_template(chat_messages(request), tokenize=False, add_generation_prompt=True)
    metadata = {
        "fps": 1000, "frames_indices": [round(1000 * t) for t in clip.pts_seconds],
        "total_num_frames": round(1000 * clip.duration_seconds),
    }  # fmt: skip
    inputs = processor(
        text=[text], videos=[clip.frames], video_metadata=[metadata], do_sample_frames=False, do_resize=False,
        cap_pixels_per_frame=False, return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=48)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_greedy_text_is_that_of_generate(build, loaded):
    jobs = list(mixed(8))
    told = texts(build().caption(jobs))
    for request, clip in jobs:
        assert told[request.id.row] == [generated(loaded, request, clip)]


class Calls:
    """Counts vision passes, prefills and decoding steps."""

    def __init__(self, model):
        self.vision = self.prefills = self.steps = 0
        self._hooks = [
            model.model.visual.register_forward_hook(self._saw),
            model.model.language_model.register_forward_hook(self._read, with_kwargs=True),
        ]

    def _saw(self, *_):
        self.vision += 1

    def _read(self, module, args, kwargs, output):
        if kwargs["inputs_embeds"].shape[1] > 1:
            self.prefills += 1
        else:
            self.steps += 1

    def stop(self):
        for hook in self._hooks:
            hook.remove()


@pytest.fixture
def calls(loaded):
    counter = Calls(loaded.model)
    yield counter
    counter.stop()


def test_candidates_share_one_vision_pass_and_one_prefill(build, calls):
    (result,) = build().caption([(ask(0, candidates=8), moving("red"))])
    assert len(result.candidates) == 8
    assert (calls.vision, calls.prefills) == (1, 1)
    assert calls.steps == max(one.tokens for one in result.candidates) - 1


def test_a_batch_shares_one_vision_pass_and_one_prefill(build, calls):
    jobs = list(mixed(6, candidates=lambda row: 1 + row % 3))
    results = list(build().caption(jobs))
    assert [len(result.candidates) for result in results] == [1, 2, 3, 1, 2, 3]
    assert (calls.vision, calls.prefills) == (1, 1)


def test_several_candidates_differ_by_default(build):
    (result,) = build().caption([(ask(0, candidates=12), moving("green"))])
    assert len({one.text for one in result.candidates}) > 1


def test_candidates_do_not_depend_on_the_batch(build):
    jobs = list(mixed(10, candidates=lambda row: 1 + row % 4))
    together = texts(build(max_batch_size=10).caption(jobs))
    assert together == texts(build(max_batch_size=1).caption(jobs))
    assert together == texts(build(max_batch_size=3).caption(jobs[::-1]))


def test_more_candidates_extend_fewer(build):
    few, many = (texts(build({"temperature": 1.2}).caption([(ask(0, candidates=n), moving("red"))]))[0] for n in (2, 6))
    assert many[:2] == few


def test_another_seed_gives_other_candidates(build):
    told = [
        texts(build({"temperature": 1.5}).caption([(ask(0, candidates=6, seed=seed), moving("red"))]))[0]
        for seed in (1, 2)
    ]
    assert told[0] != told[1]


def test_temperature_zero_gives_equal_candidates_from_one_text(build, calls):
    (result,) = build({"temperature": 0}).caption([(ask(0, candidates=3), moving("red"))])
    assert len({one.text for one in result.candidates}) == 1
    assert calls.steps == result.candidates[0].tokens - 1


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"do_sample": True, "temperature": 1e-6, "top_k": 1},
        {"do_sample": True, "temperature": 0.8, "top_k": 1},
    ],
)
def test_a_model_that_is_greedy_in_fact_samples_where_candidates_are_asked_for(own):
    config = generation_config({})
    assert resolve_sampling(config, num_candidates=1, model_defaults=own).greedy
    several = resolve_sampling(config, num_candidates=4, model_defaults=own)
    assert (several.temperature, several.top_p, several.top_k) == (SAMPLED_TEMPERATURE, SAMPLED_TOP_P, 0)


def test_a_model_that_samples_does_so_as_it_says():
    own = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    for count in (1, 4):
        found = resolve_sampling(generation_config({}), num_candidates=count, model_defaults=own)
        assert (found.temperature, found.top_p, found.top_k) == (0.7, 0.8, 20)


def test_length_and_stop_strings_end_a_text(build):
    (cut,) = build({"max_tokens": 3}).caption([(ask(0), moving("red"))])
    assert (cut.candidates[0].finish_reason, cut.candidates[0].tokens) == ("length", 3)
    (stopped,) = build({"stop": " moves"}).caption([(ask(0), moving("red"))])
    assert (stopped.candidates[0].text, stopped.candidates[0].finish_reason) == ("A red square", "stop")


def test_usage_counts_the_prompt_once_without_padding(build, loaded):
    jobs = list(mixed(4, candidates=lambda row: 3))
    for result, (_request, clip) in zip(build().caption(jobs), jobs, strict=True):
        frames, height, width, _ = clip.frames.shape
        assert result.usage.completion_tokens == sum(one.tokens for one in result.candidates)
        assert 0 < result.usage.prompt_tokens - frames // 2 * (height // 32) * (width // 32) < 150


def prompt_of(captioner, loaded, request, clip):
    inputs = captioner._inputs([captioner._job(request, clip)])
    return loaded.processor.tokenizer.decode(inputs["input_ids"][0])


def test_prompts_reach_the_template(build, loaded):
    said = prompt_of(build(), loaded, ask(0, prompt="Which colour?", system="Be brief."), moving("red"))
    assert said.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<")
    assert said.endswith("<|vision_end|>Which colour?<|im_end|>\n<|im_start|>assistant\n")


def test_text_may_stand_first(build, loaded):
    said = prompt_of(build(prompt_order="text_first"), loaded, ask(0, prompt="Which colour?"), moving("red"))
    assert said.startswith("<|im_start|>user\nWhich colour?<")


def test_irregular_times_are_told_exactly(build, loaded):
    clip = moving("red", frames=6, seconds=5.0, pts=[0.05, 0.35, 0.4, 2.2, 4.1, 4.7])
    said = prompt_of(build(), loaded, ask(0), clip)
    assert [f"<{seconds} seconds>" in said for seconds in ("0.2", "1.3", "4.4")] == [True] * 3
    assert said.count(" seconds>") == 3


def test_frames_reach_the_model_at_their_own_size(build):
    captioner = build()
    inputs = captioner._inputs([captioner._job(ask(0), moving("red", frames=4, height=96, width=320))])
    assert inputs["video_grid_thw"].tolist() == [[2, 6, 20]]


def test_read_only_frames_are_fine(build):
    clip = moving("red")
    clip.frames.flags.writeable = False
    (result,) = build().caption([(ask(0), clip)])
    assert result.failure is None


def out_of_memory_above(monkeypatch, captioner, limit, message="CUDA out of memory. Tried to allocate 20.00 GiB"):
    sizes, run = [], captioner._caption_batch

    def caption_batch(batch):
        sizes.append(len(batch.items))
        if len(batch.items) > limit:
            raise torch.OutOfMemoryError(message)
        return run(batch)

    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    return sizes


def test_out_of_memory_halves_the_batch_and_goes_on(build, monkeypatch):
    captioner = build(max_batch_size=8)
    sizes = out_of_memory_above(monkeypatch, captioner, 2)
    jobs = [(ask(row), moving("red")) for row in range(16)]
    results = list(captioner.caption(jobs))
    assert [result.failure for result in results] == [None] * 16
    assert sizes[:3] == [8, 4, 2]
    assert sizes.count(8) == 1
    assert max(sizes[7:]) <= 2


def test_a_video_that_does_not_fit_alone_fails_alone(build, monkeypatch):
    captioner, run = build(), HFCaptioner._caption_batch

    def caption_batch(batch):
        if any(job.clip.frames.shape[0] == 16 for job in batch.items):
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)")
        return run(captioner, batch)

    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    jobs = [(ask(row), moving("red", frames=16 if row == 2 else 4)) for row in range(5)]
    kinds = {r.request_id.row: r.failure and r.failure.kind for r in captioner.caption(jobs)}
    assert kinds == {0: None, 1: None, 2: "out_of_memory", 3: None, 4: None}


def test_only_the_guilty_video_fails(build):
    bad = moving("red", height=100, width=130)
    jobs = [(ask(row), bad if row == 1 else moving("red")) for row in range(4)]
    results = {result.request_id.row: result for result in build().caption(jobs)}
    assert [results[row].failure is None for row in range(4)] == [True, False, True, True]
    assert results[1].failure.kind == "model_error"
    poisoned = [(ask(0), moving("red")), (ask(1, prompt="a <|video_pad|> in the prompt"), moving("red"))]
    assert [result.failure is None for result in build().caption(poisoned)] == [True, False]


def unprepared(monkeypatch, captioner, is_bad, error):
    """Let preparing raise `error` for batches with a bad job; the rows of each batch, and who prepared it."""
    asked, prepare = [], captioner._inputs

    def inputs(jobs):
        asked.append(([job.request.id.row for job in jobs], threading.current_thread().name))
        if any(map(is_bad, jobs)):
            raise error
        return prepare(jobs)

    monkeypatch.setattr(captioner, "_inputs", inputs)
    return asked


def test_a_video_that_cannot_be_prepared_fails_alone(build, monkeypatch):
    captioner = build(max_batch_size=3)
    unprepared(monkeypatch, captioner, lambda job: job.request.id.row == 1, ValueError("bad pixels"))
    results = {r.request_id.row: r.failure for r in captioner.caption([(ask(row), moving("red")) for row in range(7)])}
    assert results.pop(1).message == "ValueError: bad pixels"
    assert results == dict.fromkeys((0, 2, 3, 4, 5, 6))


def test_memory_that_ends_while_preparing_halves_the_batch(build, monkeypatch):
    captioner = build(max_batch_size=4)
    error = torch.OutOfMemoryError("CUDA out of memory")
    asked = unprepared(monkeypatch, captioner, lambda job: False, error)
    prepare = captioner._inputs

    def inputs(jobs):
        if len(jobs) > 2:
            asked.append(([job.request.id.row for job in jobs], ""))
            raise error
        return prepare(jobs)

    monkeypatch.setattr(captioner, "_inputs", inputs)
    results = list(captioner.caption([(ask(row), moving("red")) for row in range(8)]))
    assert [result.failure for result in results] == [None] * 8
    assert asked[0][0] == [0, 1, 2, 3]
    assert max(len(rows) for rows, _ in asked[-2:]) <= 2


def test_a_video_that_fits_alone_but_not_beside_a_prepared_batch_is_tried_alone(build, monkeypatch):
    captioner, told = build(max_batch_size=1), []
    monkeypatch.setattr("reelscribe.models.hf.captioner.leaves_a_core", lambda device: True)
    run = captioner._caption_batch

    def caption_batch(batch):
        told.append((batch.items[0].request.id.row, batch.has_neighbours))
        if batch.has_neighbours and batch.items[0].request.id.row == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch)

    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    results = list(captioner.caption([(ask(row), moving("red")) for row in range(3)]))
    assert [result.failure for result in results] == [None] * 3
    assert told == [(0, True), (1, True), (1, False), (2, True)]


def test_the_next_batch_is_prepared_while_the_present_one_runs(build, monkeypatch):
    monkeypatch.setattr("reelscribe.models.hf.captioner.leaves_a_core", lambda device: True)
    captioner, second = build(max_batch_size=2), threading.Event()
    prepare, run = captioner._inputs, captioner._caption_batch

    def inputs(jobs):
        made = prepare(jobs)
        if jobs[0].request.id.row == 2:
            second.set()
        return made

    def caption_batch(batch):
        assert threading.current_thread() is threading.main_thread()
        assert second.wait(SOON)
        return run(batch)

    monkeypatch.setattr(captioner, "_inputs", inputs)
    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    assert all(result.failure is None for result in captioner.caption([(ask(row), moving("red")) for row in range(4)]))


@pytest.mark.parametrize("spare", [True, False])
def test_who_prepares_depends_on_whether_a_core_is_left(build, monkeypatch, spare):
    monkeypatch.setattr("reelscribe.models.hf.captioner.leaves_a_core", lambda device: spare)
    captioner = build()
    asked = unprepared(monkeypatch, captioner, lambda job: False, None)
    list(captioner.caption([(ask(0), moving("red"))]))
    assert [name for _, name in asked] == ["prepare-batches" if spare else threading.current_thread().name]


def test_results_leave_while_the_next_clip_is_waited_for(build):
    answered = threading.Event()

    def clips():
        yield ask(0), moving("red")
        assert answered.wait(SOON)
        yield ask(1), moving("blue")

    stream = build(max_batch_size=8, max_batch_wait_seconds=0.01).caption(clips())
    assert next(stream).request_id.row == 0
    answered.set()
    assert [result.request_id.row for result in stream] == [1]


def captioning_threads():
    return [thread.name for thread in threading.enumerate() if thread.name in ("puller", "prepare-batches")]


def test_an_error_of_the_clips_comes_out_and_ends_the_threads(build):
    def broken():
        yield ask(0), moving("red")
        raise OSError("the reader died")

    with pytest.raises(OSError, match="the reader died"):
        list(build(max_batch_size=1).caption(broken()))
    assert captioning_threads() == []


def test_closing_early_closes_the_clips_and_ends_the_threads(build):
    closed = threading.Event()

    def endless():
        try:
            yield from ((ask(row), moving("red")) for row in range(10**9))
        finally:
            closed.set()

    stream = build(max_batch_size=2).caption(endless())
    next(stream)
    stream.close()
    assert closed.is_set()
    assert captioning_threads() == []


def test_an_interrupt_while_the_model_runs_comes_out_and_ends_the_threads(build, monkeypatch):
    captioner = build(max_batch_size=1)

    def caption_batch(batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    with pytest.raises(KeyboardInterrupt):
        list(captioner.caption([(ask(row), moving("red")) for row in range(4)]))
    assert captioning_threads() == []


def test_the_time_at_work_is_told(build):
    captioner = build(max_batch_size=2)
    assert captioner.busy_seconds == {"prepare": 0.0, "model": 0.0}
    list(captioner.caption([(ask(row), moving("red")) for row in range(4)]))
    first = captioner.busy_seconds
    assert min(first.values()) > 0
    list(captioner.caption([(ask(0), moving("red"))]))
    assert all(captioner.busy_seconds[name] > seconds for name, seconds in first.items())


def test_preparing_beside_the_model_leaves_torch_its_threads(build, monkeypatch):
    monkeypatch.setattr("reelscribe.models.hf.captioner.leaves_a_core", lambda device: True)
    captioner, seen = build(), []
    prepare = captioner._inputs
    monkeypatch.setattr(captioner, "_inputs", lambda jobs: (seen.append(torch.get_num_threads()), prepare(jobs))[1])
    torch.set_num_threads(2)
    try:
        list(captioner.caption([(ask(0), moving("red"))]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


@pytest.fixture
def two_cores():
    """torch computes on two cores, so that the captioners built here run two batches side by side."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def both(build, monkeypatch, two_cores):
    """A captioner of single videos, and what runs in its lanes instead of the model's work: the test's own function."""
    captioner = build(max_batch_size=1, max_batch_wait_seconds=0.01)
    run = captioner._caption_batch

    def set_work(function):
        monkeypatch.setattr(captioner, "_caption_batch", lambda batch: function(run, batch))
        return captioner

    return set_work


def row_of(batch):
    return batch.items[0].request.id.row


def test_on_a_cpu_two_batches_run_side_by_side_each_on_its_part_of_the_cores(both):
    meet, seen = threading.Barrier(2), set()

    def work(run, batch):
        if row_of(batch) < 4:
            meet.wait(SOON)
            seen.add((threading.get_ident(), torch.get_num_threads()))
        return run(batch)

    results = list(both(work).caption([(ask(row), moving("red")) for row in range(7)]))
    assert sorted(result.request_id.row for result in results) == list(range(7))
    assert len(seen) == 2
    assert {cores for _, cores in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert torch.get_num_threads() == 2
    assert captioning_threads() == []


def begins_late(captioner):
    """Let each batch begin when the end of the clips has been seen, which is a race otherwise."""
    prepare = captioner._inputs

    def inputs(jobs):
        until = time.monotonic() + SOON
        while "prepare-batches" in captioning_threads() and time.monotonic() < until:
            time.sleep(0.01)
        return prepare(jobs)

    captioner._inputs = inputs
    return captioner


def test_the_last_batch_has_all_cores(both):
    seen = []

    def work(run, batch):
        seen.append(torch.get_num_threads())
        return run(batch)

    def one():
        yield ask(0), moving("red")

    captioner = begins_late(both(work))
    for _ in range(3):
        list(captioner.caption(one()))
    assert seen == [2, 2, 2]


def test_side_by_side_they_say_what_they_say_alone(build, two_cores):
    jobs = list(mixed(24, candidates=lambda row: 1 + row % 3))
    torch.set_num_threads(1)
    alone = texts(build().caption(jobs))
    torch.set_num_threads(2)
    assert texts(build(max_batch_size=2).caption(jobs)) == alone


def test_a_video_that_fits_only_while_nothing_runs_beside_it_is_tried_alone(both):
    running, most, tried = [], [], []
    beside = threading.Event()

    def work(run, batch):
        row = row_of(batch)
        running.append(row)
        try:
            if row == 0 and batch.has_neighbours:
                assert beside.wait(SOON)
                tried.append("beside")
                raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")
            beside.set()
            if row == 0:
                tried.append("alone")
                most.append(len(running))
            return run(batch)
        finally:
            running.remove(row)

    results = list(both(work).caption([(ask(row), moving("red")) for row in range(5)]))
    assert [result.failure for result in results] == [None] * 5
    assert tried == ["beside", "alone"]
    assert most == [1]


def test_two_that_want_to_be_alone_are_so_one_after_the_other(both):
    meet, inside = threading.Barrier(2), []

    def work(run, batch):
        if batch.has_neighbours:
            meet.wait(SOON)
            raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")
        inside.append(1)
        assert len(inside) == 1
        made = run(batch)
        inside.clear()
        return made

    results = list(both(work).caption([(ask(row), moving("red")) for row in range(4)]))
    assert [result.failure for result in results] == [None] * 4


def test_a_clip_that_is_in_two_batches_at_once_is_looked_at_once(build, monkeypatch, two_cores):
    captioner, clip, seen = build(max_batch_size=1), moving("red"), []
    meet, read, features = threading.Barrier(2), captioner._read, captioner._model.get_video_features

    def read_together(batch):
        meet.wait(SOON)
        return read(batch)

    monkeypatch.setattr(captioner, "_read", read_together)
    monkeypatch.setattr(
        captioner._model, "get_video_features", lambda *args, **named: (seen.append(1), features(*args, **named))[1]
    )
    told = texts(captioner.caption([(ask(row), clip) for row in range(4)]))
    assert set(map(tuple, told.values())) == {("A red square moves from left to right.",)}
    assert len(seen) == 1


def test_answers_of_one_lane_leave_while_the_other_is_at_work(both):
    answered = threading.Event()

    def work(run, batch):
        if row_of(batch) == 0:
            assert answered.wait(SOON)
        return run(batch)

    stream = both(work).caption([(ask(row), moving("red")) for row in range(2)])
    assert next(stream).request_id.row == 1
    answered.set()
    assert [result.request_id.row for result in stream] == [0]


def test_an_error_of_the_clips_waits_for_the_batches_at_work(both):
    inside, raised = threading.Semaphore(0), threading.Event()

    def broken():
        yield ask(0), moving("red")
        yield ask(1), moving("red")
        for _ in range(2):
            assert inside.acquire(timeout=SOON)
        raised.set()
        raise OSError("the reader died")

    def work(run, batch):
        inside.release()
        assert raised.wait(SOON)
        return run(batch)

    results = both(work).caption(broken())
    assert {next(results).request_id.row, next(results).request_id.row} == {0, 1}
    with pytest.raises(OSError, match="the reader died"):
        next(results)
    assert captioning_threads() == []


def test_closing_early_breaks_off_what_runs(both):
    ended, begun = Counter(), threading.Semaphore(0)

    def work(run, batch):
        if row_of(batch) == 0:
            return run(batch)
        try:
            begun.release()
            while True:
                run(batch)
        except BaseException as exc:
            ended[type(exc).__name__] += 1
            raise

    stream = both(work).caption((ask(row), moving("red")) for row in range(10**9))
    assert next(stream).request_id.row == 0
    assert begun.acquire(timeout=SOON)
    assert begun.acquire(timeout=SOON)
    stream.close()
    assert ended == {"Stopped": 2}
    assert captioning_threads() == []


def test_a_model_that_was_broken_off_goes_on_elsewhere(both, loaded):
    told = texts(both(lambda run, batch: run(batch)).caption([(ask(0), moving("red"))]))
    with stops_when(lambda: True), pytest.raises(Stopped):
        generated(loaded, ask(0), moving("red"))
    assert told == {0: [generated(loaded, ask(0), moving("red"))]}


def test_a_lane_that_breaks_ends_the_others(both):
    def work(run, batch):
        if row_of(batch) == 3:
            raise KeyboardInterrupt
        return run(batch)

    pulled = []

    def clips():
        for row in range(10**9):
            pulled.append(row)
            yield ask(row), moving("red")

    with pytest.raises(KeyboardInterrupt):
        list(both(work).caption(clips()))
    assert len(pulled) < 50
    assert captioning_threads() == []


def test_two_batches_side_by_side_count_as_one_model(both):
    """While one of them is waited for, half of the time counts."""
    first, second = threading.Event(), threading.Event()

    def work(run, batch):
        if row_of(batch) == 0:
            assert first.wait(SOON)
        else:
            first.set()
            assert second.wait(SOON)
            time.sleep(0.5)
        return run(batch)

    captioner = both(work)
    results = captioner.caption([(ask(row), moving("red")) for row in range(2)])
    assert next(results).request_id.row == 0
    before, began = captioner.busy_seconds["model"], time.monotonic()
    second.set()
    assert next(results).request_id.row == 1
    assert captioner.busy_seconds["model"] - before < 0.6 * (time.monotonic() - began)


def test_a_single_video_keeps_the_whole_model_busy(both):
    def work(run, batch):
        time.sleep(0.5)
        return run(batch)

    captioner = begins_late(both(work))
    list(captioner.caption([(ask(0), moving("red"))]))
    assert captioner.busy_seconds["model"] >= 0.5


def test_how_many_videos_are_in_the_model_at_once_is_told(build, two_cores):
    jobs = [(ask(row), moving("red")) for row in range(10)]
    assert build(max_batch_size=4).videos_at_once(jobs) == 2 * 4
    torch.set_num_threads(1)
    captioner = build(max_batch_size=4)
    assert captioner.videos_at_once(jobs) == 4
    assert captioner.videos_at_once(jobs[:3]) == 3
    assert captioner.cores == 1


def test_a_message_is_cut(build, monkeypatch):
    captioner = build()

    def caption_batch(batch):
        raise ValueError(f"bad pixels: {list(range(10_000))}")

    monkeypatch.setattr(captioner, "_caption_batch", caption_batch)
    (result,) = captioner.caption([(ask(0), moving("red"))])
    assert result.failure.message.startswith("ValueError: bad pixels")
    assert len(result.failure.message) <= 300


def test_a_missing_clip_is_a_bug(build):
    with pytest.raises(TypeError, match="has no clip"):
        list(build().caption([(ask(0), None)]))


def test_transformers_settings_are_put_back(build):
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    list(build().caption([(ask(0), moving("red"))]))
    assert (chatter.get_verbosity(), chatter.is_progress_bar_enabled()) == (level, bars)


# Loading


def load(model="reelscribe/shapes", **options):
    return load_captioner(ModelSpec("hf", str(model), options=options))


def test_frame_settings_change_the_policy():
    spec = ModelSpec("hf", "reelscribe/shapes", frames=FrameSettings(fps=1, max_frames=6))
    policy = load_captioner(spec).policy
    assert (policy.sampler, policy.sizer, policy.multiple) == ("linspace", "video_budget", 32)
    assert (policy.fps, policy.max_frames) == (1, 6)


def test_the_policy_is_the_processors(loaded):
    policy, video = policy_from_processor(loaded.processor), loaded.processor.video_processor
    assert (policy.fps, policy.min_frames, policy.max_frames) == (video.fps, video.min_frames, video.max_frames)
    assert (policy.min_pixels, policy.max_pixels) == (video.size["shortest_edge"], video.size["longest_edge"])
    assert policy.frame_cap_tokens is None


def test_the_cap_of_a_processor_is_followed(loaded, monkeypatch):
    monkeypatch.setattr(loaded.processor.video_processor, "cap_pixels_per_frame", True)
    assert policy_from_processor(loaded.processor).frame_cap_tokens == 768


def test_on_the_cpu_it_computes_in_float32_unless_told():
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("a better device is there")
    assert load()._model.dtype == torch.float32
    told = load(device="cpu", dtype="bfloat16", attn_implementation="eager")._model
    assert (told.dtype, told.config._attn_implementation) == (torch.bfloat16, "eager")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_sizes": 4}, "did you mean max_batch_size"),
        ({"attn_implementations": "sdpa"}, "did you mean attn_implementation"),
        ({"zzz": 4}, "besides from_pretrained's arguments it has prompt_order, chat_template_kwargs, device"),
        ({"max_batch_size": 0}, "greater than 0; got 0"),
        ({"prompt_order": "last"}, "video_first.*got 'last'"),
        ({"dtype": "f16"}, "dtype must be.*got 'f16'"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"trust_remote_code": "yes"}, "must be true or false"),
    ],
)
def test_parameters_that_mean_nothing_are_errors(options, words):
    with pytest.raises(SettingsError, match=words):
        load(**options)


def test_parameters_are_not_changed():
    options = {"torch_dtype": "float32", "max_batch_size": 2}
    load_captioner(ModelSpec("hf", "reelscribe/shapes", options=options))
    assert options == {"torch_dtype": "float32", "max_batch_size": 2}


@pytest.fixture
def copy(tmp_path):
    """A copy of the bundled model that a test may break."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    return folder


def without_video_processor(folder: Path):
    for name in ("processor_config", "preprocessor_config", "video_preprocessor_config"):
        (folder / f"{name}.json").unlink()


def text_model(folder: Path):
    without_video_processor(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 627, "hidden_size": 64}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "processor_class": None}))


def remote_code(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForImageTextToText": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": auto_map}))


def fewer_weights(folder: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.language_model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "check that it is complete"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "futurevl"}'),
            "does not know its architec",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100), "check that it is complete"),
        (lambda folder: (folder / "model.safetensors").unlink(), "check that it is complete"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (fewer_weights, "lacks weights .1, such as model.language_model.norm.weight"),
        (without_video_processor, "choose a video model"),
        (text_model, "takes no videos"),
        (remote_code, "'trust_remote_code': True"),
    ],
)
def test_a_broken_model_is_one_clear_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(ModelError, match=words) as caught:
        load(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ModelError, match=f"{name}' does not exist"):
        load(name)


def test_a_name_that_is_not_on_this_machine_is_an_error():
    with pytest.raises(ModelError, match="'reelscribe/no-such-model' cannot be loaded: .*not on this machine"):
        load("reelscribe/no-such-model", local_files_only=True)


# Other families: tiny, random


def tiny_text(vocabulary, **changes):
    return {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
        **changes,
    }  # fmt: skip


def save(model, processor, folder):
    from reelscribe.models.loading import quiet_transformers

    model.generation_config.eos_token_id = 2
    with quiet_transformers():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen25(tmp_path_factory):
    import transformers as hf

    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size),
        tokenizer=hf.AutoTokenizer.from_pretrained(DEMO),
        video_processor=hf.Qwen2VLVideoProcessor(size=size),
        chat_template=(DEMO / "chat_template.jinja").read_text(),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = hf.Qwen2_5_VLConfig(
        text_config=tiny_text(627, rope_parameters=rope), vision_config=vision,
        image_token_id=12, video_token_id=13, vision_start_token_id=9, vision_end_token_id=10,
    )  # fmt: skip
    return save(hf.Qwen2_5_VLForConditionalGeneration(config), processor, tmp_path_factory.mktemp("qwen25"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    size = {"height": 56, "width": 56}
    template = (
        (DEMO / "chat_template.jinja").read_text().replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>")
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56]]),
        tokenizer=tokenizer, video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16, vision_feature_select_strategy="full", chat_template=template,
    )  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    config = hf.LlavaOnevisionConfig(
        text_config=tiny_text(640, model_type="qwen2"), vision_config=vision, image_grid_pinpoints=[[56, 56]],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), vision_feature_select_strategy="full",
    )  # fmt: skip
    return save(hf.LlavaOnevisionForConditionalGeneration(config), processor, tmp_path_factory.mktemp("llava"))


SHORT = generation_config({"max_tokens": 6})


@pytest.mark.parametrize("family", ["qwen25", "llava"])
def test_other_families_say_in_a_batch_what_they_say_alone(family, request):
    captioner = load_captioner(ModelSpec("hf", str(request.getfixturevalue(family)), generation=SHORT))
    sizes = [(8, 56, 84), (4, 84, 84), (6, 112, 56), (8, 56, 84)]
    jobs = [
        (ask(row, prompt="Go. " * (row + 1)), moving("red", frames=t, height=h, width=w))
        for row, (t, h, w) in enumerate(sizes)
    ]
    together = {result.request_id.row: result for result in captioner.caption(jobs)}
    assert [together[row].failure for row in range(4)] == [None] * 4
    for job in jobs:
        (alone,) = captioner.caption([job])
        among = together[alone.request_id.row].candidates[0]
        assert among.text == alone.candidates[0].text
        assert among.mean_logprob == pytest.approx(alone.candidates[0].mean_logprob, abs=1e-4)
    (several,) = captioner.caption([(ask(0, candidates=4), jobs[0][1])])
    assert len({one.text for one in several.candidates}) > 1


@pytest.mark.parametrize(("family", "pixel_rows"), [("qwen25", 2 * 4 * 4 * 6), ("llava", 2)])
def test_other_families_say_of_a_repeated_clip_what_they_say_of_it_alone(family, pixel_rows, request):
    captioner = load_captioner(ModelSpec("hf", str(request.getfixturevalue(family)), generation=SHORT))
    assert captioner._vision is not None
    clips = [moving(colour, frames=8, height=56, width=84) for colour in ("red", "blue")]
    jobs = [(ask(row, prompt="Go. " * (row + 1)), clips[row % 2]) for row in range(5)]
    together = {result.request_id.row: result for result in captioner.caption(jobs)}
    for job in jobs:
        (alone,) = captioner.caption([job])
        among = together[alone.request_id.row].candidates[0]
        assert among.text == alone.candidates[0].text
        assert among.mean_logprob == pytest.approx(alone.candidates[0].mean_logprob, abs=1e-4)
    assert len(captioner._inputs([captioner._job(*job) for job in jobs])["pixel_values_videos"]) == pixel_rows


def test_qwen25_is_exact_and_greedy_like_generate(qwen25):
    loaded = load_model(str(qwen25), {})
    policy = policy_from_processor(loaded.processor)
    assert (policy.sampler, policy.sizer, policy.multiple, policy.fps) == ("stride", "frame_budget", 28, 2.0)
    assert (policy.min_pixels, policy.max_pixels) == (56 * 56, 28 * 28 * 16)
    captioner = HFCaptioner(loaded, policy=policy, generation=generation_config({"max_tokens": 48}))
    job = ask(0), moving("red", frames=8, height=56, width=84, seconds=7.0)
    assert texts(captioner.caption([job]))[0] == [generated(loaded, *job)]


def test_an_unknown_family_gets_moderate_frames_and_its_own_resizing(llava):
    captioner = load_captioner(ModelSpec("hf", str(llava), generation=SHORT))
    assert (captioner.policy.sizer, captioner.policy.fps, captioner.policy.max_frames) == ("fit", 2.0, 32)
    jobs = [(ask(row), moving("red", frames=(4, 6)[row % 2])) for row in range(4)]
    counted = Counter(len({job.group for job in batch}) for batch in [[captioner._job(*job) for job in jobs]])
    assert counted == {2: 1}
    assert captioner._estimate(*jobs[0]) > 4 * 1024
    list(captioner.caption(jobs))
    assert captioner._estimate(*jobs[0]) < 500


@pytest.mark.parametrize(
    ("device", "rank", "own"),
    [("cuda", None, "cuda"), ("cuda", 0, "cuda:0"), ("cuda", 5, "cuda:1"), ("cuda:1", 0, "cuda:1"), ("cpu", 3, "cpu")],
)
def test_each_process_takes_its_own_card(monkeypatch, device, rank, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(device, rank) == own
