"""Tiny checkpoints of models that reason: templates in the manner of real families, and words that follow from weights.

The architecture is that of the bundled model. Each token's embedding has a direction of its own, the layers add nothing
to it, and the head maps it to what follows: a chain of words that a test chooses, the same on every back end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from reelscribe.models.chat import BUNDLED_MODELS

SCORE = 40.0
"""Score of a token that follows; all others have about 0."""
HEAD = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.content is string %}"
    "{{- message.content }}{%- else %}{%- for part in message.content %}{%- if part.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
)
END = "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
OFF = "enable_thinking is defined and not enable_thinking"
HISTORY = "{%- if false %}{{- '<think>' + 'of an earlier turn' + '</think>' }}{%- endif %}"

TEMPLATES = {
    # no switch: the template opens the reasoning
    "qwen3_vl_thinking": HEAD + END + "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
    # a switch: it reasons unless switched off
    "qwen3_5": HEAD + END + "{{- '<|im_start|>assistant\\n' }}{%- if " + OFF + " %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}",
    # a switch, and the model opens the reasoning itself
    "glm4_5v": HEAD + "{{- '/nothink' if (" + OFF + ") else '' }}" + END + "{{- '<|assistant|>' }}"
    "{{- '<think></think>\\n' if (" + OFF + ") else '' }}{%- endif %}",
    # no switch, and the model opens the reasoning itself
    "glm4_1v_thinking": HEAD + HISTORY + END + "{{- '<|assistant|>' }}{%- endif %}",
    # another name
    "kimi_k2_5": HEAD + END + "{{- '<|im_start|>assistant\\n' }}{%- if thinking is defined and thinking is false %}"
    "{{- '<think></think>' }}{%- else %}{{- '<think>' }}{%- endif %}{%- endif %}",
    # a channel of special tokens, off unless it is asked for
    "gemma4": "{%- if enable_thinking is defined and enable_thinking %}{{- '<|think|>' }}{%- endif %}"
    + HEAD
    + END
    + "{{- '<|turn>model\\n' }}{%- endif %}{%- if false %}{{- '<|channel>thought\\n<channel|>' }}{%- endif %}",
    # nothing of the kind
    "instruct": HEAD + END + "{{- '<|im_start|>assistant\\n' }}{%- endif %}",
}
"""Name to chat template."""
THOUGHT = ["Okay", ",", " the", " user", " wants", " a", " description"]
ANSWER = ["A", " red", " car", " drives", " by", " now"]
REASONING = "".join(THOUGHT)
CAPTION = "".join(ANSWER)
PLAIN_MARKS = ("<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>", "<|assistant|>")
SPECIAL_MARKS = ("<|channel>", "<channel|>", "<|think|>", "<|turn>")
Chain = Mapping[str, str | Sequence[str]]


def chain(*texts: Sequence[str]) -> dict[str, str]:
    """What follows each token of these, the end of the text last."""
    words = [word for text in texts for word in text]
    return dict(zip(words, [*words[1:], "<|im_end|>"], strict=True))


QWEN = chain(["\n"], THOUGHT, ["</think>", "\n\n"], ANSWER)
"""Of a model whose prompt ends with an opened mark and a line break, or with a closed one and two."""
GLM = {
    **chain(["<|assistant|>", "<think>"], THOUGHT, ["</think>", "<answer>", "<|begin_of_box|>"], ANSWER),
    ANSWER[-1]: "<|end_of_box|>", "<|end_of_box|>": "</answer>", "</answer>": "<|im_end|>", "\n": ANSWER[0],
}  # fmt: skip
"""Of one that opens its reasoning itself."""
GEMMA = chain(["\n", "<|channel>", "thought\n"], THOUGHT, ["<channel|>"], ANSWER)


def thinker(folder: Path, template: str, words: Chain, *, marks: Sequence[str] = PLAIN_MARKS) -> Path:
    """Save a checkpoint.

    Args:
        folder: where to.
        template: a key of `TEMPLATES`, or a template.
        words: token to what follows it: one token, or several of which one is drawn.
        marks: marks that are tokens of their own.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLConfig

    processor: Any = AutoProcessor.from_pretrained(BUNDLED_MODELS["reelscribe/shapes"])
    tokenizer = processor.tokenizer
    follows = {key: [value] if isinstance(value, str) else list(value) for key, value in words.items()}
    used = dict.fromkeys(word for key, values in follows.items() for word in (key, *values))
    known = set(tokenizer.get_vocab())
    specials = [mark for mark in SPECIAL_MARKS if mark in used or mark in TEMPLATES.get(template, template)]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in specials], special_tokens=True)
    plain = [word for word in (*marks, *used) if word not in known and word not in specials]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in dict.fromkeys(plain)])
    processor.chat_template = TEMPLATES.get(template, template)

    config = Qwen3VLConfig.from_pretrained(BUNDLED_MODELS["reelscribe/shapes"])
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config)
    ids = {word: _id_of(word, tokenizer) for word in used}
    with torch.no_grad():
        _make_chain(model, ids, follows)
    model.generation_config.update(eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"), pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _id_of(word: str, tokenizer: Any) -> int:
    (one,) = tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(one)


def _make_chain(model: Any, ids: Mapping[str, int], follows: Mapping[str, Sequence[str]]) -> None:
    text = model.model.language_model
    for layer in text.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    width = text.embed_tokens.weight.shape[1]
    text.embed_tokens.weight.zero_()
    text.embed_tokens.weight[:, width - 1] = 1.0
    model.lm_head.weight.zero_()
    for place, (word, values) in enumerate(follows.items()):
        assert place < width - 1
        text.embed_tokens.weight[ids[word]] = 0.0
        text.embed_tokens.weight[ids[word], place] = 1.0
        for value in values:
            model.lm_head.weight[ids[value], place] = SCORE / width**0.5
