"""What tiny checkpoints of all families are made of: a tokenizer trained on the fly, chat templates, small numbers.

Weights are random and spread, so that scores differ clearly and what a model is shown matters to what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "Describe the input video in 1-2 sentences. What happens in the video? Go.",
    "A red car drives by. The man walks to the left while a dog runs.",
    "USER: ASSISTANT: user assistant system You are a helpful assistant.",
    "Frame1: Time 0.0s: <0.3 seconds> 00:01 10 11 12 13 14 15 16 17 18 19 20",
    "0123456789 . , : ; ! ? - ' \" ( ) [ ] / \\ \n \t",
    "You are provided the following series of twenty frames from a 0:00:11 [H:MM:SS] video.\n Frame from 00:01:",
]
"""What tokenizers are trained on."""
SPREAD = 3.0
"""Factor on weights as they are drawn; without it all scores lie close together."""
THINK = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Tiny:
    """A model that was not trained, with its processor."""

    model: Any
    """The transformers model."""
    processor: Any
    """Its processor, with a chat template."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What its generation config says besides special tokens."""
    config: Mapping[str, Any] | None = None
    """What `config.json` holds, where that is not the config of `model`."""

    def save(self, folder: Path) -> Path:
        """Write a folder that `from_pretrained` reads."""
        tokenizer = self.processor.tokenizer
        _spread(self.model)
        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **self.generation,
        )
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.config is not None:
            (folder / "config.json").write_text(json.dumps(self.config, default=str))
        return folder


def _spread(model: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2 and weight.is_floating_point():
                weight.mul_(SPREAD)


def tokenizer(
    special: Iterable[str],
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    adds_bos: bool = False,
    plain: Iterable[str] = (),
    named: Mapping[str, str] | None = None,
) -> Any:
    """A byte-level BPE of some hundred tokens.

    Args:
        special: special tokens, in the order of their ids.
        eos: the one that ends a text.
        pad: the one that fills batches.
        bos: the one that begins a text.
        adds_bos: whether the tokenizer writes `bos` itself.
        plain: added tokens that are not special, as `<think>` is.
        named: attributes of the tokenizer that name special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    bpe.add_tokens([AddedToken(one, special=False, normalized=False) for one in plain])
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    names = {"extra_special_tokens": dict(named)} if named else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, pad_token=pad, bos_token=bos, padding_side="left", **names
    )


def ids(tokens: Any, **names: str) -> dict[str, int]:
    """Name of a config's field to the id of its token."""
    return {name: tokens.convert_tokens_to_ids(token) for name, token in names.items()}


def text_config(tokens: Any, **changes: Any) -> dict[str, Any]:
    """A language model of two small layers."""
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokens),
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        "max_position_embeddings": 32768,
        **changes,
    }


def encoder_config(**changes: Any) -> dict[str, Any]:
    """A vision encoder of two small layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **changes,
    }


def said(text: str) -> str:
    """A text as a chat template writes it; `{role}` stands for who speaks."""
    return "{{ " + json.dumps(text).replace("{role}", '" ~ message["role"] ~ "') + " }}"


def chat_template(
    *,
    video: str,
    image: str,
    turn: str = "<|im_start|>{role}\n",
    end: str = "<|im_end|>\n",
    answer: str = said("<|im_start|>assistant\n"),
    head: str = "",
    text: str = "{{ part['text'] }}",
    media_first: bool = False,
) -> str:
    """A chat template in the usual structure: turns of parts, then the beginning of the answer.

    Args:
        video: what stands for a video.
        image: what stands for a picture.
        turn: how a turn begins.
        end: how it ends, as a text.
        answer: how the answer begins, in Jinja.
        head: what stands before all turns, in Jinja.
        text: how a text is written, in Jinja.
        media_first: whether videos and pictures stand before all texts of their turn.
    """
    media = (
        f"{{% if part['type'] == 'video' %}}{said(video)}{{% elif part['type'] == 'image' %}}{said(image)}{{% endif %}}"
    )
    words = f"{{% if part['type'] == 'text' %}}{text}{{% endif %}}"
    each = "{% for part in message['content'] %}"
    parts = (
        f"{each}{media}{{% endfor %}}{each}{words}{{% endfor %}}"
        if media_first
        else f"{each}{media}{words}{{% endfor %}}"
    )
    content = f"{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}{parts}{{% endif %}}"
    turns = f"{{% for message in messages %}}{said(turn)}{content}{said(end)}{{% endfor %}}"
    return f"{head}{turns}{{% if add_generation_prompt %}}{answer}{{% endif %}}"


def thinking(
    start: str, *, on: str = "<think>\n", off: str = "<think>\n\n</think>\n\n", switch: str = "enable_thinking"
) -> str:
    """The beginning of an answer whose thoughts a variable of the template switches off."""
    return f"{said(start)}{{% if {switch} is defined and not {switch} %}}{said(off)}{{% else %}}{said(on)}{{% endif %}}"
