"""Tiny checkpoints of families whose frames all have one size: LLaVA, InternVL, SmolVLM, PerceptionLM."""

from __future__ import annotations

from typing import Any

import transformers as hf

from .tiny import Tiny, chat_template, encoder_config, ids, said, text_config, tokenizer

SIDE = 56
"""Pixels of a frame's side where published models have 224 to 448, to keep prompts short."""
ODD_SIDE = 70
"""The same for an odd number of patches in a row, which LLaVA-OneVision has."""


def llava_onevision() -> Tiny:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>")
    side = {"height": ODD_SIDE, "width": ODD_SIDE}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=side),
        tokenizer=tokens,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=chat_template(
            video="<video>",
            image="<image>",
            turn="<|im_start|>{role} ",
            end="<|im_end|>",
            text="{{ '\\n' ~ part['text'] }}",
            media_first=True,
        ),
    )
    vision = encoder_config(model_type="siglip_vision_model", image_size=ODD_SIDE, patch_size=14, vision_use_head=False)
    config = hf.LlavaOnevisionConfig(
        text_config=text_config(tokens, model_type="qwen2"),
        vision_config=vision,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        **ids(tokens, image_token_index="<image>", video_token_index="<video>"),
    )
    return Tiny(hf.LlavaOnevisionForConditionalGeneration(config), processor)


VICUNA = chat_template(
    video="<video>\n",
    image="<image>\n",
    turn="{role}: ",
    end="",
    text="{{ part['text'] ~ ' ' }}",
    media_first=True,
    answer="ASSISTANT:",
).replace('message["role"]', 'message["role"].upper()')
"""The template of LLaVA-NeXT-Video and Video-LLaVA."""


def _llama_tokenizer() -> Any:
    special = ["<pad>", "<s>", "</s>", "<image>", "<video>"]
    return tokenizer(special, eos="</s>", pad="<pad>", bos="<s>", adds_bos=True)


def llava_next_video() -> Tiny:
    tokens = _llama_tokenizer()
    crop = {"height": SIDE, "width": SIDE}
    processor = hf.LlavaNextVideoProcessor(
        video_processor=hf.LlavaNextVideoVideoProcessor(size={"shortest_edge": SIDE}, crop_size=crop),
        image_processor=hf.LlavaNextImageProcessor(),
        tokenizer=tokens,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    vision = encoder_config(model_type="clip_vision_model", image_size=SIDE, patch_size=14, projection_dim=32)
    config = hf.LlavaNextVideoConfig(
        text_config=text_config(tokens, model_type="llama"),
        vision_config=vision,
        vision_feature_layer=-2,
        **ids(tokens, image_token_index="<image>", video_token_index="<video>"),
    )
    return Tiny(hf.LlavaNextVideoForConditionalGeneration(config), processor)


def video_llava() -> Tiny:
    tokens = _llama_tokenizer()
    crop = {"height": SIDE, "width": SIDE}
    processor = hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop),
        video_processor=hf.VideoLlavaVideoProcessor(size={"shortest_edge": SIDE}, crop_size=crop),
        tokenizer=tokens,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=VICUNA,
    )
    vision = encoder_config(model_type="clip_vision_model", image_size=SIDE, patch_size=14, projection_dim=32)
    config = hf.VideoLlavaConfig(
        text_config=text_config(tokens, model_type="llama", max_position_embeddings=4096),
        vision_config=vision,
        video_seq_length=136,
        image_seq_length=16,
        **ids(tokens, image_token_index="<image>", video_token_index="<video>"),
    )
    return Tiny(hf.VideoLlavaForConditionalGeneration(config), processor)


def internvl() -> Tiny:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", named=named)
    side = {"height": SIDE, "width": SIDE}
    per_frame = (SIDE // 14 // 2) ** 2
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=side, crop_to_patches=True),
        tokenizer=tokens,
        video_processor=hf.InternVLVideoProcessor(size=side),
        image_seq_length=per_frame,
        chat_template=chat_template(video="<video>\n", image="<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        text_config=text_config(tokens, model_type="qwen2"),
        vision_config=encoder_config(image_size=[SIDE, SIDE], patch_size=[14, 14]),
        image_seq_length=per_frame,
        **ids(tokens, image_token_id="<IMG_CONTEXT>"),
    )
    return Tiny(hf.InternVLForConditionalGeneration(config), processor)


def smolvlm() -> Tiny:
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    fields = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<fake_token_around_image>", "<image>", "<global-img>", "<video>"]
    special = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", *marks, *fields]
    tokens = tokenizer(special, eos="<end_of_utterance>", pad="<|endoftext|>", bos="<|im_start|>")
    side = {"longest_edge": 64}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(size={"longest_edge": 256}, max_image_size=side),
        tokenizer=tokens,
        video_processor=hf.SmolVLMVideoProcessor(
            size=side, max_image_size=side, video_sampling={"fps": 1, "max_frames": 64, "video_size": side}
        ),
        image_seq_len=4,
    )
    processor.chat_template = DEFAULT_CHAT_TEMPLATE
    config = hf.SmolVLMConfig(
        text_config=text_config(tokens, model_type="llama"),
        vision_config=encoder_config(image_size=64, patch_size=16),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
        **ids(tokens, image_token_id="<image>"),
    )
    return Tiny(hf.SmolVLMForConditionalGeneration(config), processor)


def perception_lm() -> Tiny:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = ["<|pad|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokens = tokenizer(
        [*special, *named.values()], eos="<|eot_id|>", pad="<|pad|>", bos="<|begin_of_text|>", named=named
    )
    header = "<|start_header_id|>{role}<|end_header_id|>\n\n"
    processor = hf.PerceptionLMProcessor(
        video_processor=hf.PerceptionLMVideoProcessor(size={"height": SIDE, "width": SIDE}),
        image_processor=hf.PerceptionLMImageProcessor(tile_size=SIDE),
        tokenizer=tokens,
        patch_size=14,
        pooling_ratio=2,
        chat_template=chat_template(
            video="<|video|>",
            image="<|image|>",
            head="{{ bos_token }}",
            turn=header,
            end="<|eot_id|>",
            text="{{ part['text'] | trim }}",
            answer=said(header.replace("{role}", "assistant")),
        ),
    )
    encoder = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "img_size": [SIDE, SIDE],
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [SIDE // 14, SIDE // 14],
    }
    vision = {
        "architecture": "vit_pe_core_large_patch14_336",
        "model_args": encoder,
        "initializer_range": 0.02,
        "do_pooling": True,
        "num_classes": 1,
    }
    config = hf.PerceptionLMConfig(
        text_config=text_config(tokens, model_type="llama"),
        vision_config=vision,
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
        **ids(tokens, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    return Tiny(hf.PerceptionLMForConditionalGeneration(config), processor)


def instructblipvideo() -> Tiny:
    special = ["<pad>", "<s>", "</s>", "<video>"]
    tokens = tokenizer(special, eos="</s>", pad="<pad>", bos="<s>", adds_bos=True)
    questions = tokenizer(special, eos="</s>", pad="<pad>", bos="<s>", adds_bos=True)
    processor = hf.InstructBlipVideoProcessor(
        video_processor=hf.InstructBlipVideoVideoProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokens,
        qformer_tokenizer=questions,
        num_query_tokens=4,
    )
    config = hf.InstructBlipVideoConfig(
        vision_config=encoder_config(image_size=SIDE, patch_size=14),
        qformer_config=encoder_config(encoder_hidden_size=32, vocab_size=len(tokens)),
        text_config=text_config(tokens, model_type="llama"),
        num_query_tokens=4,
        **ids(tokens, video_token_index="<video>"),
    )
    return Tiny(hf.InstructBlipVideoForConditionalGeneration(config), processor)
