"""The tiny clip that is captioned while a model loads: what goes wrong there is the error, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import small_families as small
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.errors import ModelError
from reelscribe.models import ModelSpec, load_captioner
from reelscribe.models.captioner import generation_config
from reelscribe.models.chat import policy_from_processor
from reelscribe.models.hf.captioner import HFCaptioner
from reelscribe.models.hf.kv_cache import CachedContinuation, carried_axes
from reelscribe.models.trial import trial_requests

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ModelSpec("hf", "reelscribe/shapes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def error_of(spec: ModelSpec) -> str:
    with pytest.raises(ModelError) as caught:
        load_captioner(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


# models that cannot be run


def test_a_model_that_is_no_text_generator_is_refused_by_name(folder: Path) -> None:
    path = small.checkpoint("diffusion_gemma", folder)
    message = error_of(ModelSpec("hf", str(path)))
    assert f"model '{path}' cannot be used: it does not write text token by token" in message
    assert "DiffusionGemmaForBlockDiffusion" in message


@pytest.fixture
def broken_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the Qwen3-VL family whose vision encoder fails, as encoders of new families do now and then."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    def fail(*args: Any, **named: Any) -> Any:
        raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to 8")

    monkeypatch.setattr(Qwen3VLVisionModel, "forward", fail)


@pytest.mark.usefixtures("broken_encoder")
def test_a_model_whose_video_encoder_fails_is_refused_with_the_cause() -> None:
    message = error_of(SHAPES)
    assert "model 'reelscribe/shapes' cannot be used: it cannot caption a video" in message
    assert "split_with_sizes" in message


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ValueError("no such argument"), "it cannot caption a video, .*: ValueError: no such argument"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the device's memory is not enough for it and a tiny video"),
    ],
)
@pytest.mark.parametrize(("owner", "where"), [(CachedContinuation, "read"), (HFCaptioner, "_prepare")])
def test_what_goes_wrong_with_the_clip_is_the_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, owner: type, where: str
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(owner, where, fail)
    with pytest.raises(ModelError, match=f"model 'reelscribe/shapes' cannot be used: {what}"):
        load_captioner(SHAPES)


@pytest.mark.usefixtures("broken_encoder")
def test_the_operator_stops_before_any_row() -> None:
    operator = VideoCaptioningFromVLMMapper("reelscribe/shapes")
    with pytest.raises(ModelError, match="cannot caption a video"):
        operator.process_batched({"text": [""], "videos": [["gone.mp4"]]})


# models that take other arguments, or remember more


@pytest.mark.parametrize("name", ["minimax_m3_vl", "cosmos3_edge", "qwen4_exp"])
def test_families_with_ways_of_their_own_are_captioned(folder: Path, name: str) -> None:
    captioner = small.captioner(small.checkpoint(name, folder), temperature=0.9)
    clips = small.different(captioner)
    several = small.jobs(clips, candidates=3)
    together, alone = small.answers(captioner, several), small.one_by_one(captioner, several)
    assert small.same(together, alone)
    assert all(len({(one.text, one.reasoning) for one in result.candidates}) > 1 for result in together)


def test_what_a_cache_carries_is_found_out_and_selected(folder: Path) -> None:
    captioner = small.captioner(small.checkpoint("qwen4_exp", folder))
    [job] = small.jobs(small.different(captioner)[:1])
    inputs = captioner._inputs([captioner._job(*job)])
    with torch.inference_mode():
        plain = CachedContinuation.read(captioner._model, inputs, carried=captioner._carried)
        on_cache = getattr(plain._cache, "position_ids", None) is not None  # until transformers 5.2x
        assert captioner._carried == ({"position_ids": 1} if on_cache else {})
        tokens = plain.logits.argmax(-1)
        copied = CachedContinuation.read(captioner._model, inputs, carried=captioner._carried)
        copied.select(torch.zeros(3, dtype=torch.long))
        plain.advance(tokens)
        copied.advance(tokens.expand(3))
    assert torch.allclose(copied.logits, plain.logits.expand(3, -1), atol=1e-5)


def test_a_tensor_that_a_cache_carries_is_found_by_its_rows(folder: Path) -> None:
    captioner = small.captioner(small.checkpoint("internvl", folder))
    [shown] = small.jobs(small.different(captioner)[:1])

    def read(count: int) -> CachedContinuation:
        made = captioner._read_plainly([shown] * count)
        made._cache.notes = torch.zeros(4, count, 7)
        made._cache.constants = torch.zeros(1, 5)
        return made

    assert carried_axes(read) == {"notes": 1}


def test_where_a_cache_cannot_be_selected_from_the_prompt_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    generation = generation_config({"max_tokens": 8})
    spec = ModelSpec("hf", "reelscribe/shapes", generation=generation)
    usual = load_captioner(spec)

    def refuse(self: Any, index: torch.Tensor) -> None:
        raise RuntimeError("this cache cannot be reordered")

    monkeypatch.setattr(CachedContinuation, "select", refuse)
    captioner = load_captioner(spec)
    assert isinstance(captioner, HFCaptioner)
    assert not captioner._selects
    asked = small.jobs(small.different(captioner), candidates=3)
    ours = small.answers(captioner, asked)
    monkeypatch.undo()
    assert small.same(ours, small.answers(usual, asked))


# nothing else changes


def test_a_captioner_that_was_tried_is_as_one_that_was_not(loaded: Any) -> None:
    generation = generation_config({"max_tokens": 8})
    made = [HFCaptioner(loaded, policy=policy_from_processor(loaded.processor), generation=generation) for _ in "ab"]
    state, drawn = torch.get_rng_state(), [vars(one).copy() for one in made]
    made[0].try_out()
    assert torch.equal(torch.get_rng_state(), state)
    changed = {name for name, value in vars(made[0]).items() if value is not drawn[0][name]}
    assert changed <= {"_clocks", "_carried"}
    assert made[0].busy_seconds == {"prepare": 0, "model": 0}
    assert made[0]._budget == made[1]._budget
    asked = small.jobs(small.different(made[0]), candidates=2)
    assert small.answers(made[0], asked) == small.answers(made[1], asked)


def test_the_clip_costs_one_prompt_and_one_step_besides_what_tells_of_the_cache(loaded: Any) -> None:
    captioner = HFCaptioner(
        loaded, policy=policy_from_processor(loaded.processor), generation=generation_config({"max_tokens": 512})
    )
    seen: list[tuple[int, ...]] = []
    hook = loaded.model.register_forward_hook(
        lambda module, args, named, output: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    captioner.try_out()
    hook.remove()
    assert [rows for rows, _ in seen] == [1, 1, 2]
    assert [tokens for _, tokens in seen][-1] == 1
    assert max(tokens for _, tokens in seen) < 100


def test_the_clips_are_what_a_reader_would_make(loaded: Any) -> None:
    policy = policy_from_processor(loaded.processor)
    for _, clip in trial_requests(policy):
        _, height, width, _ = clip.frames.shape
        assert height % policy.multiple == width % policy.multiple == 0
        assert clip.pts_seconds[-1] < clip.duration_seconds
