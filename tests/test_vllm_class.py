"""What vLLM's class for a model takes of a video: asked before an engine starts, refused with a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from families.registry import FAMILIES
from reelscribe.errors import ModelError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.chat import BUNDLED_MODELS, frame_arguments, policy_from_processor
from reelscribe.models.loading import load_processor
from reelscribe.models.vllm.captioner import VLLMOptions, _Engine
from reelscribe.models.vllm.model_class import EngineClass, check_videos, writes_times
from reelscribe.types import CaptionRequest, RequestId

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # transformers' own, for GLM
]


def found(**changes):
    known = {"takes_videos": True, "takes_times": True, "is_fallback": False, "is_hybrid": False}
    return EngineClass(name="SomeModel", **{**known, **changes})


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """The processor of a family, or of the bundled model, by name."""
    made = {}

    def one(name):
        if name not in made:
            bundled = BUNDLED_MODELS.get(name)
            made[name] = load_processor(str(bundled or FAMILIES[name].save(tmp_path_factory.mktemp(name))), {})
        return made[name]

    return one


@pytest.mark.parametrize(
    ("family", "writes"),
    [
        ("reelscribe/shapes", True),  # in the text: <0.2 seconds>
        ("video_llama_3", True),  # in the text: Time 1.0s
        ("glm4v", True),  # in the text, a number a frame
        ("qwen2_5_vl", True),  # in the positions: seconds of a step
        ("llava_onevision", False),
        ("internvl", False),
        ("video_llava", False),
    ],
)
def test_whether_a_model_is_told_times_is_found_out_from_its_processor(processors, family, writes):
    processor = processors(family)
    assert writes_times(processor, policy_from_processor(processor)) is writes


def test_a_processor_that_cannot_be_asked_is_no_reason_to_refuse(processors):
    class Odd:
        video_processor = processors("internvl").video_processor

        def apply_chat_template(self, *_, **__):
            raise TypeError("three arguments")

    check_videos(found(takes_times=False), Odd(), policy_from_processor(processors("internvl")))


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("reelscribe/shapes", {}, None),
        ("internvl", {"takes_times": False}, None),
        (
            "internvl",
            {"takes_videos": False, "takes_times": False},
            "runs it with SomeModel, which reads no videos; leave",
        ),
        ("reelscribe/shapes", {"takes_videos": False}, "which reads no videos"),
        ("reelscribe/shapes", {"takes_times": False}, "SomeModel, which drops the times of frames"),
        (
            "video_llama_3",
            {"takes_times": False, "is_fallback": True},
            "SomeModel, transformers' own model, which drops the times of frames",
        ),
        ("video_llama_3", {"is_fallback": True}, None),
    ],
)
def test_a_class_that_would_show_less_than_the_model_is_meant_to_see_is_refused(processors, family, changes, sentence):
    processor = processors(family)
    policy = policy_from_processor(processor)
    if sentence is None:
        check_videos(found(**changes), processor, policy)
        return
    with pytest.raises(ModelError, match=sentence):
        check_videos(found(**changes), processor, policy)


def test_each_videos_own_metadata_say_that_its_frames_are_the_ones_to_show(processors):
    """GLM-4.1V's class looks there alone, and samples again from what it finds."""
    import test_captioner_contract as contract

    processor = processors("glm4v")
    policy = policy_from_processor(processor)
    engine = SimpleNamespace(_processor=processor, _options=VLLMOptions(), _frame_arguments=frame_arguments(processor))
    clip = contract.clip(type("Any", (), {"policy": policy}))
    prompt = _Engine._prompt(engine, CaptionRequest(RequestId(0, 0), "a.mp4", "What?"), clip)
    ((frames, metadata),) = prompt["multi_modal_data"]["video"]
    assert frames is clip.frames
    assert metadata["do_sample_frames"] is False
    assert prompt["mm_processor_kwargs"]["do_sample_frames"] is False
    assert len(metadata["frames_indices"]) == len(frames)


# vLLM itself


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (
            "video_llama_3",
            "cannot be used: vLLM runs it with Transformers.*, which drops the times of frames.*leave out",
        ),
        ("video_llava", "cannot be used: vLLM runs it with Transformers.*, which reads no videos; leave out"),
        pytest.param("smolvlm", "vLLM runs it with SmolVLM.*, which reads no videos", marks=pytest.mark.slow),
        pytest.param(
            "muse_glimmer", "vLLM runs it with Muse.*, which drops the times of frames", marks=pytest.mark.slow
        ),
    ],
)
def test_what_vllm_cannot_show_a_model_is_said_at_the_start(tmp_path, family, sentence):
    if reason := FAMILIES[family].missing():
        pytest.skip(reason)
    with pytest.raises(ModelError, match=sentence):
        load_captioner(ModelSpec("vllm", str(FAMILIES[family].save(tmp_path))))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(("family", "verdict"), [("glm4v", "exact"), ("qwen3_5", "close")])
def test_prompts_and_scores_are_those_of_transformers(family, verdict):
    import vllm_families

    outcome = vllm_families.outcome_of(family)
    assert outcome["verdict"] == verdict, outcome
    assert outcome["ids"] == [True] * 3
    assert outcome["candidates"] == [4] * 3


def test_heads_become_as_wide_as_kernels_of_a_cpu_take_them():
    import vllm_families

    made = vllm_families.wide_text_config(lambda tokens, **settings: settings)(
        None, head_dim=16, rope_parameters={"mrope_section": [2, 3, 3]}
    )
    assert made["head_dim"] == sum(made["rope_parameters"]["mrope_section"]) * 2 == 32
