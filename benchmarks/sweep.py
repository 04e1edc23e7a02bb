"""Files with odd times, in every container, read as clips and compared with a plain full decode.

    python -m benchmarks.sweep --files 400

Each frame shows its number, and its time is known from how the file was made. The plain decode takes all packets in
the order of the file and keeps every picture. Compared are a clip of every frame, one of two frames a second, and one
of a window in the middle: which frames, their times (to a millisecond, or to the container's tick), the duration (to a
frame) and pixels (to one level). What differs is listed; figures go to `runs/benchmarks/sweep.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard

from reelscribe.types import Clip, Failure, TimeWindow
from reelscribe.video.frames.policy import FramePolicy
from reelscribe.video.reader import read_clip

from . import odd_files
from .odd_files import MUXERS, Plan

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "runs/benchmarks/sweep.json"
EVERY_FRAME = FramePolicy(fps=None, max_frames=1000, temporal_patch=1, sizer="fit")
TWO_A_SECOND = FramePolicy(temporal_patch=1, sizer="fit")
AS_READ = "as FFmpeg reads it"
"""Mark of times that are not as the file was made, but as FFmpeg gives them."""
LEVELS = 1
"""What a pixel may differ by."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of a plain decode."""

    number: int
    """What it shows."""
    seconds: float | None
    """Its own time on the file's clock."""
    pixels: Any
    """uint8 `[H, W, 3]`."""


def full_decode(path: Path) -> tuple[list[Picture], float]:
    """All frames in the order they come out, and the zero of the clock in seconds."""
    clips = odd_files.clips
    pictures: list[Picture] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        for other in container.streams:
            other.discard = Discard.none if other is stream else Discard.all
        stream.codec_context.thread_count = 1
        from_start = bool(container.format.flags & 0x200) and container.start_time is not None
        zero = container.start_time / av.time_base if from_start else 0.0
        for packet in _packets(container, stream):
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                seconds = None if frame.pts is None else float(frame.pts * stream.time_base)
                pixels = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
                pictures.append(Picture(clips.number_of(pixels), seconds, pixels))
        if container.format.name == "avi" and pictures and pictures[0].seconds is not None:
            zero = pictures[0].seconds
    return pictures, zero


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """All packets up to where the file is damaged, and what empties the decoder."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        yield None


@dataclass(slots=True)
class Right:
    """What is right for a file."""

    pictures: list[Picture]
    """All frames."""
    seconds: list[float]
    """Their times."""
    free: set[int]
    """Positions of frames whose time need only lie between its neighbours'."""
    end: tuple[float, float]
    """Least and greatest time when the last frame ends."""
    tick: float
    """What times may differ by."""
    plan: Plan
    """How it was made."""

    @classmethod
    def of(cls, plan: Plan, pictures: list[Picture], zero: float, *, suffix: str, codec: str) -> Right:
        """By how the file was made; the plain decode tells where its clock begins."""
        muxer, times = MUXERS[suffix], plan.times()
        origin = 0.0 if pictures[0].seconds is None else pictures[0].seconds - zero
        own = [picture.seconds for picture in pictures if picture.seconds is not None]
        if plan.times_from_file and len(own) == len(pictures):
            seconds = [one - zero for one in own]
        elif plan.times_from_file:
            seconds = [n * odd_files.STEP / 1000 for n in range(len(pictures))]
        else:
            made = [times.get(picture.number, math.nan) / 1000 for picture in pictures]
            seconds = [one - made[0] + origin for one in made]
        free = {n for n, picture in enumerate(pictures) if picture.number in plan.free}
        if (np.diff(seconds) <= 0).any() and plan.times_from_file:
            return cls(pictures, sorted(seconds), set(range(len(seconds))), (-math.inf, math.inf), math.inf, plan)
        steps = np.diff(seconds)
        usual = float(np.median(steps)) if len(steps) else 0.04
        told = muxer.tells_last and not plan.times_from_file and pictures[-1].number == max(times)
        last = plan.last / 1000 if told else usual
        slack = usual * 1.05 if told or not len(steps) else max(usual, float(steps[-5:].max())) * 1.05
        tick = 1.05e-3
        if suffix in ("mpg", "vob", "avi") or codec.endswith((" b", " open")):
            tick, slack = tick + plan.slack_ms / 1000, slack + plan.slack_ms / 1000
        elif len(plan.parts) > 1 and not plan.appended:
            tick += 0.008
        end = seconds[-1] + last
        ends = (end - slack, end + slack)
        if plan.end_ms is not None:
            ends = tuple(seconds[0] + one / 1000 for one in plan.end_ms)
        return cls(pictures, seconds, free, ends, tick + 1e-6, plan)


def differences(path: Path, right: Right, *, window: TimeWindow) -> list[str]:
    """What the clips of a file have wrong."""
    every = read_clip(str(path), EVERY_FRAME)
    if isinstance(every, Failure):
        return [f"refused: {every.kind}: {every.message}"]
    found = _frames(every, list(range(len(right.pictures))), right, "every frame")
    end = float(every.pts_seconds[0]) + every.duration_seconds
    told = [picture.seconds for picture in right.pictures]
    if (
        found
        and not any("frames" in line or "pixels" in line for line in found)
        and None not in told
        and len(told) == len(every.pts_seconds)
        and _same(every.pts_seconds, told)
    ):
        return [AS_READ, *found]
    if not right.end[0] <= end <= right.end[1]:
        found.append(f"ends at {end:.3f}, not in {right.end[0]:.3f}..{right.end[1]:.3f}")
    if found or right.plan.is_damaged:
        return found
    return _two_a_second(path, right, every) + _in_window(path, right, window)


def _same(seconds: Any, told: list[float]) -> bool:
    """Whether times differ by one zero alone, or not at all."""
    return bool(np.ptp(seconds - np.array(told)) < 2e-3)


def _two_a_second(path: Path, right: Right, every: Clip) -> list[str]:
    clip = read_clip(str(path), TWO_A_SECOND)
    if isinstance(clip, Failure):
        return [f"two a second: {clip.kind}: {clip.message}"]
    total = len(right.pictures)
    places = np.searchsorted(every.pts_seconds, clip.pts_seconds - 1e-9).tolist()
    wanted = min(total, max(4, int(every.duration_seconds * 2 + 1e-6)))
    steps = np.diff([*right.seconds, sum(right.end) / 2])
    is_even = total < 3 or float(np.ptp(steps)) < 0.003
    found = []
    if len(places) > wanted + 1 or len(places) < min(4, total) or (is_even and len(places) < wanted - 1):
        found.append(f"two a second: {len(places)} frames, not {wanted}")
    return found + _frames(clip, places, right, "two a second")


def _in_window(path: Path, right: Right, window: TimeWindow) -> list[str]:
    if right.tick > 0.005 or len(right.pictures) == 1:
        return []
    clip = read_clip(str(path), EVERY_FRAME, window=window)
    if isinstance(clip, Failure):
        return [f"window: {clip.kind}: {clip.message}"]
    inside = [n for n, at in enumerate(right.seconds) if window.start_seconds <= at <= window.end_seconds]
    if not inside:
        inside = [max(n for n, at in enumerate(right.seconds) if at < window.start_seconds)]
    if (
        right.tick > 0.005
        or len(right.pictures) == 1
        or right.free & {inside[0] - 1, inside[0], inside[-1], inside[-1] + 1}
    ):
        return []
    return _frames(clip, inside, right, "window")


def _frames(clip: Clip, places: list[int], right: Right, what: str) -> list[str]:
    pictures = [right.pictures[place] for place in places if place < len(right.pictures)]
    numbers, expected = odd_files.clips.numbers_of(clip.frames), [picture.number for picture in pictures]
    if right.plan.is_cut and places and places[-1] == len(right.pictures) - 1:
        numbers, expected, pictures = numbers[:-1], expected[:-1], pictures[:-1]
    if numbers != expected:
        return [f"{what}: frames {_short(numbers)} and not {_short(expected)}"]
    found = []
    for n, place in enumerate(places):
        at, wanted = float(clip.pts_seconds[n]), right.seconds[place]
        if place in right.free:
            before = right.seconds[place - 1] if place else -math.inf
            after = next(
                (right.seconds[k] for k in range(place + 1, len(right.seconds)) if k not in right.free), math.inf
            )
            if not before - right.tick <= at <= after + right.tick:
                found.append(f"{what}: time {n} is {at:.4f}, not in {before:.4f}..{after:.4f}")
        elif not abs(at - wanted) <= right.tick:
            found.append(f"{what}: time {n} is {at:.4f} and not {wanted:.4f}")
    if (np.diff(clip.pts_seconds) <= 0).any():
        found.append(f"{what}: times do not ascend")
    for n, picture in enumerate(pictures):
        if picture.pixels.shape != clip.frames[n].shape:
            continue
        levels = int(np.abs(picture.pixels.astype(np.int16) - clip.frames[n]).max())
        if levels > LEVELS:
            found.append(f"{what}: pixels of frame {n} differ by {levels} levels")
    return found[:3] + ([f"and {len(found) - 3} more"] if len(found) > 3 else [])


def _short(numbers: list[int]) -> str:
    text = ",".join(map(str, numbers))
    return f"{len(numbers)}:[{text if len(text) < 160 else text[:80] + '…' + text[-60:]}]"


def window_of(right: Right) -> TimeWindow:
    """The fifth in the middle; its ends lie at no frame."""
    begin, length = right.seconds[0], right.seconds[-1] - right.seconds[0]
    ends = []
    for share in (0.4, 0.6):
        at = begin + share * length
        while any(abs(at - one) < 3e-3 for one in right.seconds):
            at += 7e-3
        ends.append(at)
    return TimeWindow(*ends)


@dataclass(slots=True)
class Figures:
    """What came out for one kind of file."""

    made: int = 0
    """Files."""
    equal: int = 0
    """As the plain decode, in all that is compared."""
    as_read: list[str] = field(default_factory=list)
    """Files whose times FFmpeg reads otherwise than they were written, and we as FFmpeg does."""
    refused: Counter[str] = field(default_factory=Counter)
    """Cut files of which less than half is there, by kind of failure."""
    wrong: list[str] = field(default_factory=list)
    """What differs."""


def sweep(*, files: int, seed: int, only: str = "", kept: Path | None = None) -> tuple[dict[str, Figures], list[str]]:
    """Make files and compare them.

    Args:
        files: how many.
        seed: of all choices.
        only: text that `kind in suffix by codec` contains.
        kept: folder for the files that differ.

    Returns:
        Figures by kind, and what could not be made.
    """
    found: dict[str, Figures] = {}
    unmade: list[str] = []
    combinations = [one for one in odd_files.all_files() if only in name_of(*one)]
    order = np.random.default_rng(seed).permutation(len(combinations)).tolist()
    with tempfile.TemporaryDirectory(prefix="sweep-") as name:
        folder = Path(name)
        for index in order[:files]:
            kind, suffix, codec = combinations[index]
            path = folder / f"{index}.{suffix}"
            plan = odd_files.planned(kind, suffix, np.random.default_rng((seed, index)))
            try:
                odd_files.write(plan, path, suffix=suffix, codec=codec, folder=folder)
            except (av.FFmpegError, ValueError) as exc:
                unmade.append(f"{name_of(kind, suffix, codec)}: {exc}")
                continue
            wrong = _compare(plan, path, found.setdefault(kind, Figures()), suffix=suffix, codec=codec)
            for line in wrong:
                lines = found[kind].as_read if line.startswith(AS_READ) else found[kind].wrong
                lines.append(f"{name_of(kind, suffix, codec)}: {line}")
            if wrong and kept is not None:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{kind}-{codec}-{index}.{suffix}".replace(" ", "_")).write_bytes(path.read_bytes())
            path.unlink()
    return found, unmade


def name_of(kind: str, suffix: str, codec: str) -> str:
    """How a file is called in lists."""
    return f"{kind} in {suffix} by {codec}"


def _compare(plan: Plan, path: Path, figures: Figures, *, suffix: str, codec: str) -> list[str]:
    figures.made += 1
    try:
        pictures, zero = full_decode(path)
    except (av.FFmpegError, AttributeError):
        pictures, zero = [], 0.0
    if not pictures or (plan.may_refuse and len(pictures) < odd_files.FRAMES / 2):
        outcome = read_clip(str(path), EVERY_FRAME)
        if isinstance(outcome, Failure):
            figures.refused[outcome.kind] += 1
            return []
    if not pictures:
        return ["nothing comes out of the plain decode"]
    right = Right.of(plan, pictures, zero, suffix=suffix, codec=codec)
    wrong = differences(path, right, window=window_of(right))
    figures.equal += not wrong
    return ["; ".join(wrong)] if wrong else []


def table(found: dict[str, Figures]) -> str:
    """The figures by kind."""
    lines = ["| kind of file | made | equal | as FFmpeg reads it | refused | wrong |", "|---|---|---|---|---|---|"]
    for kind in odd_files.KINDS:
        if kind in found:
            one = found[kind]
            lines.append(_row(kind, one))
    total = Figures()
    for one in found.values():
        total.made, total.equal = total.made + one.made, total.equal + one.equal
        total.as_read, total.wrong = total.as_read + one.as_read, total.wrong + one.wrong
        total.refused += one.refused
    return "\n".join([*lines, _row("all", total)])


def _row(kind: str, one: Figures) -> str:
    refused = ", ".join(f"{count} `{name}`" for name, count in one.refused.items()) or "0"
    return f"| {kind} | {one.made} | {one.equal} | {len(one.as_read)} | {refused} | {len(one.wrong)} |"


def main(arguments: list[str] | None = None) -> None:
    """Read what is asked, make and compare files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400, help="files to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: %(default)s)")
    parser.add_argument("--only", default="", help="only files whose name, like `gap in mkv by vp9`, contains this")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the figures (default: %(default)s)")
    asked = parser.parse_args(arguments)
    av.logging.set_level(av.logging.PANIC)
    began = time.process_time()
    found, unmade = sweep(files=asked.files, seed=asked.seed, only=asked.only, kept=asked.out.with_suffix(""))
    wrong = [line for one in found.values() for line in one.wrong]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"wrong": wrong, "unmade": unmade}, indent=1) + "\n")
    print(table(found))
    print(*wrong, sep="\n")
    print(*[line for one in found.values() for line in one.as_read], sep="\n")
    print(f"{len(unmade)} files that no muxer writes; {time.process_time() - began:.0f} s of CPU time")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
