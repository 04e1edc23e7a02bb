"""The captioners; `backends.py` has the table of back ends."""

from __future__ import annotations

from .backends import (
    BACKENDS,
    CAPTIONERS,
    Backend,
    backend_of,
    choose_backend,
    identity_packages,
    load_captioner,
    model_gpus,
    model_revision,
    server_addresses,
    size_options,
    spelled,
    understood,
)
from .captioner import Captioner, ModelSpec
from .checkpoints import has_adapter

__all__ = [
    "BACKENDS",
    "CAPTIONERS",
    "Backend",
    "Captioner",
    "ModelSpec",
    "backend_of",
    "choose_backend",
    "has_adapter",
    "identity_packages",
    "load_captioner",
    "model_gpus",
    "model_revision",
    "server_addresses",
    "size_options",
    "spelled",
    "understood",
]
