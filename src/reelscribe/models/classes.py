"""The transformers class that runs a checkpoint: its auto class, or the part of a model that sees and writes.

Knows configs; loads nothing.
"""

from __future__ import annotations

from typing import Any

from ..errors import ModelError

THINKER = "thinker_config"
"""Key, in the config of a model that also speaks, of the part that sees, hears and writes."""


def written_by(config: Any) -> Any:
    """The config of the part that sees and writes: the model's own, or that of its thinker (Qwen-Omni)."""
    return getattr(config, THINKER, None) or config


def class_for(config: Any) -> Any:
    """The class that loads a model: transformers' auto class for video models, or the class of its thinker.

    Raises:
        ModelError: it is not a text generator.
    """
    import transformers as hf

    part = written_by(config)
    pictures = hf.AutoModelForImageTextToText
    known = _class_in(pictures, part) or _class_in(hf.AutoModelForMultimodalLM, part)
    if known is not None and not issubclass(known, hf.GenerationMixin):
        raise ModelError(
            f"it does not write text token by token ({known.__name__} is no generator of transformers); choose a video "
            "model that does"
        )
    return pictures if known is None or _class_in(pictures, config) is known else known


def _class_in(auto: Any, config: Any) -> Any:
    found = auto._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found


def hears(model: Any) -> bool:
    """Whether a model accepts sound, which it is not given here."""
    return getattr(model.config, "audio_config", None) is not None
