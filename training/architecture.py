"""Processor, configuration and fresh weights of the tiny Qwen3-VL.

The sizes keep to what the engines accept: text heads of 32 (vLLM's CPU attention takes no 16), few heads, one deepstack
layer, tied embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from training.vocabulary import CHAT_TEMPLATE, MAX_TOKENS

PATCH_SIZE = 16
MERGE_SIZE = 2
FRAMES_PER_STEP = 2
"""Frames that the vision tower merges into one step of time."""
TOKEN_PIXELS = PATCH_SIZE * MERGE_SIZE
"""Side of the square of pixels behind one video token."""
MIN_VIDEO_PIXELS = 8 * 96 * 96
MAX_VIDEO_PIXELS = 12 * 128 * 128
"""Pixels of all frames of a video together, after resizing."""
HIDDEN_SIZE = 128
MAX_ANSWER_TOKENS = 64


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """The processor: 4 frames a second, 4 to 8 frames of about 128 pixels."""
    scaling: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    patches: dict[str, Any] = {
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": FRAMES_PER_STEP,
        "merge_size": MERGE_SIZE,
    }
    image = Qwen2VLImageProcessor(**patches, **scaling, size={"shortest_edge": 96 * 96, "longest_edge": 160 * 160})
    video = Qwen3VLVideoProcessor(
        **patches,
        **scaling,
        fps=4,
        min_frames=4,
        max_frames=8,
        size={"shortest_edge": MIN_VIDEO_PIXELS, "longest_edge": MAX_VIDEO_PIXELS},
        cap_pixels_per_frame=False,
    )
    return Qwen3VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """About 0.43 million parameters that see and 0.7 million that write."""

    def token_id(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": MAX_TOKENS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": FRAMES_PER_STEP,
        "out_hidden_size": HIDDEN_SIZE,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen3VLForConditionalGeneration:
    """A model with fresh float32 weights that the seed determines."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer)).float()
    end, pad = (int(tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_end|>", "<|endoftext|>"))
    model.generation_config = GenerationConfig(
        eos_token_id=[end, pad],
        pad_token_id=pad,
        bos_token_id=pad,
        do_sample=False,
        max_new_tokens=MAX_ANSWER_TOKENS,
    )
    return model
