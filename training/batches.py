"""Training batches, drawn and rendered on the fly, exactly as the processor would make them from a file.

A batch is determined by its random generator. Every clip of a batch has the same number of frames and the same size.
`training.check` compares token ids, pixels and positions with the real processor and model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from reelscribe.demo.render import FRAME_RATES, Frames, render, sample_format
from reelscribe.demo.scenes import COLORS, SHAPES, Kind, Scene, SceneMix, sample_scene
from training.architecture import (
    FRAMES_PER_STEP,
    MAX_VIDEO_PIXELS,
    MERGE_SIZE,
    MIN_VIDEO_PIXELS,
    PATCH_SIZE,
    TOKEN_PIXELS,
)
from training.dialogues import Clock, Dialogue, Wording, draw_dialogue

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

CLASSES = [(color, shape) for color in COLORS for shape in SHAPES]
"""Classes of the auxiliary head; class 0 is the background."""
REGRESSIONS = 8
"""Per token: centre, size, their change between the two frames, and visibility in each frame."""

FRAME_COUNTS = {8: 0.53, 4: 0.12, 6: 0.10, 16: 0.06, 10: 0.05, 12: 0.05, 7: 0.03, 5: 0.03, 3: 0.02, 2: 0.01}
"""How often a batch has clips of so many frames."""
LARGE_FRAME_COUNTS = {8: 0.6, 4: 0.2, 6: 0.1, 12: 0.1}
LARGE_SIDES = (160, 400)
"""Range of the short side of large frames, in pixels."""
LARGE_TOKENS = 2600
"""Video tokens in a batch of large frames, which bounds its time and memory."""
WORDINGS: tuple[Wording, ...] = ("short", "mixed", "long")
WORDING_SHARES = (0.64, 0.26, 0.10)
"""How often the dialogues of a batch are of each wording."""
TRAINING_MIX = SceneMix(single=0.34, then=0.40, beside=0.26, second_disappears=0.42, both_disappear=0.06)
EASY_MIX = SceneMix(single=0.66, then=0.0, beside=0.34)


@dataclass(frozen=True)
class Grid:
    """Frames of a batch: their number and size, and the size of the clips they represent."""

    frames: int
    """Frames per clip."""
    height: int
    """Pixels, a multiple of `TOKEN_PIXELS`."""
    width: int
    """Pixels, a multiple of `TOKEN_PIXELS`."""
    source_height: int
    """Height of the clip before the processor's resize."""
    source_width: int
    """Width of the clip before the processor's resize."""

    @property
    def rows(self) -> int:
        """Rows of video tokens."""
        return self.height // TOKEN_PIXELS

    @property
    def columns(self) -> int:
        """Columns of video tokens."""
        return self.width // TOKEN_PIXELS

    @property
    def steps(self) -> int:
        """Pairs of frames; an odd last frame is doubled."""
        return -(-self.frames // FRAMES_PER_STEP)

    @property
    def tokens(self) -> int:
        """Video tokens of one clip."""
        return self.steps * self.rows * self.columns

    @property
    def aspect(self) -> float:
        """Width by height of the clip."""
        return self.source_width / self.source_height

    def patch_grid(self, clips: int) -> Tensor:
        """`video_grid_thw` of a batch: int64 `[clips, 3]`."""
        shape = [self.steps, self.height // PATCH_SIZE, self.width // PATCH_SIZE]
        return torch.tensor([shape] * clips)


@dataclass(frozen=True)
class Timeline:
    """Which moments of a clip are shown, and the times given to the model."""

    moments: Floats
    """Normalised time of each frame."""
    timestamps: list[float]
    """Seconds of each pair of frames, as the processor writes them."""
    clock: Clock
    """Length and offset of the clip."""


@dataclass(frozen=True)
class VisionBatch:
    """Pixels with dense labels."""

    pixels: Tensor
    """uint8 `[patches, 1536]`; `normalized` converts them to the model's input."""
    grid: Tensor
    """int64 `[clips, 3]`."""
    classes: Tensor
    """int64 `[video tokens]`: 0 for the background, else 1 + index in `CLASSES`."""
    regressions: Tensor
    """float32 `[video tokens, REGRESSIONS]`, meaningful where the class is not 0."""


@dataclass(frozen=True)
class CaptionBatch(VisionBatch):
    """Pixels and dense labels with the tokens of one dialogue per clip.

    Padded on the right, so causal attention alone keeps the padding out of what is learnt.
    """

    input_ids: Tensor
    """int64 `[clips, length]`."""
    labels: Tensor
    """int64 `[clips, length]`; -100 for tokens that are not learnt."""
    positions: Tensor
    """int64 `[3, clips, length]`: M-RoPE positions."""

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.input_ids)


# ---- drawing ----------------------------------------------------------------------------------------------------


def draw_grid(rng: np.random.Generator, *, frames: int | None = None) -> Grid:
    """A clip's format and the size to which the processor resizes it."""
    count = frames or _draw_count(rng, FRAME_COUNTS)
    form = sample_format(rng)
    height, width = smart_resize(
        count, form.height, form.width, FRAMES_PER_STEP, TOKEN_PIXELS, MIN_VIDEO_PIXELS, MAX_VIDEO_PIXELS
    )
    return Grid(count, height, width, form.height, form.width)


def draw_large_grid(rng: np.random.Generator) -> Grid:
    """Frames larger than the processor's default, as with other pixel limits."""
    form = sample_format(rng, short_side=LARGE_SIDES)
    shrink = min(1.0, LARGE_SIDES[1] / max(form.height, form.width))
    height, width = (max(2, round(side * shrink / TOKEN_PIXELS)) * TOKEN_PIXELS for side in (form.height, form.width))
    return Grid(_draw_count(rng, LARGE_FRAME_COUNTS), height, width, form.height, form.width)


def draw_timeline(rng: np.random.Generator, frames: int) -> Timeline:
    """Mostly 2 to 7 seconds, sometimes up to a minute, a window of a longer video, or unevenly spaced frames."""
    fps = int(rng.choice(FRAME_RATES))
    total = max(round((_draw_seconds(rng) + rng.uniform(-0.25, 0.25)) * fps), frames, 2)
    positions = np.linspace(0, total - 1, frames)
    if rng.random() < 0.1:
        spacing = (total - 1) / max(frames - 1, 1)
        positions[1:-1] += rng.uniform(-0.35, 0.35, max(frames - 2, 0)) * spacing
    indices = positions.round().astype(int)
    offset = round(float(rng.uniform(0.5, 60)), 2) if rng.random() < 0.08 else 0.0
    timestamps = [time + offset for time in pair_timestamps(indices.tolist(), fps)]
    moments = (indices / (total - 1)).astype(np.float32)
    return Timeline(moments, timestamps, Clock(total / fps, offset))


def pair_timestamps(indices: Sequence[int], fps: float) -> list[float]:
    """Mean time of each pair of frames, as `Qwen3VLProcessor` takes it."""
    padded = [*indices, indices[-1]] if len(indices) % 2 else list(indices)
    return [(first / fps + second / fps) / 2 for first, second in zip(padded[::2], padded[1::2], strict=True)]


def _draw_seconds(rng: np.random.Generator) -> int:
    if rng.random() < 0.85:
        return int(rng.integers(2, 8))
    return int(rng.integers(1, 13 if rng.random() < 0.7 else 61))


def _draw_count(rng: np.random.Generator, shares: dict[int, float]) -> int:
    return int(rng.choice(list(shares), p=list(shares.values())))


def _draw_scene(rng: np.random.Generator, grid: Grid, mix: SceneMix) -> Scene:
    """A scene that the frames can show: with two frames only a change from first to last is visible."""
    kind: Kind | None = "single" if grid.frames == 2 else None
    while True:
        scene = sample_scene(rng, kind=kind, aspect=grid.aspect, triples="trained", mix=mix)
        if grid.frames > 3 or scene.things[0].action != "bounce":
            return scene


def _draw_frames(rng: np.random.Generator, scene: Scene, moments: Floats, grid: Grid) -> Frames:
    """Render at the target size; an encoder has taken away part of the noise."""
    background = dataclasses.replace(
        scene.background, noise_sigma=scene.background.noise_sigma * float(rng.uniform(0.2, 1.1))
    )
    scale = float(rng.uniform(0.8, 1.25))
    return render(
        dataclasses.replace(scene, background=background),
        moments,
        height=grid.height,
        width=grid.width,
        source_size=(grid.source_height * scale, grid.source_width * scale),
        softness=float(rng.uniform(0, 0.5)),
    )


# ---- pixels -----------------------------------------------------------------------------------------------------


def as_decoded(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """What encoding does to frames, roughly: float32 `[N, 3, H, W]` in, uint8 out.

    Half the batches are blurred, 40 % have their colour at half the resolution (4:2:0); each clip's brightness varies.
    """
    if rng.random() < 0.5:
        frames = _blur(frames, float(rng.uniform(0.05, 0.25)))
    if rng.random() < 0.4:
        frames = _halve_chroma(frames)
    return frames.clamp_(0, 255).round_().to(torch.uint8)


def _blur(frames: Tensor, share: float) -> Tensor:
    frames = frames.clone()
    for axis in (2, 3):
        length = frames.shape[axis] - 2
        centre = frames.narrow(axis, 1, length)
        sides = frames.narrow(axis, 0, length) + frames.narrow(axis, 2, length)
        centre.mul_(1 - 2 * share).add_(sides, alpha=share)
    return frames


def _halve_chroma(frames: Tensor) -> Tensor:
    """Keep brightness sharp and average the rest over 2 x 2 pixels."""
    luma = 0.299 * frames[:, :1] + 0.587 * frames[:, 1:2] + 0.114 * frames[:, 2:]
    chroma = frames - luma
    halves = chroma[..., ::2] + chroma[..., 1::2]
    means = (halves[..., ::2, :] + halves[..., 1::2, :]) / 4
    return means.repeat_interleave(2, 2).repeat_interleave(2, 3).add_(luma)


def patchify(frames: Tensor) -> Tensor:
    """Frames `[clips, T, 3, H, W]` to the patches of `pixel_values_videos`: uint8 `[patches, 1536]`."""
    if frames.shape[1] % FRAMES_PER_STEP:
        frames = torch.cat([frames, frames[:, -1:]], 1)
    clips, count, channels, height, width = frames.shape
    split = frames.reshape(
        clips,
        count // FRAMES_PER_STEP,
        FRAMES_PER_STEP,
        channels,
        height // TOKEN_PIXELS,
        MERGE_SIZE,
        PATCH_SIZE,
        width // TOKEN_PIXELS,
        MERGE_SIZE,
        PATCH_SIZE,
    ).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return split.reshape(-1, channels * FRAMES_PER_STEP * PATCH_SIZE**2)


def normalized(patches: Tensor) -> Tensor:
    """8-bit patches as model input: float32 between -1 and 1."""
    return patches.float().sub_(127.5).mul_(1 / 127.5)


def _finish_pixels(clips: Sequence[Frames], rng: np.random.Generator) -> Tensor:
    stacked = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
    gains = torch.from_numpy(rng.uniform(0.93, 1.05, (len(clips), 1, 1, 1, 1)).astype(np.float32))
    levels = (stacked * gains).contiguous()
    return patchify(as_decoded(levels.flatten(0, 1), rng).view(levels.shape))


# ---- dense labels -----------------------------------------------------------------------------------------------


def dense_labels(scene: Scene, moments: Floats, grid: Grid) -> tuple[Integers, Floats]:
    """Class and regressions of every video token: `[tokens]` and `[tokens, REGRESSIONS]`."""
    when = np.append(moments, moments[-1:]) if len(moments) % 2 else moments
    classes = np.zeros((grid.steps, grid.rows, grid.columns), np.int64)
    values = np.zeros((*classes.shape, REGRESSIONS), np.float32)
    for thing in scene.things:
        track = thing.at(when)
        first, second = (slice(start, None, FRAMES_PER_STEP) for start in (0, 1))
        states = np.stack(
            [
                (track.x[first] + track.x[second]) / 2,
                (track.y[first] + track.y[second]) / 2,
                track.radius[first] + track.radius[second],
                4 * (track.x[second] - track.x[first]),
                4 * (track.y[second] - track.y[first]),
                8 * (track.radius[second] - track.radius[first]),
                track.visible[first],
                track.visible[second],
            ],
            1,
        )
        label = 1 + CLASSES.index((thing.color, thing.shape))
        for step in np.flatnonzero(track.visible[first] | track.visible[second]):
            covered = _covered_tokens(states[step], grid)
            classes[step][covered] = label
            values[step][covered] = states[step]
    return classes.reshape(-1), values.reshape(-1, REGRESSIONS)


def _covered_tokens(state: Floats, grid: Grid) -> NDArray[np.bool_]:
    """The tokens around a thing's centre, at least the one that contains it."""
    x, y, diameter = (float(value) for value in state[:3])
    reach = diameter / 2 * 0.75 * min(grid.height, grid.width)
    down = np.abs((np.arange(grid.rows) + 0.5) * TOKEN_PIXELS - y * grid.height) < reach
    across = np.abs((np.arange(grid.columns) + 0.5) * TOKEN_PIXELS - x * grid.width) < reach
    covered = down[:, None] & across[None]
    covered[min(grid.rows - 1, max(0, int(y * grid.rows))), min(grid.columns - 1, max(0, int(x * grid.columns)))] = True
    return np.asarray(covered)


# ---- tokens -----------------------------------------------------------------------------------------------------


class TokenWriter:
    """Writes dialogues as token ids, as processor and chat template together do."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self.video_start, self.video_end, self.video_token, self.pad = (
            int(tokenizer.convert_tokens_to_ids(token))
            for token in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|endoftext|>")
        )

    def text(self, text: str) -> list[int]:
        """Token ids of a piece of text, special tokens included."""
        if text not in self._cache:
            if len(self._cache) > 20_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer(text, add_special_tokens=False).input_ids
        return self._cache[text]

    def video(self, timestamps: Sequence[float], tokens_per_step: int, *, wrapped: bool = True) -> list[int]:
        """Timestamps and placeholders; `wrapped` puts one more start and end around all, as newer releases do."""
        ids: list[int] = []
        for seconds in timestamps:
            ids += self.text(f"<{seconds:.1f} seconds>")
            ids += [self.video_start, *[self.video_token] * tokens_per_step, self.video_end]
        return [self.video_start, *ids, self.video_end] if wrapped else ids

    def dialogue(
        self, dialogue: Dialogue, video: list[int], *, video_first: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, up to the assistant's turn, and of the answer."""
        prompt = self.text(dialogue.prompt)
        ids = self.text(f"<|im_start|>system\n{dialogue.system}<|im_end|>\n") if dialogue.system else []
        user = video + prompt if video_first else prompt + video
        ids = ids + self.text("<|im_start|>user\n") + user + self.text("<|im_end|>\n<|im_start|>assistant\n")
        return ids, self.text(dialogue.answer) + self.text("<|im_end|>")


def rope_positions(ids: Sequence[int], video_token: int, grid: Grid) -> Integers:
    """M-RoPE positions `[3, length]` of one sequence, equal to `Qwen3VLModel.get_rope_index`.

    Text advances in all three rows; a step of video has one time and counts its rows and columns, and the text after it
    continues past the longer side.
    """
    tokens = np.asarray(ids)
    per_step = grid.rows * grid.columns
    rows = np.repeat(np.arange(grid.rows), grid.columns)
    columns = np.tile(np.arange(grid.columns), grid.rows)
    positions = np.zeros((3, len(tokens)), np.int64)
    is_video = tokens == video_token
    index = position = 0
    while index < len(tokens):
        if is_video[index]:
            stop = index + per_step
            positions[:, index:stop] = position + np.stack([np.zeros_like(rows), rows, columns])
            position += max(grid.rows, grid.columns)
        else:
            ahead = np.flatnonzero(is_video[index:])
            stop = index + int(ahead[0]) if len(ahead) else len(tokens)
            positions[:, index:stop] = position + np.arange(stop - index)
            position += stop - index
        index = stop
    return positions


# ---- batches ----------------------------------------------------------------------------------------------------


def vision_batch(rng: np.random.Generator, clips: int) -> VisionBatch:
    """Single pairs of neighbouring frames with dense labels, for the vision tower alone."""
    grid = draw_grid(rng, frames=8)
    pair = dataclasses.replace(grid, frames=FRAMES_PER_STEP)
    frames, labels = [], []
    for _ in range(clips):
        scene = sample_scene(rng, aspect=grid.aspect, triples="trained")
        first = int(rng.integers(0, grid.frames - 1))
        moments = np.array([first, first + 1], np.float32) / (grid.frames - 1)
        frames.append(_draw_frames(rng, scene, moments, pair))
        labels.append(dense_labels(scene, moments, pair))
    return VisionBatch(_finish_pixels(frames, rng), pair.patch_grid(clips), *_stack_labels(labels))


def caption_batch(
    rng: np.random.Generator, writer: TokenWriter, clips: int, *, mix: SceneMix = TRAINING_MIX, large: bool = False
) -> CaptionBatch:
    """Whole clips with one dialogue each; with `large` frames there are fewer clips when tokens would be too many."""
    grid = draw_large_grid(rng) if large else draw_grid(rng)
    count = max(2, min(clips, LARGE_TOKENS // grid.tokens)) if large else clips
    wording = WORDINGS[int(rng.choice(len(WORDINGS), p=WORDING_SHARES))]
    frames, labels, sequences = [], [], []
    for _ in range(count):
        timeline = draw_timeline(rng, grid.frames)
        scene = _draw_scene(rng, grid, mix)
        frames.append(_draw_frames(rng, scene, timeline.moments, grid))
        labels.append(dense_labels(scene, timeline.moments, grid))
        video = writer.video(timeline.timestamps, grid.rows * grid.columns, wrapped=rng.random() < 0.8)
        dialogue = draw_dialogue(rng, scene, timeline.clock, wording=wording)
        sequences.append(writer.dialogue(dialogue, video, video_first=rng.random() < 0.9))
    return CaptionBatch(
        _finish_pixels(frames, rng), grid.patch_grid(count), *_stack_labels(labels), *_pad(sequences, writer, grid)
    )


def _stack_labels(labels: Sequence[tuple[Integers, Floats]]) -> tuple[Tensor, Tensor]:
    classes, regressions = zip(*labels, strict=True)
    return torch.from_numpy(np.concatenate(classes)), torch.from_numpy(np.concatenate(regressions))


def _pad(
    sequences: Sequence[tuple[list[int], list[int]]], writer: TokenWriter, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, labels and positions of all sequences at one length."""
    shape = (len(sequences), max(len(prompt) + len(answer) for prompt, answer in sequences))
    input_ids = np.full(shape, writer.pad, np.int64)
    labels = np.full(shape, -100, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    for row, (prompt, answer) in enumerate(sequences):
        ids = prompt + answer
        input_ids[row, : len(ids)] = ids
        labels[row, len(prompt) : len(ids)] = answer
        positions[:, row, : len(ids)] = rope_positions(ids, writer.video_token, grid)
    return torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(positions)
