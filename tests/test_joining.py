"""Batches put together of what a processor makes of each request: clips of any size together, the same captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import small_families as small
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.hf.joining import JoinedInputs, found_alike, joined

pytestmark = pytest.mark.usefixtures("one_thread")


def made(*tokens: int, pixels: int = 1, width: int = 2) -> dict[str, Any]:
    """What a processor makes of one request: a prompt of these tokens, a clip of some rows of pixels."""
    ids = torch.tensor([tokens])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.full((pixels, width), float(tokens[-1])),
        "video_grid_thw": torch.tensor([[pixels, 1, 1]]),
        "second_per_grid_ts": [0.5],
    }


def test_prompts_are_padded_on_the_left_and_pixels_stand_behind_one_another() -> None:
    batch = joined([made(7, 8, pixels=2), made(9, pixels=1)], pad_id=5)
    assert batch["input_ids"].tolist() == [[7, 8], [5, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["pixel_values_videos"].tolist() == [[8, 8], [8, 8], [9, 9]]
    assert batch["video_grid_thw"].tolist() == [[2, 1, 1], [1, 1, 1]]
    assert batch["second_per_grid_ts"] == [0.5, 0.5]
    assert batch.rows == {"pixel_values_videos": [2, 1], "video_grid_thw": [1, 1]}


def test_pixels_of_a_repeated_clip_stand_there_once() -> None:
    batch = joined([made(7, pixels=2), made(8, pixels=3), made(9, pixels=2)], first=[0, 1])
    assert len(batch["pixel_values_videos"]) == 5
    assert batch.rows == {"pixel_values_videos": [2, 3], "video_grid_thw": [1, 1, 1]}


def test_tensors_of_different_shapes_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="pixel_values_videos of shapes"):
        joined([made(7), made(8, width=3)])


ALONE = (made(7, 8), made(9), made(4, 5, 6, pixels=2))


@pytest.mark.parametrize(
    ("together", "alike"),
    [
        (lambda numbers: joined([ALONE[number] for number in numbers]), ()),
        (lambda numbers: joined([ALONE[number] for number in numbers[:2]]), ("length",)),
        (lambda numbers: {**joined([ALONE[number] for number in numbers]), "more": 1}, None),
        (lambda numbers: joined([ALONE[number] for number in reversed(numbers)]), None),
        (lambda numbers: 1 / 0, None),
    ],
)
def test_a_batch_is_joined_as_far_as_its_processor_makes_the_same(
    together: Callable[[Any], JoinedInputs], alike: tuple[str, ...] | None
) -> None:
    assert found_alike(together, lambda number: ALONE[number], pad_id=0) == alike


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


class Prefills:
    """Rows of each prompt that a model reads."""

    def __init__(self, made: HFCaptioner) -> None:
        self.rows: list[int] = []
        made._model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, named: dict[str, Any], output: Any) -> None:
        if named["input_ids"].shape[1] > 1:
            self.rows.append(len(named["input_ids"]))


OWN_WARNINGS = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
"""Some families' processors hand tensors to numpy in a way that it warns of."""


@OWN_WARNINGS
@pytest.mark.parametrize(
    ("name", "alike", "batches"),
    [("internvl", (), [3]), ("gemma4", (), [3]), ("glm4v", (), [3]), ("llava_onevision", ("length",), [1, 2])],
)
def test_clips_of_different_sizes_share_a_batch_and_are_told_the_same(
    folder: Path, name: str, alike: tuple[str, ...], batches: list[int]
) -> None:
    captioner = small.captioner(small.checkpoint(name, folder))
    asked = small.jobs(small.different(captioner))
    alone = small.one_by_one(captioner, asked)
    prefills = Prefills(captioner)
    assert small.same(small.answers(captioner, asked), alone)
    assert sorted(prefills.rows) == batches
    assert captioner._alike == alike
    assert [one.candidates[0].text for one in alone] == [small.generated(captioner, job) for job in asked]
    assert len({round(one.candidates[0].mean_logprob or 0, 3) for one in alone}) == len(asked)


@OWN_WARNINGS
def test_a_family_whose_batches_cannot_be_joined_has_them_by_shape(folder: Path) -> None:
    captioner = small.captioner(small.checkpoint("minicpmv4_6", folder))
    asked = small.jobs(small.different(captioner))
    assert captioner._alike is None
    assert len({captioner._job(*job).group for job in asked}) == 3
    assert small.same(small.answers(captioner, asked), small.one_by_one(captioner, asked))


@pytest.mark.parametrize("name", ["gemma4", "internvl", "llava_onevision"])
def test_a_repeated_clip_is_encoded_once_and_told_the_same(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = small.captioner(small.checkpoint(name, folder))
    vision = captioner._vision
    assert vision is not None
    one, _, other = small.different(captioner)
    asked = small.jobs([one, other, one, one])
    alone = small.one_by_one(captioner, asked)
    encoded: list[int] = []
    encode = vision._encoded

    def count(inputs: Any, first: Any, keys: Any) -> Any:
        encoded.append(len(keys))
        return encode(inputs, first, keys)

    monkeypatch.setattr(vision, "_encoded", count)
    assert small.same(small.answers(captioner, asked), alone)
    assert encoded == [2]
