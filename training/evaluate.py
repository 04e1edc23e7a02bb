"""Measure a checkpoint on mp4 files through the operator: `python -m training.evaluate CHECKPOINT --json FILE`.

Every clip is rendered, encoded as H.264 (crf 23) and captioned greedily by the operator `VideoCaptioningFromVLMMapper`.
The clips' seeds start at `EVALUATION_SEEDS` and come from another stream than training's; the novel ones show a colour,
a shape and an action that training never showed together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.demo.render import (
    EVALUATION_SEEDS,
    ClipFormat,
    RenderedClip,
    encode_mp4,
    plan_clip,
    render,
    render_clip,
)
from reelscribe.demo.scenes import Scene, caption
from reelscribe.models import load_captioner
from reelscribe.models.captioner import Captioner, ModelSpec
from training.dialogues import (
    COLOR_QUESTIONS,
    DURATION_QUESTIONS,
    PROMPTS,
    SHAPE_QUESTIONS,
    SYSTEM_PROMPTS,
    duration_answer,
    event_answer,
    event_question,
    listing,
    sudden_things,
)
from training.scoring import facts_right, reversed_facts, score

NOVEL_SEEDS = EVALUATION_SEEDS + 100_000
CONTROL_SEEDS = EVALUATION_SEEDS + 200_000
LONG_SEEDS = EVALUATION_SEEDS + 300_000
DISAPPEAR_SEEDS = EVALUATION_SEEDS + 400_000
LARGE_SIDES = (256, 320, 362, 400)
"""Sides of the square that has as many pixels as one frame, for the check of larger frames."""
LARGE_CLIPS = 60
DISAPPEAR_CLIPS = 40

PROMPT_CHECKS: tuple[tuple[str, str | None], ...] = (
    (PROMPTS[0], SYSTEM_PROMPTS[0]),
    ("What happens in the video?", None),
    ("Describe what you can see, please!", None),
    ("Schreibe eine kurze Bildunterschrift.", None),
    ("\u8bf7\u63cf\u8ff0\u8fd9\u4e2a\u89c6\u9891\u3002", None),
    (
        "Describe the video in detail, including objects, their colors, shapes, motion, and the order of events. " * 2,
        None,
    ),
    ("Please write one caption of this clip for a data set; say what appears and for how many seconds.", None),
)
"""Requests for a caption, most of them unknown to training, with their system prompts."""
FRAME_CHECKS: tuple[dict[str, Any], ...] = (
    {"fps": 2.0},
    {"fps": 1.0},
    {"num_frames": 4},
    {"num_frames": 6},
    {"num_frames": 8},
    {"num_frames": 16},
    {"max_pixels": 96 * 96},
)
"""Ways to choose frames other than the processor's own."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A loaded checkpoint and the folder that clips are rendered to."""

    captioner: Captioner
    """The checkpoint through the transformers back end."""
    clips: Path
    """Folder of the mp4 files; existing files are reused."""

    def captions(self, videos: Sequence[Path], *, prompt: str | None = None, **settings: Any) -> list[str]:
        """The operator's caption of each video."""
        operator = VideoCaptioningFromVLMMapper(
            captioner=self.captioner, keep_original_sample=False, prompt=prompt, caption_key="kept", **settings
        )
        rows = operator.run([{"text": "<__dj__video>", "videos": [str(video)]} for video in videos])
        if len(rows) != len(videos):
            raise RuntimeError(f"{len(videos) - len(rows)} of {len(videos)} clips failed: {operator.failures[:3]}")
        return [row["kept"][0] for row in rows]

    def answers(self, videos: Sequence[Path], questions: Sequence[str]) -> list[str]:
        """The answer to each video's own question."""
        operator = VideoCaptioningFromVLMMapper(
            captioner=self.captioner, keep_original_sample=False, prompt_key="question", caption_key="kept"
        )
        rows = [
            {"text": "<__dj__video>", "videos": [str(video)], "question": question}
            for video, question in zip(videos, questions, strict=True)
        ]
        return [row["kept"][0] for row in operator.run(rows)]

    def rendered(self, name: str, seeds: Sequence[int], **options: Any) -> list[RenderedClip]:
        """The clips of these seeds."""
        folder = self.clips / name
        folder.mkdir(parents=True, exist_ok=True)
        return [_rendered(folder / f"{seed}.mp4", seed, options) for seed in seeds]


def _rendered(path: Path, seed: int, options: dict[str, Any]) -> RenderedClip:
    if not path.exists():
        return render_clip(path, seed, **options)
    form, scene = plan_clip(seed, **options)
    return RenderedClip(path, scene, caption(scene), form.fps, form.frames, (form.height, form.width))


def load_bench(checkpoint: Path, clips: Path) -> Bench:
    """Load a checkpoint on the CPU in float32."""
    spec = ModelSpec("hf", str(checkpoint), {"device": "cpu", "dtype": "float32"})
    return Bench(load_captioner(spec), clips)


# ---- what is measured -------------------------------------------------------------------------------------------


def measure_accuracy(bench: Bench, sizes: argparse.Namespace) -> dict[str, Any]:
    """Fresh clips and clips of combinations that training never showed."""
    fresh = bench.rendered("fresh", range(EVALUATION_SEEDS, EVALUATION_SEEDS + sizes.fresh))
    novel = bench.rendered("novel", range(NOVEL_SEEDS, NOVEL_SEEDS + sizes.novel), novel=True)
    return {name: _score(bench, clips) for name, clips in (("fresh", fresh), ("novel", novel))}


def measure_weak_spots(bench: Bench, sizes: argparse.Namespace) -> dict[str, Any]:
    """Kinds of clips that are rare or absent among the fresh ones."""
    seeds = _seeds_where(_both_disappear, DISAPPEAR_SEEDS, DISAPPEAR_CLIPS)
    both = bench.rendered("disappear", seeds, kind="then", action="disappear")
    long_seeds = range(LONG_SEEDS, LONG_SEEDS + sizes.controls)
    long = bench.rendered("long", long_seeds, seconds=(7, 60))
    return {"both disappear": _score(bench, both), "7 to 60 seconds": _score(bench, long)}


def measure_controls(bench: Bench, sizes: argparse.Namespace) -> dict[str, Any]:
    """Whether frames, their order and their times decide the caption.

    Reversed frames must give the opposite sentence; blank frames and the first frame alone must not give the true one;
    the same frames at another rate must change the stated length.
    """
    folder = bench.clips / "controls"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(CONTROL_SEEDS, CONTROL_SEEDS + sizes.controls)
    plans = [plan_clip(seed, kind="single") for seed in seeds]
    scenes = [scene for _, scene in plans]
    said = {name: bench.captions(_write_controls(folder, name, plans)) for name in CONTROLS}
    backwards = [dataclasses.replace(scene, things=_reversed_things(scene)) for scene in scenes]
    return {
        "clips": len(scenes),
        "forward right": facts_right(scenes, said["forward"]),
        "reversed gives the opposite": facts_right(backwards, said["reversed"]),
        "true with blank frames": facts_right(scenes, said["blank"]),
        "true with the first frame only": facts_right(scenes, said["first frame"]),
        **_measure_rates(bench, folder, plans),
    }


def _measure_rates(bench: Bench, folder: Path, plans: Sequence[tuple[ClipFormat, Scene]]) -> dict[str, int]:
    """The same 24 frames, declared as 12 or 4 per second."""
    results = {}
    for fps, seconds in ((12, 2), (4, 6)):
        paths = []
        for index, (form, scene) in enumerate(plans):
            paths.append(folder / f"{index:03d}-fps{fps}.mp4")
            frames = render(scene, np.linspace(0, 1, 24), height=form.height, width=form.width)
            encode_mp4(paths[-1], frames, fps=fps)
        answers = bench.captions(paths, prompt=DURATION_QUESTIONS[0])
        results[f"24 frames at {fps} fps are {seconds} s"] = sum(text == duration_answer(seconds) for text in answers)
    return results


CONTROLS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda frames: frames,
    "reversed": lambda frames: frames[::-1],
    "blank": lambda frames: np.full_like(frames, 90),
    "first frame": lambda frames: np.repeat(frames[:1], len(frames), axis=0),
}
"""Changes to the frames before they are encoded."""


def _write_controls(folder: Path, name: str, plans: Sequence[tuple[ClipFormat, Scene]]) -> list[Path]:
    paths = []
    for index, (form, scene) in enumerate(plans):
        paths.append(folder / f"{index:03d}-{name.replace(' ', '-')}.mp4")
        if not paths[-1].exists():
            frames = render(scene, np.linspace(0, 1, form.frames), height=form.height, width=form.width)
            encode_mp4(paths[-1], np.ascontiguousarray(CONTROLS[name](frames)), fps=form.fps)
    return paths


def _reversed_things(scene: Scene) -> tuple[Any, ...]:
    actions = [fact[2] for fact in reversed_facts(scene).things]
    return tuple(dataclasses.replace(thing, action=action) for thing, action in zip(scene.things, actions, strict=True))


def measure_prompts(bench: Bench, sizes: argparse.Namespace) -> dict[str, Any]:
    """Captions whatever the request, and answers to the questions."""
    clips = bench.rendered("fresh", range(EVALUATION_SEEDS, EVALUATION_SEEDS + sizes.prompts))
    scenes, paths = [clip.scene for clip in clips], [clip.path for clip in clips]
    captions = {}
    for prompt, system in PROMPT_CHECKS:
        texts = bench.captions(paths, prompt=prompt, system_prompt=system)
        captions[f"{prompt[:60]} | {system or 'no system prompt'}"] = facts_right(scenes, texts)
    questions = {name: dict(zip(("right", "of"), counts, strict=True)) for name, counts in _ask_all(bench, clips)}
    return {"clips": len(clips), "captions right by prompt": captions, "questions": questions}


def _ask_all(bench: Bench, clips: Sequence[RenderedClip]) -> Iterator[tuple[str, tuple[int, int]]]:
    asked = {
        "length": (DURATION_QUESTIONS[0], [duration_answer(clip.duration_seconds) for clip in clips]),
        "colours": (COLOR_QUESTIONS[0], [listing([t.color for t in clip.scene.things]) for clip in clips]),
        "shapes": (SHAPE_QUESTIONS[0], [listing([t.shape for t in clip.scene.things]) for clip in clips]),
    }
    for name, (question, expected) in asked.items():
        answers = bench.captions([clip.path for clip in clips], prompt=question)
        yield name, (sum(one == other for one, other in zip(answers, expected, strict=True)), len(clips))
    events = [(clip, thing) for clip in clips for thing in sudden_things(clip.scene)]
    answers = bench.answers([clip.path for clip, _ in events], [event_question(thing) for _, thing in events])
    times = [thing.begins * clip.duration_seconds for clip, thing in events]
    exact = sum(text == event_answer(seconds) for text, seconds in zip(answers, times, strict=True))
    near = sum(text in _near_answers(seconds) for text, seconds in zip(answers, times, strict=True))
    yield "time of an event, to the second", (exact, len(events))
    yield "time of an event, within a second", (near, len(events))


def _near_answers(seconds: float) -> set[str]:
    whole = range(int(seconds), int(seconds) + 2)
    return {event_answer(float(one)) for one in whole}


def measure_frames(bench: Bench, sizes: argparse.Namespace) -> dict[str, Any]:
    """Other numbers and sizes of frames than the processor's own."""
    clips = bench.rendered("fresh", range(EVALUATION_SEEDS, EVALUATION_SEEDS + sizes.prompts))
    scenes, paths = [clip.scene for clip in clips], [clip.path for clip in clips]
    right = {str(settings): facts_right(scenes, bench.captions(paths, **settings)) for settings in FRAME_CHECKS}
    return {"clips": len(clips), "right": right}


def measure_large_frames(checkpoint: Path, clips_folder: Path) -> dict[str, Any]:
    """Frames of more pixels than the processor's settings allow, with the settings changed."""
    results = {}
    for side in LARGE_SIDES:
        with tempfile.TemporaryDirectory() as scratch:
            changed = Path(scratch) / "checkpoint"
            shutil.copytree(checkpoint, changed)
            _allow_pixels(changed, 8 * side * side)
            bench = load_bench(changed, clips_folder)
            clips = bench.rendered("fresh", range(EVALUATION_SEEDS, EVALUATION_SEEDS + LARGE_CLIPS))
            texts = bench.captions([clip.path for clip in clips])
            results[f"{side}x{side}"] = facts_right([clip.scene for clip in clips], texts)
    return {"clips": LARGE_CLIPS, "right": results}


def _allow_pixels(checkpoint: Path, pixels: int) -> None:
    """Make the processor resize every video to about so many pixels, all frames together."""
    size = {"shortest_edge": round(pixels * 0.9), "longest_edge": pixels}
    for name in ("processor_config.json", "video_preprocessor_config.json"):
        config = json.loads((checkpoint / name).read_text())
        config.get("video_processor", config)["size"] = size
        (checkpoint / name).write_text(json.dumps(config))


def _score(bench: Bench, clips: Sequence[RenderedClip]) -> dict[str, Any]:
    texts = bench.captions([clip.path for clip in clips])
    return score([clip.scene for clip in clips], texts)


def _both_disappear(scene: Scene) -> bool:
    return [thing.action for thing in scene.things] == ["disappear", "disappear"]


def _seeds_where(wanted: Callable[[Scene], bool], first: int, count: int) -> list[int]:
    """The first seeds whose scenes of two events, the first a disappearance, are wanted."""
    seeds: list[int] = []
    seed = first
    while len(seeds) < count:
        if wanted(plan_clip(seed, kind="then", action="disappear")[1]):
            seeds.append(seed)
        seed += 1
    return seeds


MEASURES: dict[str, Callable[[Bench, argparse.Namespace], dict[str, Any]]] = {
    "accuracy": measure_accuracy,
    "weak spots": measure_weak_spots,
    "controls": measure_controls,
    "prompts": measure_prompts,
    "frames": measure_frames,
}


# ---- command ----------------------------------------------------------------------------------------------------


def print_report(report: dict[str, Any], indent: str = "") -> None:
    """Nested figures, one per line; only the first few errors."""
    for name, value in report.items():
        if name == "wrong":
            for case in value[:8]:
                print(f"{indent}wrong: {case['true']} | {case['said']}")
        elif isinstance(value, dict) and "percent" in value:
            print(f"{indent}{name}: {value['right']}/{value['of']} = {value['percent']} %")
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            print_report(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("--clips", type=Path, default=Path("evaluation-clips"), help="folder for the rendered clips")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--fresh", type=int, default=500, help="fresh clips")
    parser.add_argument("--novel", type=int, default=100, help="clips of combinations that training never showed")
    parser.add_argument("--controls", type=int, default=60, help="clips for the controls, and long clips")
    parser.add_argument("--prompts", type=int, default=100, help="clips for the checks of prompts and frames")
    parser.add_argument("--accuracy-only", action="store_true", help="leave out everything but fresh and novel clips")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    bench = load_bench(arguments.checkpoint, arguments.clips)
    report: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        if arguments.accuracy_only and name != "accuracy":
            continue
        began = time.monotonic()
        report[name] = measure(bench, arguments)
        print(f"== {name} ({time.monotonic() - began:.0f} s)")
        print_report(report[name])
    if not arguments.accuracy_only:
        report["large frames"] = measure_large_frames(arguments.checkpoint, arguments.clips)
        print("== large frames")
        print_report(report["large frames"])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
