"""Features of clips that several requests show: computed once, kept within a bound, the same texts."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reelscribe.models.captioner import generation_config
from reelscribe.models.chat import policy_from_processor
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.hf.vision import GRIDS, PIXELS, VisionFeatures, can_share
from reelscribe.models.loading import HFOptions, LoadedModel
from reelscribe.types import CaptionRequest, Clip, RequestId

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = (
    "Describe the video in one sentence.", "What happens in the video?", "How long is the video?",
    "Describe the input video in 1-2 sentences.",
)  # fmt: skip
SIZES = ((8, 96, 160), (6, 128, 128), (4, 160, 96))


@pytest.fixture
def build(loaded):
    def build_one(**options):
        model = LoadedModel(loaded.model, loaded.processor, HFOptions(**options))
        policy = policy_from_processor(loaded.processor)
        return HFCaptioner(model, policy=policy, generation=generation_config({"max_tokens": 32}))

    return build_one


def clip_of(number):
    frames, height, width = SIZES[number % len(SIZES)]
    pixels = np.full((frames, height, width, 3), 20, np.uint8)
    for index, frame in enumerate(pixels):
        frame[30:60, 10 * index : 10 * index + 30] = np.roll((220, 40, 40), number)
    seconds = 1.5 + number
    return Clip(
        pixels, np.arange(frames) * seconds / frames, duration_seconds=seconds, source_fps=frames / seconds,
        source_height=height, source_width=width,
    )  # fmt: skip


def asked(clips):
    """A request for each clip, with one prompt after the other."""
    for row, clip in enumerate(clips):
        yield CaptionRequest(RequestId(row, 0), "v.mp4", PROMPTS[row % len(PROMPTS)], seed=row), clip


@pytest.fixture
def encoded(loaded):
    """Patches that the vision encoder saw, call by call."""
    seen = []
    hook = loaded.model.model.visual.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    yield seen
    hook.remove()


def patches(clips):
    return sum(len(clip.frames) // 2 * (clip.frames.shape[1] // 16) * (clip.frames.shape[2] // 16) for clip in clips)


def told(captioner, jobs):
    results = {result.request_id.row: result for result in captioner.caption(jobs)}
    assert {result.failure for result in results.values()} == {None}
    return results


def plainly(captioner, jobs):
    """What a captioner says that shares nothing."""
    captioner._vision = None
    return told(captioner, jobs)


def assert_same(shared, plain):
    assert [[one.text for one in shared[row].candidates] for row in plain] == [
        [one.text for one in plain[row].candidates] for row in plain
    ]
    for row, result in plain.items():
        assert shared[row].usage == result.usage
        assert shared[row].candidates[0].mean_logprob == pytest.approx(result.candidates[0].mean_logprob, abs=1e-4)


def test_in_a_batch_each_clip_is_encoded_once_and_the_texts_are_the_same(build, encoded):
    clips = [clip_of(number) for number in range(3)]
    shown = [clips[number] for number in (0, 1, 0, 2, 1, 0, 0)]
    shared = told(build(max_batch_size=7), asked(shown))
    assert encoded == [patches(clips)]
    assert_same(shared, plainly(build(max_batch_size=7), asked(shown)))


def test_over_batches_each_clip_is_encoded_once_and_the_texts_are_the_same(build, encoded):
    clips = [clip_of(number) for number in range(4)]
    shown = [clip for clip in clips for _ in range(5)]
    shared = told(build(max_batch_size=3), asked(shown))
    assert sum(encoded) <= patches(clips) + patches(clips[:1])  # what comes after the first batch may not be known yet
    assert_same(shared, plainly(build(max_batch_size=3), asked(shown)))


def test_read_only_frames_are_shared_too(build, encoded):
    clip = clip_of(0)
    clip.frames.flags.writeable = False
    told(build(max_batch_size=3), asked([clip] * 3))
    assert encoded == [patches([clip])]


def test_pixels_of_a_repeated_clip_are_prepared_once(build):
    captioner, clips = build(), [clip_of(0), clip_of(1)]
    inputs = captioner._inputs([captioner._job(*job) for job in asked([clips[0], clips[1], clips[0]])])
    assert len(inputs[PIXELS]) == patches(clips)
    assert inputs[GRIDS].tolist() == [[4, 6, 10], [3, 8, 8], [4, 6, 10]]


def test_times_are_those_of_each_request(build, loaded):
    clip = clip_of(0)
    later = Clip(clip.frames, clip.pts_seconds + 7, duration_seconds=9, source_fps=4, source_height=9, source_width=9)
    captioner = build()
    inputs = captioner._inputs([captioner._job(*job) for job in asked([clip, later])])
    said = [loaded.processor.tokenizer.decode(ids) for ids in inputs["input_ids"]]
    assert ["<0.1 seconds>" in one for one in said] == [True, False]
    assert ["<7.1 seconds>" in one for one in said] == [False, True]


def test_a_failing_request_leaves_the_others_of_its_clip_their_texts(build):
    clip = clip_of(0)
    jobs = [*asked([clip] * 3)]
    jobs[1] = CaptionRequest(RequestId(1, 0), "v.mp4", "a <|video_pad|> in the prompt"), clip
    results = {result.request_id.row: result.failure for result in build().caption(jobs)}
    assert [results[row] is None for row in range(3)] == [True, False, True]


def test_without_repeats_nothing_is_computed_beforehand_or_kept(build, monkeypatch):
    captioner = build(max_batch_size=2)
    monkeypatch.setattr(captioner._vision, "_features", None)
    told(captioner, asked([clip_of(number) for number in range(5)]))
    assert captioner._vision._kept == OrderedDict()


def test_nothing_is_kept_when_a_stream_has_ended(build):
    captioner, clip = build(max_batch_size=2), clip_of(0)
    told(captioner, asked([clip] * 4))
    assert captioner._vision._kept == OrderedDict()


def test_a_model_that_takes_no_features_shares_nothing(loaded):
    class Other:
        get_video_features = None

        def forward(self, input_ids, pixel_values_videos): ...

    assert can_share(loaded.model, loaded.processor)
    assert not can_share(Other(), loaded.processor)


# what is kept, with an encoder that doubles


class Doubling:
    """One patch makes one feature, twice its value, and one layer deeper four times."""

    def __init__(self):
        self.seen = []

    def get_video_features(self, pixel_values_videos, video_grid_thw, return_dict):
        self.seen.append(pixel_values_videos.flatten().tolist())
        parts = pixel_values_videos.split(video_grid_thw.prod(-1).tolist())
        return SimpleNamespace(
            pooler_output=tuple(2 * part for part in parts), deepstack_features=[tuple(4 * part for part in parts)]
        )


def inputs_of(*values):
    """Clips of one patch each."""
    return {PIXELS: torch.tensor(values)[:, None], GRIDS: torch.ones(len(values), 3, dtype=torch.long), "rest": 1}


def some_frames(count):
    return [np.zeros((1, 1, 1, 3), np.uint8) for _ in range(count)]


def features_in(inputs):
    video = inputs["mm_encoder_outputs"]["video"]
    return torch.cat(video.pooler_output).tolist(), torch.cat(video.deepstack_features[0]).tolist()


def test_features_stand_in_the_order_of_the_requests():
    a, b = some_frames(2)
    inputs = {PIXELS: torch.tensor([[1.0], [5.0]]), GRIDS: torch.ones(3, 3, dtype=torch.long), "rest": 1}
    made = VisionFeatures(Doubling()).in_place_of_pixels(inputs, [a, b, a], later=[])
    assert PIXELS not in made
    assert made["rest"] == 1
    assert features_in(made) == ([[2.0], [10.0], [2.0]], [[4.0], [20.0], [4.0]])


def test_a_clip_that_comes_later_is_kept_until_then():
    model, (a, b, c) = Doubling(), some_frames(3)
    vision = VisionFeatures(model)
    vision.in_place_of_pixels(inputs_of(1.0, 2.0), [a, b], later=[b])
    made = vision.in_place_of_pixels(inputs_of(2.0, 3.0), [b, c], later=[])
    assert model.seen == [[1.0, 2.0], [3.0]]
    assert features_in(made)[0] == [[4.0], [6.0]]
    made = vision.in_place_of_pixels(inputs_of(2.0), [b], later=[])
    assert len(model.seen) == 2


def test_where_nothing_is_repeated_the_inputs_stay_as_they_are():
    vision, frames, inputs = VisionFeatures(Doubling()), some_frames(4), inputs_of(1.0, 2.0)
    assert vision.in_place_of_pixels(inputs, frames[:2], later=frames[2:]) is inputs


def test_what_is_kept_is_bounded_and_the_oldest_goes():
    model, (a, b, c) = Doubling(), some_frames(3)
    vision = VisionFeatures(model, max_bytes=16)  # two clips of two float32 features
    for number, one in enumerate((a, b, c)):
        vision.in_place_of_pixels(inputs_of(float(number)), [one], later=[one])
    assert len(vision._kept) == 2
    for number, one in ((2, c), (1, b)):
        vision.in_place_of_pixels(inputs_of(float(number)), [one], later=[one])
    assert model.seen == [[0.0], [1.0], [2.0]]
    vision.in_place_of_pixels(inputs_of(0.0), [a], later=[a])
    assert model.seen[3:] == [[0.0]]
    assert len(vision._kept) == 2


def test_features_go_with_their_clip():
    vision, frames = VisionFeatures(Doubling()), some_frames(2)
    vision.in_place_of_pixels(inputs_of(1.0), [frames[0]], later=[frames[0]])
    del frames[0]
    vision.in_place_of_pixels(inputs_of(2.0), frames, later=[])
    assert vision._kept == OrderedDict()
