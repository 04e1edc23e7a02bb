"""Positions of text behind a video: one behind the largest so far, as the models' authors have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import small_families as small
from reelscribe.models.hf.positions import MISPLACED, corrected

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, ROWS, COLUMNS = 9, 3, 4
"""Of a video whose times reach further than its sides."""


@pytest.fixture(scope="module", params=sorted(MISPLACED))
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small.captioner(small.checkpoint(request.param, tmp_path_factory.mktemp("families")))


def inputs_of(captioner: Any, steps: int, *, padding: int = 0) -> dict[str, Any]:
    """A prompt of two words, a video and two words, a second of video a step."""
    size = steps * ROWS * COLUMNS
    video = captioner._model.config.video_token_id
    ids = [0] * padding + [20, 21] + [video] * size + [22, 23]
    kinds = [0] * (padding + 2) + [2] * size + [0, 0]
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([kinds]),
        "attention_mask": torch.tensor([[0] * padding + [1] * (size + 4)]),
        "video_grid_thw": torch.tensor([[steps, 2 * ROWS, 2 * COLUMNS]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def positions_of(captioner: Any, inputs: dict[str, Any]) -> torch.Tensor:
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    made: torch.Tensor = captioner._model._prepare_position_ids_for_generation(inputs["input_ids"], rest)
    return made


@pytest.mark.parametrize("padding", [0, 3])
def test_text_goes_on_behind_the_largest_position(captioner: Any, padding: int) -> None:
    inputs = inputs_of(captioner, STEPS, padding=padding)
    theirs = positions_of(captioner, inputs)
    ours = corrected(theirs, inputs, model_type=captioner._model.config.model_type)
    last = int(ours[1:, 0, :-2].max())
    assert last == int(theirs[1:, 0, :-2].max())
    assert ours[1:, 0, -2:].tolist() == [[last + 1, last + 2]] * 3
    assert torch.equal(ours[..., :-2], theirs[..., :-2])
    assert torch.equal(ours[0], theirs[0])


def test_positions_that_are_right_stay(captioner: Any) -> None:
    inputs = inputs_of(captioner, 1)
    theirs = positions_of(captioner, inputs)
    assert torch.equal(corrected(theirs, inputs, model_type=captioner._model.config.model_type), theirs)
    assert corrected(theirs, inputs, model_type="qwen3_vl") is theirs


def test_the_installed_transformers_still_misplaces_it(captioner: Any) -> None:
    inputs = inputs_of(captioner, STEPS)
    theirs = positions_of(captioner, inputs)
    assert int(theirs[1, 0, -2]) != int(theirs[1:, 0, :-2].max()) + 1, (
        f"transformers now has the text of {captioner._model.config.model_type} behind its videos: take it out of "
        "MISPLACED in models/hf/positions.py, and the sentence about it out of the README"
    )


def test_a_long_video_is_captioned_with_these_positions_whatever_its_batch(captioner: Any) -> None:
    clips = [small.clip(captioner, frames, 64, 96, seed=frames, fps=0.5) for frames in (40, 4)]
    assert small.same(small.answers(captioner, small.jobs(clips)), small.one_by_one(captioner, small.jobs(clips)))
    seen: list[torch.Tensor] = []
    captioner._model.register_forward_hook(
        lambda module, args, named, output: seen.append(named["position_ids"]), with_kwargs=True
    )
    small.answers(captioner, small.jobs(clips[:1]))
    prompt, first = seen[0], seen[1]
    behind = int(prompt[1:, 0, -1].max()) + 1
    assert first[1:, 0, 0].tolist() == [behind] * 3
    assert int(prompt[1, 0].max()) == int(prompt[1, 0, -1])
