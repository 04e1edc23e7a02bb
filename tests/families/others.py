"""Tiny checkpoints of families with processors of their own: GLM, Gemma, Ernie, Kimi, MiniMax, Muse, Nemotron."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import transformers as hf
from PIL import ImageFont

from .tiny import THINK, Tiny, chat_template, encoder_config, ids, said, text_config, thinking, tokenizer

# GLM

GLM_NAMES = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
GLM_ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
    "image_size": 336,
}
NO_THINKING = (
    "{% if message['role'] == 'user' and enable_thinking is defined and not enable_thinking %}/nothink{% endif %}"
)
GLM_TEMPLATE = chat_template(
    head="[gMASK]<sop>",
    turn="<|{role}|>\n",
    video="<|begin_of_video|><|video|><|end_of_video|>",
    image="<|begin_of_image|><|image|><|end_of_image|>",
    end="@",
    answer=thinking("<|assistant|>\n", on="", off="<think></think>\n"),
).replace(said("@"), NO_THINKING)


def _glm_tokenizer() -> Any:
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", *GLM_NAMES.values()]
    boxes = ["<|begin_of_box|>", "<|end_of_box|>"]
    plain = (*THINK, "/nothink")
    return tokenizer([*special, *boxes], eos="<|endoftext|>", pad="<|endoftext|>", plain=plain)


def _glm(config: Any, model: Any, processor: Any, image_processor: Any, video_processor: Any, **text: Any) -> Tiny:
    tokens = _glm_tokenizer()
    whole = processor(
        image_processor=image_processor(),
        tokenizer=tokens,
        video_processor=video_processor(),
        chat_template=GLM_TEMPLATE,
    )
    settings = config(
        text_config=text_config(tokens, rope_parameters=GLM_ROPE, **text),
        vision_config=GLM_VISION,
        **ids(tokens, **GLM_NAMES),
    )
    return Tiny(model(settings), whole, {"do_sample": True, "temperature": 0.8, "top_p": 0.6, "top_k": 2})


def glm4v() -> Tiny:
    return _glm(
        hf.Glm4vConfig,
        hf.Glm4vForConditionalGeneration,
        hf.Glm4vProcessor,
        hf.Glm4vImageProcessor,
        hf.Glm4vVideoProcessor,
    )


def glm4v_moe() -> Tiny:
    return _glm(
        hf.Glm4vMoeConfig,
        hf.Glm4vMoeForConditionalGeneration,
        hf.Glm4vProcessor,
        hf.Glm4vImageProcessor,
        hf.Glm4vVideoProcessor,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        head_dim=16,
    )


def glm46v() -> Tiny:
    return _glm(
        hf.Glm46VConfig,
        hf.Glm46VForConditionalGeneration,
        hf.Glm46VProcessor,
        hf.Glm46VImageProcessor,
        hf.Glm46VVideoProcessor,
    )


def glmga() -> Tiny:
    return _glm(
        hf.GlmgaConfig,
        hf.Glm46VForConditionalGeneration,
        hf.Glm46VProcessor,
        hf.GlmgaImageProcessor,
        hf.GlmgaVideoProcessor,
    )


def glm5_next() -> Tiny:
    tokens = _glm_tokenizer()
    processor = hf.Glm5NextProcessor(
        image_processor=hf.Glm5NextImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Glm5NextVideoProcessor(),
        chat_template=GLM_TEMPLATE,
    )
    text = text_config(
        tokens,
        num_hidden_layers=4,
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=0,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_head_dim=16,
        index_n_heads=2,
        index_topk=64,
        index_kpool=4,
        linear_head_dim=16,
        linear_num_heads=4,
        hc_mult=2,
    )
    vision = {**GLM_VISION, "projection_intermediate_size": 64}
    config = hf.Glm5NextConfig(text_config=text, vision_config=vision, **ids(tokens, **GLM_NAMES))
    return Tiny(hf.Glm5NextForConditionalGeneration(config), processor)


# Gemma

GEMMA_NAMES = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
GEMMA_TEMPLATE = chat_template(
    head="{{ bos_token }}",
    turn="<|turn>{role}\n",
    video="\n\n<|video|>\n\n",
    image="\n\n<|image|>\n\n",
    text="{{ part['text'] | trim }}",
    end="<turn|>\n",
    answer=said("<|turn>model\n"),
)


def _gemma_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|video|>", "<|channel>", "<channel|>"]
    return tokenizer(
        [*special, *GEMMA_NAMES.values()], eos="<turn|>", pad="<pad>", bos="<bos>", adds_bos=True, named=GEMMA_NAMES
    )


def _gemma_ids(tokens: Any) -> dict[str, int]:
    return ids(
        tokens,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        boi_token_id="<|image>",
        eoi_token_id="<image|>",
        audio_token_id="<|audio|>",
        boa_token_id="<|audio>",
        eoa_token_index="<audio|>",
    )


def _gemma_text(tokens: Any, layers: int, **changes: Any) -> dict[str, Any]:
    return text_config(
        tokens,
        num_hidden_layers=layers,
        head_dim=16,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        sliding_window=512,
        **changes,
    )


def gemma4() -> Tiny:
    tokens = _gemma_tokenizer()
    text = _gemma_text(
        tokens,
        4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=len(tokens),
        hidden_size_per_layer_input=16,
        use_bidirectional_attention="vision",
    )
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=encoder_config(num_key_value_heads=2, head_dim=16),
        audio_config=None,
        **_gemma_ids(tokens),
    )
    generation = {"do_sample": True, "top_k": 64, "top_p": 0.95, "temperature": 1.0}
    return Tiny(hf.Gemma4ForConditionalGeneration(config), _gemma4_processor(tokens), generation)


def _gemma4_processor(tokens: Any) -> Any:
    return hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Gemma4VideoProcessor(),
        chat_template=GEMMA_TEMPLATE,
    )


def gemma4_unified() -> Tiny:
    tokens = _gemma_tokenizer()
    processor = hf.Gemma4UnifiedProcessor(
        feature_extractor=hf.Gemma4UnifiedAudioFeatureExtractor(),
        image_processor=hf.Gemma4UnifiedImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Gemma4UnifiedVideoProcessor(),
        chat_template=GEMMA_TEMPLATE,
    )
    config = hf.Gemma4UnifiedConfig(
        text_config=_gemma_text(tokens, 4, use_bidirectional_attention="vision"),
        vision_config={"mm_embed_dim": 64, "output_proj_dims": 64, "mm_posemb_size": 200},
        audio_config=None,
        **_gemma_ids(tokens),
    )
    return Tiny(hf.Gemma4UnifiedForConditionalGeneration(config), processor)


def diffusion_gemma() -> Tiny:
    """Writes blocks of text by diffusion, not token after token."""
    tokens = _gemma_tokenizer()
    config = hf.DiffusionGemmaConfig(
        text_config=_gemma_text(tokens, 2, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
        vision_config=encoder_config(num_key_value_heads=2, head_dim=16),
        canvas_length=16,
        **ids(tokens, image_token_id="<|image|>", boi_token_id="<|image>", eoi_token_id="<image|>"),
    )
    return Tiny(hf.DiffusionGemmaForBlockDiffusion(config), _gemma4_processor(tokens))


# others


def ernie4_5_vl_moe() -> Tiny:
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    special = ["<unk>", "<s>", "</s>", *named.values(), "<|begin_of_sentence|>", "<|end_of_sentence|>"]
    tokens = tokenizer(special, eos="</s>", pad="<unk>", bos="<s>", plain=THINK, named=named)
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=hf.Ernie4_5_VLMoeImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Ernie4_5_VLMoeVideoProcessor(font=str(_font()), fps=2),
        chat_template=chat_template(
            head="<|begin_of_sentence|>",
            turn="{role}: ",
            video="Video 1:<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
            image="Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            end="\n",
            answer=thinking("Assistant: "),
        ).replace('message["role"]', 'message["role"].capitalize()'),
    )
    text = text_config(
        tokens,
        rope_parameters={"rope_type": "default", "mrope_section": [3, 3, 2], "rope_theta": 5e5},
        moe_intermediate_size=[32, 16],
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
    )
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
        **ids(tokens, **{f"{name}_id": token for name, token in named.items()}),
    )
    return Tiny(hf.Ernie4_5_VLMoeForConditionalGeneration(config), processor)


@cache
def _font() -> Path:
    """The font that Pillow brings, in a file: the processor draws times into the frames."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "times.ttf"
    path.write_bytes(ImageFont.load_default(10).font_bytes)
    return path


def kimi_k25() -> Tiny:
    marks = ["<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>", "<|kimi_k25_video_placeholder|>"]
    turns = ["<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]
    tokens = tokenizer(
        ["[BOS]", "[EOS]", "[PAD]", *turns, *marks], eos="<|im_end|>", pad="[PAD]", bos="[BOS]", plain=THINK
    )
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.Kimi_K25VideoProcessor(),
        chat_template=chat_template(
            turn="<|im_{role}|>{role}<|im_middle|>",
            video="<|kimi_k25_video_placeholder|>",
            image="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
            end="<|im_end|>",
            answer=thinking(
                "<|im_assistant|>assistant<|im_middle|>", on="<think>", off="<think></think>", switch="thinking"
            ),
        ),
    )
    text = text_config(
        tokens,
        model_type="deepseek_v3",
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
    config = hf.Kimi_K25Config(
        text_config=text,
        vision_config=encoder_config(),
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **ids(
            tokens,
            image_token_id="<|media_pad|>",
            video_token_id="<|kimi_k25_video_placeholder|>",
            vision_start_token_id="<|media_begin|>",
            vision_end_token_id="<|media_end|>",
        ),
    )
    return Tiny(hf.Kimi_K25ForConditionalGeneration(config), processor)


def minimax_m3_vl() -> Tiny:
    cls = hf.MiniMaxM3VLProcessor
    marks = [cls.IMAGE_TOKEN, cls.VIDEO_TOKEN, cls.VISION_START_TOKEN, cls.VISION_END_TOKEN]
    tokens = tokenizer(["<pad>", "[e~[", "]~b]", *marks], eos="[e~[", pad="<pad>", plain=THINK)
    processor = cls(
        image_processor=hf.MiniMaxM3VLImageProcessor(),
        tokenizer=tokens,
        video_processor=hf.MiniMaxM3VLVideoProcessor(),
        chat_template=chat_template(
            turn="]~b]{role}\n",
            video=cls.VIDEO_TOKEN,
            image=cls.IMAGE_TOKEN,
            end="[e~[\n",
            answer=thinking("]~b]ai\n"),
        ),
    )
    text = text_config(
        tokens,
        model_type="minimax_m3_vl_text",
        intermediate_size=32,
        dense_intermediate_size=64,
        shared_intermediate_size=32,
        head_dim=16,
        rotary_dim=8,
        num_experts_per_tok=2,
        num_local_experts=4,
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=64,
        index_topk_blocks=4,
    )
    config = hf.MiniMaxM3VLConfig(
        text_config=text,
        vision_config=encoder_config(model_type="minimax_m3_vl_vision", hidden_size=48),
        projector_hidden_size=64,
        **ids(tokens, image_token_index=cls.IMAGE_TOKEN, video_token_index=cls.VIDEO_TOKEN),
    )
    return Tiny(hf.MiniMaxM3SparseForConditionalGeneration(config), processor)


def muse_glimmer() -> Tiny:
    marks = ["<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_frame_separator|>"]
    turns = ["<|vid_start|>", "<|vid_end|>", "<|im_start|>", "<|im_end|>"]
    special = ["<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", *marks, *turns]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<|pad|>", bos="<|begin_of_text|>")
    processor = hf.MuseGlimmerProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(),
        video_processor=hf.MuseGlimmerVideoProcessor(return_metadata=True),
        tokenizer=tokens,
        chat_template=chat_template(video="<|video|>", image="<|patch|>"),
    )
    text = text_config(
        tokens,
        model_type="muse_glimmer_text",
        head_dim=16,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = hf.MuseGlimmerConfig(
        text_config=text,
        vision_config=encoder_config(),
        out_hidden_size=128,
        projector_hidden_size=64,
        **ids(tokens, image_token_id="<|patch|>", video_token_id="<|video|>"),
    )
    return Tiny(hf.MuseGlimmerForConditionalGeneration(config), processor)


def nemotron_h_omni() -> Tiny:
    sounds = ["<so_embedding>", "<so_start>", "<so_end>"]
    special = ["<unk>", "<s>", "</s>", "<image>", "<img>", "</img>", *sounds, "<|im_start|>", "<|im_end|>"]
    tokens = tokenizer(special, eos="<|im_end|>", pad="<unk>", bos="<s>", plain=THINK)
    normal = {"norm_mean": [0.48, 0.45, 0.40], "norm_std": [0.27, 0.26, 0.27]}
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=hf.NemotronH_Omni_Reasoning_V3ImageProcessor(**normal),
        video_processor=hf.NemotronH_Omni_Reasoning_V3VideoProcessor(video_target_num_patches=256, **normal),
        tokenizer=tokens,
        feature_extractor=hf.WhisperFeatureExtractor(),
        chat_template=chat_template(
            video="<video>\n",
            image="<image>\n",
            answer=thinking("<|im_start|>assistant\n", off="<think></think>"),
        ),
    )
    text = text_config(
        tokens,
        model_type="nemotron_h",
        layers_block_type=["mamba", "attention", "mlp"],
        num_hidden_layers=3,
        head_dim=16,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=2,
        conv_kernel=4,
        chunk_size=16,
    )
    vision = encoder_config(patch_size=16, video_temporal_patch_size=2, image_size=512, max_img_size=1024)
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        projector_hidden_size=64,
        vision_hidden_size=32,
        **ids(tokens, image_token_id="<image>", video_token_id="<image>"),
    )
    return Tiny(hf.NemotronH_Omni_Reasoning_V3(config), processor)
