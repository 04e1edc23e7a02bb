"""Export trained weights to a checkpoint folder that transformers and vLLM load unchanged.

`python -m training.export RUN CHECKPOINT` writes the last save of a run, finished or not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from training.architecture import build_model, build_processor
from training.vocabulary import SPECIAL_TOKENS, wrap_tokenizer


def export_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write bfloat16 weights, configuration, processor and tokenizer; the model itself is left as it is.

    The folder appears under its final name when all of its files are complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        partial = Path(scratch) / "checkpoint"
        _stored_small(model, tokenizer).save_pretrained(partial)
        build_processor(tokenizer).save_pretrained(partial)
        _finish_config(partial)
        _split_processor_config(partial)
        _finish_tokenizer_config(partial, tokenizer)
        _write_vocabulary(partial)
        if folder.exists():
            folder.rename(Path(scratch) / "previous")
        partial.rename(folder)


def _stored_small(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> Qwen3VLForConditionalGeneration:
    copy = build_model(tokenizer, seed=0)
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16)


def _finish_config(folder: Path) -> None:
    """Compute in float32 whatever the stored dtype, and write RoPE in the old spelling next to the new one.

    float32 gives the same text alone, in a batch and in vLLM.
    """
    config = _read(folder / "config.json")
    for part in (config, config["text_config"], config["vision_config"]):
        if "dtype" in part:
            part["dtype"] = "float32"
    text = config["text_config"]
    rope = dict(text["rope_parameters"])
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    text["tie_word_embeddings"] = True
    config["architectures"] = ["Qwen3VLForConditionalGeneration"]
    _write(folder / "config.json", config)


def _split_processor_config(folder: Path) -> None:
    """Older readers look for one file for images and one for videos."""
    config = _read(folder / "processor_config.json")
    _write(folder / "preprocessor_config.json", config["image_processor"])
    _write(folder / "video_preprocessor_config.json", config["video_processor"])


def _finish_tokenizer_config(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The spelling that releases before and after 5.0 both read."""
    config = _read(folder / "tokenizer_config.json")
    for name in ("backend", "extra_special_tokens"):
        config.pop(name, None)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config["additional_special_tokens"] = list(SPECIAL_TOKENS[1:])
    config["added_tokens_decoder"] = {
        str(tokenizer.convert_tokens_to_ids(token)): {"content": token, **flags} for token in SPECIAL_TOKENS
    }
    config["clean_up_tokenization_spaces"] = False
    config["add_prefix_space"] = False
    _write(folder / "tokenizer_config.json", config)


def _write_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt, for readers that do not know tokenizer.json."""
    model = _read(folder / "tokenizer.json")["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Export the last save of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that training.train wrote")
    parser.add_argument("checkpoint", type=Path, help="folder to write")
    arguments = parser.parse_args()
    tokenizer = wrap_tokenizer(Tokenizer.from_file(str(arguments.run / "tokenizer.json")))
    model = build_model(tokenizer, seed=0)
    state = torch.load(arguments.run / "state.pt", weights_only=True)["learner"]
    prefix = "model."
    model.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    export_checkpoint(model, tokenizer, arguments.checkpoint)
    size = sum(file.stat().st_size for file in arguments.checkpoint.iterdir())
    print(f"{arguments.checkpoint}: {size:,} bytes")


if __name__ == "__main__":
    main()
