"""LoRAs as peft saves them, written without it, and the models that they make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from reelscribe.models.names import BUNDLED_MODELS

DEMO = BUNDLED_MODELS["reelscribe/shapes"]
RANK, ALPHA, SIZE = 4, 8, 0.4
LANGUAGE = "model.language_model.layers.{}.self_attn.{}_proj"
LAYERS = 2
"""Layers of the bundled model that a LoRA here changes."""


def modules() -> list[str]:
    """The layers that a LoRA here changes."""
    return [LANGUAGE.format(layer, kind) for layer in range(LAYERS) for kind in "qv"]


def write_lora(folder: Path, *, base: str | None = str(DEMO), size: float = SIZE, **config: Any) -> Path:
    """A LoRA of the bundled model, with random weights of this size."""
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "r": RANK, "lora_alpha": ALPHA,
        "target_modules": modules(), "bias": "none", "lora_dropout": 0.0, "inference_mode": True, **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator, weights, lora = torch.Generator().manual_seed(3), load_file(DEMO / "model.safetensors"), {}
    for name in modules():
        out, into = weights[f"{name}.weight"].shape
        for part, shape in (("A", (RANK, into)), ("B", (out, RANK))):
            lora[f"base_model.model.{name}.lora_{part}.weight"] = size * torch.randn(shape, generator=generator)
    save_file(lora, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def merged(lora: Path, folder: Path) -> Path:
    """The bundled model with a LoRA in its weights."""
    shutil.copytree(DEMO, folder)
    weights, parts = load_file(DEMO / "model.safetensors"), load_file(lora / "adapter_model.safetensors")
    for name in modules():
        a, b = (parts[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + (ALPHA / RANK) * (b @ a)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
