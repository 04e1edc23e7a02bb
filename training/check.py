"""Proof that training batches are what the model will see: `python -m training.check`.

Compares token ids, pixels and M-RoPE positions with the installed processor and model, and the quick CPU operations
with the original ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from reelscribe.demo.render import Frames, render
from reelscribe.demo.scenes import sample_scene
from training.architecture import build_model, build_processor
from training.batches import (
    Grid,
    TokenWriter,
    draw_grid,
    draw_large_grid,
    normalized,
    pair_timestamps,
    patchify,
    rope_positions,
)
from training.dialogues import PROMPTS, SYSTEM_PROMPTS, Dialogue
from training.fast_cpu import fast_operations
from training.vocabulary import train_tokenizer

FRAMES = 60
FPS = 15


def check() -> None:
    """Raise AssertionError at the first difference."""
    rng = np.random.default_rng(3)
    tokenizer = train_tokenizer()
    processor, model = build_processor(tokenizer), build_model(tokenizer, seed=0)
    writer = TokenWriter(tokenizer)
    for draw in (draw_grid, draw_grid, draw_grid, draw_large_grid):
        grid = draw(rng)
        clip = render(
            sample_scene(rng, aspect=grid.aspect), np.linspace(0, 1, FRAMES), height=grid.height, width=grid.width
        )
        for system in (None, SYSTEM_PROMPTS[0]):
            for video_first in (True, False):
                check_clip(clip, grid, Dialogue(system, PROMPTS[0], "x"), video_first, processor, model, writer)
        print(f"{grid.frames} frames of {grid.width}x{grid.height}: ids, pixels, positions and vision features equal")


def check_clip(
    clip: Frames,
    grid: Grid,
    dialogue: Dialogue,
    video_first: bool,
    processor: Qwen3VLProcessor,
    model: Qwen3VLForConditionalGeneration,
    writer: TokenWriter,
) -> None:
    """Compare one clip with one dialogue."""
    inputs = _process(clip, grid, dialogue, video_first, processor)
    indices = np.linspace(0, FRAMES - 1, grid.frames).round().astype(int)
    video = writer.video(pair_timestamps(indices.tolist(), FPS), grid.rows * grid.columns)
    ids, _ = writer.dialogue(dialogue, video, video_first=video_first)
    assert inputs["input_ids"][0].tolist() == ids, "token ids differ"

    pixels = normalized(patchify(torch.from_numpy(clip[indices][None]).permute(0, 1, 4, 2, 3)))
    assert inputs["video_grid_thw"].tolist() == grid.patch_grid(1).tolist(), "grids differ"
    assert (pixels - inputs["pixel_values_videos"]).abs().max() < 1e-5, "pixels differ"

    expected, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    assert np.array_equal(expected[:, 0].numpy(), rope_positions(ids, writer.video_token, grid)), "positions differ"

    with torch.no_grad():
        original = model.model.visual(pixels, grid_thw=grid.patch_grid(1)).pooler_output
        with fast_operations():
            quick = model.model.visual(pixels, grid_thw=grid.patch_grid(1)).pooler_output
    assert torch.allclose(original, quick, atol=1e-4), "vision features differ"


def _process(
    clip: Frames, grid: Grid, dialogue: Dialogue, video_first: bool, processor: Qwen3VLProcessor
) -> dict[str, Any]:
    content = [{"type": "video"}, {"type": "text", "text": dialogue.prompt}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content if video_first else content[::-1]}]
    if dialogue.system:
        messages.insert(0, {"role": "system", "content": dialogue.system})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pixels = grid.frames * grid.height * grid.width
    return dict(
        processor(
            text=[text],
            videos=[clip],
            video_metadata=[{"fps": FPS, "total_num_frames": FRAMES, "duration": FRAMES / FPS}],
            return_tensors="pt",
            num_frames=grid.frames,
            fps=None,
            size={"shortest_edge": pixels, "longest_edge": pixels + 1},
        )
    )


if __name__ == "__main__":
    check()
