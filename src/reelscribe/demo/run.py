"""The demonstration: render clips the bundled model has never seen, caption them, and report which captions are
true."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..operator import VideoCaptioningFromVLMMapper
from ..runners.run.run import caption_file
from .render import DEMO_SEEDS, RenderedClip, render_clip
from .scenes import parse_caption

if TYPE_CHECKING:
    from ..runners.report.summary import RunSummary

DEMO_MODEL = "reelscribe/shapes"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One clip of the demonstration."""

    clip: RenderedClip
    """What was rendered."""
    kept: str | None
    """The caption that was kept, or None where the video failed."""

    @property
    def right(self) -> bool:
        """Whether every fact of the caption is true of the clip, whatever its wording."""
        return self.kept is not None and parse_caption(self.kept) == self.clip.scene.facts


def run_demo(folder: Path, *, clips: int, candidates: int, seed: int, console: Console) -> int:
    """Render, caption and compare; the clips and captions stay in `folder`.

    Args:
        folder: where the clips and the captions go.
        clips: how many clips.
        candidates: captions written for each, one of which is kept.
        seed: chooses the clips and the captions.
        console: where the table is printed.

    Returns:
        0 if every clip got a caption, 3 if some failed; a wrong caption is not a failure.

    Raises:
        MissingExtraError: what runs the model is not installed.
    """
    importlib.import_module("reelscribe.models.hf")  # before anything is rendered
    videos = folder / "clips"
    videos.mkdir(parents=True, exist_ok=True)
    console.print(f"Rendering {clips} clips that the model has never seen to {videos} …")
    rendered = [_render(videos, index, seed * 10_000 + index) for index in range(clips)]
    source = folder / "clips.jsonl"
    source.write_text("".join(json.dumps({"video": f"clips/{clip.path.name}"}) + "\n" for clip in rendered))
    output = folder / "captions.jsonl"
    summary = _caption(source, output, candidates=candidates, seed=seed)
    kept = [json.loads(line)["captions"] for line in output.read_text("utf-8").splitlines()]
    rows = [DemoRow(clip, texts[0] if texts else None) for clip, texts in zip(rendered, kept, strict=True)]
    _print(rows, console, folder=folder, output=output, candidates=candidates)
    if summary.stages is not None:
        console.print(summary.stages.line(), soft_wrap=True, markup=False, highlight=False)
    return 3 if summary.failures else 0


def _render(folder: Path, index: int, seed: int) -> RenderedClip:
    return render_clip(folder / f"clip_{index:03d}.mp4", DEMO_SEEDS + seed)


def _caption(source: Path, output: Path, *, candidates: int, seed: int) -> RunSummary:
    operator = VideoCaptioningFromVLMMapper(
        DEMO_MODEL, caption_num=candidates, seed=seed, video_root=str(source.parent)
    )
    try:
        return caption_file(operator, source, output, overwrite=True)
    finally:
        operator.close()


def _print(rows: list[DemoRow], console: Console, *, folder: Path, output: Path, candidates: int) -> None:
    table = Table(title=f"Kept caption of {candidates} candidates a clip")
    for heading in ("clip", "what it shows", "kept caption", ""):
        table.add_column(heading)
    for row in rows:
        verdict = "[green]right[/green]" if row.right else "[red]wrong[/red]"
        table.add_row(row.clip.path.name, row.clip.caption, row.kept or "(failed)", verdict)
    console.print(table)
    right = sum(row.right for row in rows)
    console.print(f"{right} of {len(rows)} captions are right ({100 * right / max(1, len(rows)):.0f} %).")
    console.print(f"Clips: {folder / 'clips'}   captions: {output}", soft_wrap=True)
    console.print(f"{DEMO_MODEL} is a demonstration model: its words mean something for rendered shapes only.")
