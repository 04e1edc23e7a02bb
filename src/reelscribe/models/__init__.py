"""The captioners and the table that names them."""

from __future__ import annotations

import importlib
from typing import cast

from ..errors import SettingsError
from .base import Captioner, ModelSpec

CAPTIONERS = {
    "hf": "reelscribe.models.hf:HFCaptioner",
    "scripted": "reelscribe.models.scripted:ScriptedCaptioner",
}
"""Back end name to `module:class`; the class has a `from_spec(spec)`."""


def load_captioner(spec: ModelSpec) -> Captioner:
    """Build the captioner a spec describes.

    Raises:
        SettingsError: for an unknown back end.
        MissingExtraError: when the back end's packages are not installed.
        ModelError: when the model cannot be loaded.
    """
    check_backend(spec.backend)
    module, _, name = CAPTIONERS[spec.backend].partition(":")
    return cast("Captioner", getattr(importlib.import_module(module), name).from_spec(spec))


def check_backend(name: str) -> None:
    """Stop at a back end that is not in the table.

    Raises:
        SettingsError: naming it and those there are.
    """
    if name == "vllm" and name not in CAPTIONERS:
        raise SettingsError(
            "vLLM is not supported yet; leave enable_vllm (--vllm) out to run the model with transformers"
        )
    if name not in CAPTIONERS:
        raise SettingsError(f"unknown back end {name!r}; choose from {', '.join(CAPTIONERS)}")
