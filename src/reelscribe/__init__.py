"""Captions for video data sets, written by vision-language models.

This module only hands public names on; each is loaded from its own module on first use, so that `import reelscribe`
stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering.selection import SELECTORS
    from .errors import (
        DataError,
        FailedSamplesError,
        MissingExtraError,
        ModelError,
        ReelscribeError,
        SettingsError,
    )
    from .models import CAPTIONERS, load_captioner
    from .models.captioner import Captioner, GenerationConfig, ModelSpec
    from .models.scripted import ScriptedCaptioner
    from .operator import VideoCaptioningFromVLMMapper
    from .rows.outcome import RowOutcome
    from .types import Candidate, CaptionRequest, CaptionResult, Clip, Failure
    from .video.frames.moments import FramePolicy, FrameSettings

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
    "operator": ("VideoCaptioningFromVLMMapper",),
    "models": ("CAPTIONERS", "load_captioner"),
    "models.captioner": ("Captioner", "GenerationConfig", "ModelSpec"),
    "models.scripted": ("ScriptedCaptioner",),
    "rows.outcome": ("RowOutcome",),
    "types": ("Candidate", "CaptionRequest", "CaptionResult", "Clip", "Failure"),
    "answering.selection": ("SELECTORS",),
    "video.frames.moments": ("FramePolicy", "FrameSettings"),
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
