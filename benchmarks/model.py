"""A checkpoint with the bundled weights that sees videos as Qwen3-VL-8B-Instruct does: so many frames, so many tokens.

What it writes means nothing. What it costs to read, to prepare and to prefill is like the large model's; the weights
alone are small.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from reelscribe.models.chat import BUNDLED_MODELS

VIDEO_SETTINGS = {"fps": 2, "min_frames": 4, "max_frames": 768}
"""As in the preprocessor config of Qwen/Qwen3-VL-8B-Instruct."""
VIDEO_PIXELS = {"shortest_edge": 4096, "longest_edge": 25_165_824}
MAX_POSITIONS = 32_768


def make_model(folder: Path) -> Path:
    """Write the checkpoint, once."""
    if folder.exists():
        return folder
    unfinished = folder.with_name(f".{folder.name}")
    shutil.copytree(BUNDLED_MODELS["reelscribe/shapes"], unfinished, dirs_exist_ok=True)
    for name in ("processor_config.json", "video_preprocessor_config.json"):
        if (unfinished / name).exists():
            _edit(unfinished / name, _wide_video)
    _edit(
        unfinished / "config.json", lambda config: config["text_config"].update(max_position_embeddings=MAX_POSITIONS)
    )
    unfinished.rename(folder)
    return folder


def _wide_video(config: dict[str, Any]) -> None:
    video = config.get("video_processor", config)
    video.update(VIDEO_SETTINGS, size=VIDEO_PIXELS)


def _edit(path: Path, change: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values, indent=1), "utf-8")
