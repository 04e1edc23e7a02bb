"""The byte-level tokenizer of the demonstration checkpoint and its chat template."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast

from reelscribe.demo.scenes import ACTIONS, COLORS, SHAPES, accepted_captions, sample_scene
from training.dialogues import (
    COLOR_QUESTIONS,
    DURATION_QUESTIONS,
    EVENT_QUESTIONS,
    PROMPTS,
    SHAPE_QUESTIONS,
    SYSTEM_PROMPTS,
    duration_answer,
    event_answer,
    listing,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MAX_TOKENS = 8192
VOCABULARY_LIMIT = 720

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's own: digits stand alone, a word takes the space before it."""

CHAT_TEMPLATE = r"""{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{%- for c in m.content -%}
{%- if c.type == 'video' or 'video' in c -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif c.type == 'image' or 'image' in c or 'image_url' in c -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in c -%}{{ c.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def train_tokenizer() -> Qwen2TokenizerFast:
    """Learn merges from captions, prompts and answers; any other text still round-trips as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return wrap_tokenizer(tokenizer)


def wrap_tokenizer(tokenizer: Tokenizer) -> Qwen2TokenizerFast:
    """The tokenizer as transformers knows it."""
    wrapped = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=MAX_TOKENS,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(5)
    for _ in range(1500):
        yield from accepted_captions(sample_scene(rng))
    for _ in range(6):
        yield from (f"{a} {c} {s} {v}." for a in ("A", "a") for c in COLORS for s in SHAPES for v in ACTIONS.values())
    for _ in range(10):
        yield from _answers()
    for _ in range(60):
        yield from PROMPTS + SYSTEM_PROMPTS + DURATION_QUESTIONS + COLOR_QUESTIONS + SHAPE_QUESTIONS
        yield from (q.format(thing="red circle", action=a) for q in EVENT_QUESTIONS for a in ("appear", "disappear"))
    for _ in range(300):
        yield "user\n assistant\n system\n <0.2 seconds>"


def _answers() -> Iterator[str]:
    for seconds in range(10):
        yield duration_answer(seconds)
        yield event_answer(seconds)
    for words in (tuple(COLORS), SHAPES):
        yield from (listing([one, other]) for one in words for other in words)
