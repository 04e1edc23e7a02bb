"""What vLLM's engine is started with: defaults, what the user says, names that are not known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.errors import SettingsError
from reelscribe.models.chat import OTHER_POLICY, TOKENS_PER_TIMESTAMP, most_video_tokens
from reelscribe.models.vllm.arguments import (
    DEFAULTS,
    SMALLEST_STEP,
    TEXT_TOKENS,
    EngineSetting,
    engine_arguments,
    longest_clip,
)
from reelscribe.models.vllm.captioner import REQUESTS_PER_ENGINE
from reelscribe.video.frames.moments import FramePolicy, FrameSettings, target_size

KNOWN = [*DEFAULTS, "model", "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "_private"]
QWEN3 = FramePolicy()
"""The policy of Qwen3-VL-8B-Instruct: 2 frames a second, 4 to 768 of them, 25,165,824 pixels."""


class Config:
    def __init__(self, positions=262_144):
        self.text = SimpleNamespace(
            max_position_embeddings=positions, num_key_value_heads=8, num_attention_heads=32, head_dim=128,
            num_hidden_layers=36, hidden_size=4096,
        )  # fmt: skip

    def get_text_config(self, decoder):
        return self.text


def setting(given=None, *, policy=QWEN3, exact=True, on_cpu=False, devices=8, positions=262_144, hybrid=False):
    return EngineSetting(
        policy=policy, exact=exact, config=Config(positions), max_tokens=512, on_cpu=on_cpu, devices=devices, cores=4,
        given=given or {}, hybrid=hybrid,
    )  # fmt: skip


def arguments(given=None, **changes):
    return engine_arguments(setting(given, **changes), known=KNOWN)


def test_one_engine_for_each_card_before_tensor_parallel():
    assert arguments()["data_parallel_size"] == 8
    assert arguments({"tensor_parallel_size": 2})["data_parallel_size"] == 4
    assert arguments({"tensor_parallel_size": 4, "pipeline_parallel_size": 2})["data_parallel_size"] == 1
    assert arguments({"data_parallel_size": 3})["data_parallel_size"] == 3
    assert arguments(devices=0)["data_parallel_size"] == 1


@pytest.mark.parametrize("wrong", [0, -1, "two", True, 1.5])
def test_numbers_of_devices_are_whole_and_above_0(wrong):
    with pytest.raises(SettingsError, match="tensor_parallel_size must be a whole number"):
        arguments({"tensor_parallel_size": wrong})


def test_an_engine_writes_four_candidates_of_all_that_is_in_flight_at_once():
    assert arguments()["max_num_seqs"] == 4 * REQUESTS_PER_ENGINE
    assert arguments(on_cpu=True)["max_num_seqs"] == 8 * 4


def test_a_length_left_to_vllm_is_planned_as_ours():
    assert arguments({"max_model_len": -1})["max_num_batched_tokens"] == arguments()["max_num_batched_tokens"]


def test_one_pass_captioning_keeps_the_prefix_cache_and_not_the_cache_of_inputs():
    made = arguments()
    assert made["enable_prefix_caching"] is True
    assert made["mm_processor_cache_gb"] == 0
    assert made["limit_mm_per_prompt"] == {"video": 1, "image": 0}


def test_lengths_follow_from_what_the_model_is_shown_not_from_what_it_could_read():
    made = arguments()
    assert made["max_model_len"] == longest_clip(setting()) + TEXT_TOKENS + 512
    assert made["max_model_len"] < 32_768
    assert made["max_num_batched_tokens"] >= longest_clip(setting()) >= 12_288
    assert arguments(positions=4096)["max_model_len"] == 4096


def test_fewer_and_smaller_frames_need_less():
    small = QWEN3.override(FrameSettings(max_frames=16, max_pixels=640 * 360))
    made = arguments(policy=small)
    assert made["max_model_len"] < 8192
    assert made["max_num_batched_tokens"] == SMALLEST_STEP


def test_a_length_the_user_sets_bounds_the_step():
    assert arguments({"max_model_len": 9000})["max_num_batched_tokens"] == 9000


def test_on_a_gpu_vllm_decides_what_we_have_no_reason_to():
    alone = {"enforce_eager", "kv_cache_memory_bytes", "dtype", "enable_chunked_prefill", "block_size",
             "max_num_scheduled_tokens"}  # fmt: skip
    assert alone.isdisjoint(arguments())
    assert alone <= set(arguments(on_cpu=True))


def test_on_a_cpu_no_request_is_read_in_pieces():
    made = arguments(on_cpu=True)
    assert made["enable_chunked_prefill"] is False
    assert made["max_num_scheduled_tokens"] >= made["max_model_len"]
    assert made["max_num_batched_tokens"] >= made["max_num_scheduled_tokens"] + longest_clip(setting())
    assert "data_parallel_size" not in made
    given = arguments({"max_num_scheduled_tokens": 20_000, "max_model_len": 4096}, on_cpu=True)
    assert given["max_num_batched_tokens"] == 24_096


@pytest.mark.parametrize(
    ("on_cpu", "hybrid", "caching", "dtype"),
    [
        (False, False, True, None),
        (False, True, True, None),
        (True, False, True, "float32"),
        (True, True, False, "bfloat16"),
    ],
)
def test_only_hybrid_models_on_a_cpu_start_without_prefix_caching_and_in_bfloat16(on_cpu, hybrid, caching, dtype):
    made = arguments(on_cpu=on_cpu, hybrid=hybrid)
    assert made["enable_prefix_caching"] is caching
    assert made.get("dtype") == dtype


def test_a_hybrid_model_whose_prompts_may_be_read_in_pieces_has_prefix_caching():
    assert arguments({"enable_chunked_prefill": True}, on_cpu=True, hybrid=True)["enable_prefix_caching"] is True


def test_what_the_user_says_of_a_hybrid_model_goes_first():
    given = {"enable_prefix_caching": True, "dtype": "float32"}
    made = arguments(given, on_cpu=True, hybrid=True)
    assert {name: made[name] for name in given} == given


def test_the_cache_on_a_cpu_holds_two_of_the_longest_requests():
    made = arguments(on_cpu=True)
    assert made["kv_cache_memory_bytes"] == 2 * made["max_model_len"] * 36 * 8 * 128 * 2 * 4
    assert arguments({"max_model_len": 1024}, on_cpu=True)["kv_cache_memory_bytes"] == 1 << 30


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_gives_way_to_the_user(name):
    assert arguments({name: 7}, on_cpu=True)[name] == 7
    assert arguments({name: 7})[name] == 7


def test_unknown_names_are_errors_with_the_close_ones():
    with pytest.raises(SettingsError, match=r"'gpu_memory_utilisation'.*did you mean gpu_memory_utilization"):
        arguments({"gpu_memory_utilisation": 0.5})
    with pytest.raises(SettingsError, match="AsyncEngineArgs"):
        arguments({"zzz": 1})
    with pytest.raises(SettingsError, match="nor has vLLM"):
        arguments({"_private": 1})


def test_the_model_is_named_by_hf_model():
    with pytest.raises(SettingsError, match="hf_model names the model"):
        arguments({"model": "other"})


frames = st.integers(1, 768)
sides = st.integers(16, 8192)


@given(frames, sides, sides)
def test_no_clip_takes_more_than_the_most(count, height, width):
    if max(height, width) > 4 * min(height, width):
        return
    size = target_size(QWEN3, count, height, width)
    steps = -(-count // QWEN3.temporal_patch)
    tokens = steps * (size[0] * size[1] // QWEN3.multiple**2 + TOKENS_PER_TIMESTAMP)
    assert tokens <= most_video_tokens(QWEN3, exact=True)


def test_a_model_whose_rule_is_not_known_counts_frames():
    assert most_video_tokens(OTHER_POLICY, exact=False) == 32 * 1024


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)])
def test_a_lora_gets_room_for_its_rank(rank, room):
    made = engine_arguments(replace(setting(), lora_rank=rank, lora_looks=True), known=KNOWN)
    assert (made["enable_lora"], made["max_lora_rank"], made["enable_tower_connector_lora"]) == (True, room, True)
    without = engine_arguments(replace(setting(), lora_rank=rank), known=KNOWN)
    assert "enable_tower_connector_lora" not in without
    assert not {"enable_lora", "max_lora_rank"} & set(arguments())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("load_in_4bit", "use quantization=bitsandbytes"),
        ("device_map", "use tensor_parallel_size"),
        ("cache_dir", "use download_dir"),
        ("token", "use hf_token"),
        ("max_pixels", "--max-pixels"),
        ("temperature", "--sampling-param temperature"),
    ],
)
def test_an_argument_that_vllm_calls_otherwise_says_how(name, words):
    with pytest.raises(SettingsError, match=words):
        arguments({name: 1})


@pytest.mark.parametrize("given", ["bf16", "torch.bfloat16", "BFloat16"])
def test_a_number_type_reaches_vllm_by_its_own_name(given):
    assert arguments({"dtype": given})["dtype"] == "bfloat16"
