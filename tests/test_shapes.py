"""The bundled model is right because it reads frames, their order and their times: measured on encoded clips."""

import json
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.cli import main
from reelscribe.demo.render import EVALUATION_SEEDS, encode_mp4, render, render_clip, sample_format
from reelscribe.demo.scenes import OPPOSITES, caption, parse_caption, sample_scene

MODEL = "reelscribe/shapes"
CONTROLS = 40
QUESTION = "How long is the video?"


@pytest.fixture(scope="module")
def shapes():
    operator = VideoCaptioningFromVLMMapper(MODEL, keep_original_sample=False, caption_key="captions")
    yield operator
    operator.close()


def captions_of(operator, paths, prompt=None):
    batch = {"videos": [[str(path)] for path in paths]}
    if prompt is None:
        return [texts[0] for texts in operator.process_batched(batch)["captions"]]
    asking = VideoCaptioningFromVLMMapper(
        captioner=operator.captioner, keep_original_sample=False, caption_key="captions", prompt=prompt
    )
    return [texts[0] for texts in asking.process_batched(batch)["captions"]]


def share_right(tmp_path, *, count, first_seed, novel):
    """Render clips, run the whole command over the folder, and compare facts."""
    folder = tmp_path / "clips"
    folder.mkdir()
    clips = [render_clip(folder / f"{i:04d}.mp4", first_seed + i, novel=novel) for i in range(count)]
    output = tmp_path / "out.jsonl"
    result = CliRunner().invoke(main, ["caption", str(folder), "-o", str(output), "--model", MODEL])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    wrong = [
        f"{clip.caption!r} became {row['captions'][0]!r}"
        for clip, row in zip(clips, rows, strict=True)
        if parse_caption(row["captions"][0]) != clip.scene.facts
    ]
    print(*wrong, sep="\n")
    return 1 - len(wrong) / count


@pytest.mark.slow
def test_held_out_clips_through_the_whole_command(tmp_path):
    assert share_right(tmp_path, count=200, first_seed=EVALUATION_SEEDS + 50_000, novel=False) >= 0.98


@pytest.mark.slow
def test_combinations_never_trained_through_the_whole_command(tmp_path):
    assert share_right(tmp_path, count=100, first_seed=EVALUATION_SEEDS + 60_000, novel=True) >= 0.95


def control_scenes():
    rng = np.random.default_rng(np.random.SeedSequence((7, 1)))
    for index in range(CONTROLS):
        form = sample_format(rng)
        scene = sample_scene(rng, kind="single", aspect=form.width / form.height, triples="trained")
        frames = render(scene, np.linspace(0, 1, form.frames), height=form.height, width=form.width)
        yield index, scene, form, frames


@pytest.mark.slow
def test_frames_and_their_order_arrive(shapes, tmp_path):
    variants = {
        "forward": lambda frames: frames,
        "reversed": lambda frames: np.ascontiguousarray(frames[::-1]),
        "blank": lambda frames: np.full_like(frames, 90),
        "first": lambda frames: np.repeat(frames[:1], len(frames), axis=0),
    }
    right = Counter()
    scenes = list(control_scenes())
    for name, change in variants.items():
        paths = []
        for index, _, form, frames in scenes:
            paths.append(tmp_path / f"{name}_{index}.mp4")
            encode_mp4(paths[-1], change(frames), fps=form.fps)
        for (_, scene, _, _), text in zip(scenes, captions_of(shapes, paths), strict=True):
            expected = parse_caption(caption(scene)).things[0]
            if name == "reversed":
                expected = (*expected[:2], OPPOSITES[expected[2]])
            found = parse_caption(text)
            right[name] += found is not None and found.kind == "single" and found.things[0] == expected
    assert right["forward"] >= 0.95 * CONTROLS
    assert right["reversed"] >= 0.95 * CONTROLS
    assert right["blank"] <= 0.1 * CONTROLS
    still = sum(scene.things[0].action == "still" for _, scene, _, _ in scenes)
    assert right["first"] <= still + 0.1 * CONTROLS


def test_frame_times_arrive(shapes, tmp_path):
    """The same 24 frames, played at 12 and at 4 frames per second, last 2 and 6 seconds."""
    slow, fast = [], []
    for index, _, _, frames in list(control_scenes())[:20]:
        picked = frames[np.linspace(0, len(frames) - 1, 24).round().astype(int)]
        fast.append(tmp_path / f"fast_{index}.mp4")
        slow.append(tmp_path / f"slow_{index}.mp4")
        encode_mp4(fast[-1], picked, fps=12)
        encode_mp4(slow[-1], picked, fps=4)
    assert captions_of(shapes, fast, QUESTION).count("About 2 seconds.") >= 19
    assert captions_of(shapes, slow, QUESTION).count("About 6 seconds.") >= 19


def test_candidates_differ_and_stay_true(tmp_path):
    clips = [render_clip(tmp_path / f"{i}.mp4", EVALUATION_SEEDS + 70_000 + i, kind="single") for i in range(12)]
    operator = VideoCaptioningFromVLMMapper(
        MODEL, caption_num=6, keep_candidate_mode="all", keep_original_sample=False, caption_key="captions"
    )
    texts = [texts[0] for texts in operator.process_batched({"videos": [[str(c.path)] for c in clips]})["captions"]]
    operator.close()
    groups = [texts[i : i + 6] for i in range(0, len(texts), 6)]
    assert sum(len(set(group)) > 1 for group in groups) >= 8
    true = sum(parse_caption(t) == c.scene.facts for c, g in zip(clips, groups, strict=True) for t in g)
    assert true >= 0.9 * len(texts)
