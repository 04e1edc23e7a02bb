"""Captions for video data sets, written by vision-language models.

This module only hands public names on; each is loaded from its own module on first use, so that `import reelscribe`
stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        DataError,
        FailedSamplesError,
        MissingExtraError,
        ModelError,
        ReelscribeError,
        SettingsError,
    )
    from .mapper import VideoCaptioningFromVLMMapper
    from .models import CAPTIONERS, load_captioner
    from .models.base import Captioner, GenerationConfig, ModelSpec
    from .models.scripted import ScriptedCaptioner
    from .plan import RowOutcome
    from .record import Candidate, CaptionRequest, CaptionResult, Clip, Failure
    from .selection import SELECTORS
    from .video.sampling import FramePolicy, FrameSettings

__version__ = "0.1.0"

_HOMES = {
    "errors": (
        "DataError",
        "FailedSamplesError",
        "MissingExtraError",
        "ModelError",
        "ReelscribeError",
        "SettingsError",
    ),
    "mapper": ("VideoCaptioningFromVLMMapper",),
    "models": ("CAPTIONERS", "load_captioner"),
    "models.base": ("Captioner", "GenerationConfig", "ModelSpec"),
    "models.scripted": ("ScriptedCaptioner",),
    "plan": ("RowOutcome",),
    "record": ("Candidate", "CaptionRequest", "CaptionResult", "Clip", "Failure"),
    "selection": ("SELECTORS",),
    "video.sampling": ("FramePolicy", "FrameSettings"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CAPTIONERS",
    "SELECTORS",
    "Candidate",
    "CaptionRequest",
    "CaptionResult",
    "Captioner",
    "Clip",
    "DataError",
    "FailedSamplesError",
    "Failure",
    "FramePolicy",
    "FrameSettings",
    "GenerationConfig",
    "MissingExtraError",
    "ModelError",
    "ModelSpec",
    "ReelscribeError",
    "RowOutcome",
    "ScriptedCaptioner",
    "SettingsError",
    "VideoCaptioningFromVLMMapper",
    "__version__",
    "load_captioner",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
