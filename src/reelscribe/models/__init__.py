"""The captioners and the table that names them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

from ..errors import SettingsError
from .captioner import Captioner, ModelSpec
from .checkpoints import has_adapter, model_revision
from .names import understood

__all__ = [
    "CAPTIONERS",
    "batch_size_options",
    "check_backend",
    "choose_backend",
    "has_adapter",
    "load_captioner",
    "model_revision",
    "server_addresses",
    "understood",
]

CAPTIONERS = {
    "hf": "reelscribe.models.hf.captioner:HFCaptioner",
    "vllm": "reelscribe.models.vllm.captioner:VLLMCaptioner",
    "server": "reelscribe.models.server.captioner:ServerCaptioner",
    "scripted": "reelscribe.models.scripted:ScriptedCaptioner",
}
"""Back end name to `module:class`; the class has a `from_spec(spec)`."""

BATCH_SIZES = {"hf": "max_batch_size", "vllm": "max_in_flight", "server": "max_in_flight"}
"""Back end to its option that says how many videos the model works on at once."""


def load_captioner(spec: ModelSpec) -> Captioner:
    """Build the captioner a spec describes.

    Raises:
        SettingsError: for an unknown back end, or a name that means no model.
        MissingExtraError: when the back end's packages are not installed.
        ModelError: when the model cannot be loaded.
    """
    check_backend(spec.backend)
    module, _, name = CAPTIONERS[spec.backend].partition(":")
    return cast("Captioner", getattr(importlib.import_module(module), name).from_spec(understood(spec)))


def check_backend(name: str) -> None:
    """Stop at a back end that is not in the table.

    Raises:
        SettingsError: naming it and those there are.
    """
    if name not in CAPTIONERS:
        raise SettingsError(f"unknown back end {name!r}; choose from {', '.join(CAPTIONERS)}")


def choose_backend(model_params: Mapping[str, Any], *, enable_vllm: bool) -> str:
    """The back end that an operator's parameters mean: a server where they name one, else vLLM or transformers.

    Raises:
        SettingsError: they mean two.
    """
    if "base_url" not in model_params:
        return "vllm" if enable_vllm else "hf"
    if enable_vllm:
        raise SettingsError(
            "model_params names a server, which runs the model itself: leave out enable_vllm (--vllm), or base_url "
            "(--server)"
        )
    return "server"


def batch_size_options(backend: str, batch_size: int) -> dict[str, int]:
    """What the operator's `batch_size` means to a back end."""
    return {BATCH_SIZES[backend]: batch_size} if backend in BATCH_SIZES else {}


def server_addresses(spec: ModelSpec) -> list[str]:
    """Addresses of the servers that run a spec's model, as they were given; none where this process runs it."""
    given = spec.options.get("base_url") if spec.backend == "server" else None
    return [str(one) for one in ([given] if isinstance(given, str) else given or [])]
