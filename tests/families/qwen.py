"""Tiny checkpoints of Qwen's families, and of those that took over their vision encoder or their processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers as hf

from .tiny import THINK, Tiny, chat_template, encoder_config, ids, said, text_config, thinking, tokenizer

MARKS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
ANSWER = "<|im_start|>assistant\n"

PLAIN = chat_template(video=VIDEO, image=IMAGE)
DEFAULT_SYSTEM = said("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
WITH_SYSTEM = chat_template(
    video=VIDEO, image=IMAGE, head=f"{{% if messages[0]['role'] != 'system' %}}{DEFAULT_SYSTEM}{{% endif %}}"
)
THINKING = chat_template(video=VIDEO, image=IMAGE, answer=thinking(ANSWER))

ROPE_2 = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
ROPE_3 = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 5e6}
ROPE_35 = {
    "rope_type": "default",
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
}
VISION_25 = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "window_size": 112,
    "fullatt_block_indexes": [1],
}
VISION_35 = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 16,
    "num_position_embeddings": 64,
}
VISION_3 = {**VISION_35, "deepstack_visual_indexes": [0, 1]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 32,
}


def qwen_tokenizer(*plain: str) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", *MARKS]
    return tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", plain=plain)


def pads(tokens: Any) -> dict[str, int]:
    return ids(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")


def marks(tokens: Any) -> dict[str, int]:
    return pads(tokens) | ids(tokens, vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")


def processor_2(cls: Any, tokens: Any, template: str, **video: Any) -> Any:
    """A processor over Qwen2-VL's own for pictures and videos."""
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    return cls(
        image_processor=hf.Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056}, **patches),
        tokenizer=tokens,
        video_processor=hf.Qwen2VLVideoProcessor(**patches, **video),
        chat_template=template,
    )


def processor_3(tokens: Any, template: str) -> Any:
    half = [0.5, 0.5, 0.5]
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            patch_size=16,
            merge_size=2,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
            image_mean=half,
            image_std=half,
        ),
        tokenizer=tokens,
        video_processor=hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824}, patch_size=16, merge_size=2
        ),
        chat_template=template,
    )


def qwen2_vl() -> Tiny:
    tokens = qwen_tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    text = text_config(tokens, rope_parameters=ROPE_2)
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **marks(tokens))
    return Tiny(hf.Qwen2VLForConditionalGeneration(config), processor_2(hf.Qwen2VLProcessor, tokens, WITH_SYSTEM))


def qwen2_5_vl() -> Tiny:
    tokens = qwen_tokenizer()
    vision = {**VISION_25, "tokens_per_second": 2, "patch_size": 14}
    text = text_config(tokens, rope_parameters=ROPE_2)
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks(tokens))
    return Tiny(
        hf.Qwen2_5_VLForConditionalGeneration(config),
        processor_2(hf.Qwen2_5_VLProcessor, tokens, WITH_SYSTEM),
        {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "top_k": 1},
    )


def qwen3_vl() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(tokens, rope_parameters=ROPE_3, head_dim=16)
    config = hf.Qwen3VLConfig(text_config=text, vision_config=VISION_3, **marks(tokens))
    return Tiny(hf.Qwen3VLForConditionalGeneration(config), processor_3(tokens, PLAIN))


def qwen3_vl_moe() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(tokens, rope_parameters=ROPE_3, head_dim=16, **EXPERTS)
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=VISION_3, **marks(tokens))
    return Tiny(hf.Qwen3VLMoeForConditionalGeneration(config), processor_3(tokens, PLAIN))


def qwen3_5() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(tokens, rope_parameters=ROPE_35, **LINEAR)
    config = hf.Qwen3_5Config(text_config=text, vision_config=VISION_35, **marks(tokens))
    return Tiny(hf.Qwen3_5ForConditionalGeneration(config), processor_3(tokens, THINKING))


def qwen3_5_moe() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(tokens, rope_parameters=ROPE_35, shared_expert_intermediate_size=32, **EXPERTS, **LINEAR)
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=VISION_35, **marks(tokens))
    return Tiny(hf.Qwen3_5MoeForConditionalGeneration(config), processor_3(tokens, THINKING))


def qwen4_exp() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(
        tokens,
        rope_parameters=ROPE_35,
        shared_expert_intermediate_size=32,
        **EXPERTS,
        **LINEAR | {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "indexed_attention"]},
        hc_count=2,
        hc_lowrank=8,
        ple_layer_ids=[1],
        heads_per_ngram=2,
        ngram_vocab_size_base=200,
        split_ngram_parts=2,
        make_ngram_vocab_size_divisible_by=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=256,
        indexer_compress_ratio=4,
    )
    config = hf.Qwen4ExpConfig(text_config=text, vision_config=VISION_35, **marks(tokens))
    return Tiny(hf.Qwen4ExpForConditionalGeneration(config), processor_3(tokens, THINKING))


def qwen2_5_omni() -> Tiny:
    """The whole model's config over the weights of its thinker."""
    named = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokens = _omni_tokenizer(named)
    thinker = hf.Qwen2_5OmniThinkerConfig(
        text_config=text_config(tokens, rope_parameters=ROPE_2),
        vision_config={**VISION_25, "embed_dim": 32},
        audio_config={**OMNI_SOUND, "output_dim": 64},
        **_omni_ids(tokens, named),
    )
    whole = hf.Qwen2_5OmniConfig(thinker_config=thinker.to_dict()).to_dict()
    return Tiny(
        hf.Qwen2_5OmniThinkerForConditionalGeneration(thinker),
        _omni_processor(hf.Qwen2_5OmniProcessor, tokens, named, patch_size=14),
        config={**whole, "architectures": ["Qwen2_5OmniModel"]},
    )


def qwen3_omni_moe() -> Tiny:
    """The same of Qwen3-Omni."""
    named = {
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    tokens = _omni_tokenizer(named)
    thinker = hf.Qwen3OmniMoeThinkerConfig(
        text_config=text_config(tokens, rope_parameters=ROPE_3, head_dim=16, **EXPERTS),
        vision_config=VISION_3,
        audio_config={**OMNI_SOUND, "output_dim": 64, "downsample_hidden_size": 16},
        **_omni_ids(tokens, named),
    )
    whole = hf.Qwen3OmniMoeConfig(thinker_config=thinker.to_dict()).to_dict()
    return Tiny(
        hf.Qwen3OmniMoeThinkerForConditionalGeneration(thinker),
        _omni_processor(hf.Qwen3OmniMoeProcessor, tokens, named, patch_size=16),
        config={**whole, "architectures": ["Qwen3OmniMoeForConditionalGeneration"]},
    )


OMNI_SOUND = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}


def _omni_tokenizer(named: Mapping[str, str]) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    return tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", plain=THINK, named=named)


def _omni_ids(tokens: Any, named: Mapping[str, str]) -> dict[str, int]:
    return ids(
        tokens,
        image_token_id=named["image_token"],
        video_token_id=named["video_token"],
        audio_token_id=named["audio_token"],
        audio_start_token_id=named["audio_bos_token"],
        vision_start_token_id=named["vision_bos_token"],
        vision_end_token_id=named["vision_eos_token"],
    )


def _omni_processor(cls: Any, tokens: Any, named: Mapping[str, str], *, patch_size: int) -> Any:
    around = f"{named['vision_bos_token']}{{}}{named['vision_eos_token']}"
    return cls(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=patch_size),
        video_processor=hf.Qwen2VLVideoProcessor(patch_size=patch_size),
        feature_extractor=hf.WhisperFeatureExtractor(),
        tokenizer=tokens,
        chat_template=chat_template(
            video=around.format(named["video_token"]), image=around.format(named["image_token"])
        ),
    )


def exaone4_5() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    vision = {**VISION_25, "model_type": "exaone4_5_vision", "num_key_value_heads": 1}
    layers = ["sliding_attention", "full_attention"]
    text = text_config(tokens, model_type="exaone4", sliding_window=4096, layer_types=layers)
    config = hf.Exaone4_5_Config(text_config=text, vision_config=vision, **pads(tokens))
    return Tiny(hf.Exaone4_5_ForConditionalGeneration(config), processor_2(hf.Exaone4_5_Processor, tokens, THINKING))


def hyperclovax_vision_v2() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    vision = {**VISION_25, "model_type": "qwen2_5_vl_vision"}
    text = text_config(tokens, model_type="hyperclovax")
    config = hf.HyperCLOVAXVisionV2Config(text_config=text, vision_config=vision, **pads(tokens))
    template = chat_template(video=f"duration <|video_duration|> {VIDEO}", image=IMAGE)
    return Tiny(
        hf.HyperCLOVAXVisionV2ForConditionalGeneration(config),
        processor_2(hf.HyperCLOVAXVisionV2Processor, tokens, template),
    )


def video_llama_3() -> Tiny:
    tokens = qwen_tokenizer()
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.VideoLlama3VideoProcessor(),
        chat_template=chat_template(video="<|video_pad|>", image="<|image_pad|>"),
    )
    text = text_config(tokens, model_type="qwen2")
    config = hf.VideoLlama3Config(text_config=text, vision_config=encoder_config(patch_size=14), **pads(tokens))
    return Tiny(hf.VideoLlama3ForConditionalGeneration(config), processor)


def cosmos3_edge() -> Tiny:
    special = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>", *MARKS]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<unk>", bos="<s>", plain=THINK)
    processor = hf.Cosmos3EdgeProcessor(
        image_processor=hf.Cosmos3EdgeImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Cosmos3EdgeVideoProcessor(return_metadata=True),
        chat_template=PLAIN,
    )
    rope = {"rope_type": "default", "mrope_section": [3, 3, 2], "rope_theta": 1e6}
    config = hf.Cosmos3EdgeConfig(
        text_config=text_config(tokens, model_type="cosmos3_edge_text", head_dim=16, rope_parameters=rope),
        vision_config=encoder_config(model_type="cosmos3_edge_vision", patch_size=16),
        projector_hidden_size=64,
        **marks(tokens),
    )
    return Tiny(hf.Cosmos3EdgeForConditionalGeneration(config), processor)


def cosmos3_omni() -> Tiny:
    tokens = qwen_tokenizer(*THINK)
    text = text_config(tokens, rope_parameters=ROPE_3, head_dim=16)
    config = hf.Cosmos3OmniConfig(text_config=text, vision_config=dict(VISION_3), **marks(tokens))
    return Tiny(hf.Cosmos3OmniForConditionalGeneration(config), processor_3(tokens, PLAIN))


def cohere_compass() -> Tiny:
    names = {
        "image_token_id": "<|IMAGE_PAD|>",
        "video_token_id": "<|VIDEO_PAD|>",
        "vision_start_token_id": "<|VISION_START|>",
        "vision_end_token_id": "<|VISION_END|>",
    }
    turns = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]
    special = ["<PAD>", "<BOS_TOKEN>", *turns, *names.values()]
    tokens = tokenizer(special, eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", bos="<BOS_TOKEN>", adds_bos=True)
    processor = hf.CohereCompassProcessor(
        image_processor=hf.CohereCompassImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.CohereCompassVideoProcessor(),
        chat_template=chat_template(
            head="{{ bos_token }}",
            turn="<|START_OF_TURN_TOKEN|>{role}\n",
            video="<|VIDEO_PAD|>",
            image="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
            end="<|END_OF_TURN_TOKEN|>",
            answer=said("<|START_OF_TURN_TOKEN|>assistant\n"),
        ),
    )
    config = hf.CohereCompassConfig(
        text_config=text_config(tokens, logit_scale=1.0, rope_parameters={"full_attention": ROPE_3}),
        vision_config=VISION_3,
        **ids(tokens, **names),
    )
    return Tiny(hf.CohereCompassForConditionalGeneration(config), processor)


def minicpmv4_6() -> Tiny:
    return _minicpm(hf.MiniCPMV4_6Config, hf.MiniCPMV4_6ForConditionalGeneration, hf.MiniCPMV4_6Processor)


def minicpmv4_7() -> Tiny:
    return _minicpm(hf.MiniCPMV4_7Config, hf.MiniCPMV4_7ForConditionalGeneration, hf.MiniCPMV4_7Processor)


def _minicpm(config_class: Any, model_class: Any, processor_class: Any) -> Tiny:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", plain=THINK, named=named)
    processor = processor_class(
        image_processor=hf.MiniCPMV4_6ImageProcessor(),
        video_processor=hf.MiniCPMV4_6VideoProcessor(max_slice_nums=1),
        tokenizer=tokens,
        chat_template=chat_template(video="<|video_pad|>", image="<|image_pad|>", answer=thinking(ANSWER)),
    )
    vision = encoder_config(num_hidden_layers=3, image_size=980, patch_size=14, insert_layer_id=1)
    config = config_class(
        text_config=text_config(tokens, model_type="qwen3_5_text", rope_parameters=ROPE_35, **LINEAR),
        vision_config=vision,
        insert_layer_id=1,
        **pads(tokens),
    )
    return Tiny(model_class(config), processor)
