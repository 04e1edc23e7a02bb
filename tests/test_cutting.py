"""Parts of videos as files of their own: which frames are in them, when, and what a part that cannot be cut costs."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import clips
from reelscribe import DataError, ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.data.pieces import CUTS as NAMES
from reelscribe.data.pieces import Piece, waiting_path
from reelscribe.runners.run import cutter
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import run_folder
from reelscribe.types import CaptionRequest, Clip, TimeWindow
from reelscribe.video.cutting import CUTS, attempt
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import DEFAULT_LIMITS
from reelscribe.video.reader import read_clip
from rows import jsonl, load

EVERY_FRAME = FramePolicy(fps=1000, max_frames=1000)
KEYS = {"g": "5"}
VIDEOS: dict[str, dict[str, Any]] = {
    "sound.mp4": {"count": 40, "options": KEYS, "audio": True},
    "sound.mkv": {"count": 40, "options": KEYS | {"bf": "2"}, "audio": True},
    "sound.ts": {"count": 40, "options": KEYS, "audio": True},
    "vp9.webm": {"count": 40, "codec": "libvpx-vp9", "options": KEYS},
    "hevc.mp4": {"count": 40, "codec": "libx265", "options": {"x265-params": "keyint=5:log-level=none"}},
    "vfr.mp4": {"options": KEYS, "pts": [i * i for i in range(20)], "time_base": Fraction(1, 100)},
    "vfr.mkv": {"options": KEYS, "pts": [i * i for i in range(20)], "time_base": Fraction(1, 100)},
    "ntsc.mp4": {"count": 40, "fps": "30000/1001", "options": KEYS},
    "turned.mp4": {"options": KEYS, "prepare": clips.rotated(90)},
    "turned.mkv": {"options": KEYS, "prepare": clips.rotated(180)},
    "mirrored.mp4": {"options": KEYS, "prepare": clips.rotated(270, hflip=True)},
    "deep.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "colours.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
}
WINDOWS = [TimeWindow(0.72, 1.31), TimeWindow(None, 0.5), TimeWindow(1.0, None), TimeWindow(0.5, 0.5)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A video of `VIDEOS`, rendered on first use."""
    folder = tmp_path_factory.mktemp("cut")

    def of(name: str) -> Path:
        path = folder / name
        return path if path.exists() else clips.render_video(path, **VIDEOS[name])

    return of


def shown(path: Path, window: TimeWindow = WINDOWS[0]) -> Clip:
    """The frames of a window, or of a whole file."""
    clip = read_clip(path, EVERY_FRAME, window=window)
    assert isinstance(clip, Clip), clip
    return clip


def frames_of(clip: Clip) -> list[int]:
    """The numbers of its frames, without those that fill it up."""
    numbers = clips.numbers_of(clip.frames)
    return numbers[: len(np.unique(clip.pts_seconds))]


def cut(path: Path, target: Path, window: TimeWindow, how: str) -> Path:
    """The part as a file."""
    assert attempt(str(path), window=window, limits=DEFAULT_LIMITS, target=target, cut=how) is None
    assert [one.name for one in target.parent.iterdir()] == [target.name]
    return target


def test_the_table_of_cuts_is_that_of_names() -> None:
    assert tuple(CUTS) == NAMES


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("window", WINDOWS)
def test_an_exact_part_has_the_frames_that_its_caption_is_about(
    tmp_path: Path, rendered: Callable[[str], Path], name: str, window: TimeWindow
) -> None:
    wanted = shown(rendered(name), window)
    made = shown(cut(rendered(name), tmp_path / "part.mp4", window, "exact"), TimeWindow())
    assert made.frames.shape == wanted.frames.shape
    assert frames_of(made) == frames_of(wanted)
    steps = wanted.pts_seconds - wanted.pts_seconds[0]
    assert np.allclose(made.pts_seconds - made.pts_seconds[0], steps, atol=0.0015)
    assert made.pts_seconds[0] == 0


@pytest.mark.parametrize("name", [name for name in VIDEOS if name not in ("frames.avi", "colours.gif")])
def test_a_copied_part_begins_at_the_key_frame_before_it(
    tmp_path: Path, rendered: Callable[[str], Path], name: str
) -> None:
    source = rendered(name)
    wanted, whole = frames_of(shown(source)), frames_of(shown(source, TimeWindow()))
    made = shown(cut(source, tmp_path / f"part{source.suffix}", WINDOWS[0], "copy"), TimeWindow())
    numbers = frames_of(made)
    at = whole.index(numbers[0]) if len(set(whole)) == len(whole) else None
    place = next(i for i in range(len(numbers)) if numbers[i : i + len(wanted)] == wanted)
    assert place + len(wanted) >= len(numbers) - 3  # frames that the last ones refer to
    assert made.frames.shape[1:] == shown(source).frames.shape[1:]
    if at is not None:
        assert numbers == whole[at : at + len(numbers)]
        assert len(numbers) - len(wanted) < 10


def test_a_file_without_times_is_not_copied(tmp_path: Path, rendered: Callable[[str], Path]) -> None:
    failure = attempt(
        str(rendered("frames.avi")), window=WINDOWS[0], limits=DEFAULT_LIMITS, target=tmp_path / "a.mkv", cut="copy"
    )
    assert "cut it exactly" in str(failure)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.ts"])
def test_the_sound_goes_along(tmp_path: Path, rendered: Callable[[str], Path], name: str, how: str) -> None:
    source = rendered(name)
    suffix = ".mp4" if how == "exact" else source.suffix
    with av.open(str(cut(source, tmp_path / f"part{suffix}", WINDOWS[0], how))) as made:
        assert [stream.type for stream in made.streams] == ["video", "audio"]
        samples = sum(frame.samples for frame in made.decode(audio=0))
    wanted = 0.6 if how == "exact" else 1.0
    assert samples / 8000 == pytest.approx(wanted, abs=0.25)


def test_sound_is_cut_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "in" / "beep.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuv420p"
        sound: Any = container.add_stream("pcm_s16le", rate=8000)
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(clips.numbered_frame(number), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        wave = np.zeros((1, 16000), np.int16)
        wave[:, 8000:8800] = 20000  # from 1.0 s to 1.1 s
        for start in range(0, 16000, 800):
            made = av.AudioFrame.from_ndarray(wave[:, start : start + 800], format="s16", layout="mono")
            made.sample_rate, made.pts = 8000, start
            container.mux(sound.encode(made))
        container.mux(sound.encode())
    target = tmp_path / "out" / "part.mp4"
    target.parent.mkdir()
    with av.open(str(cut(path, target, TimeWindow(0.7, 1.3), "exact"))) as made_file:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in made_file.decode(audio=0)])
    loud = np.flatnonzero(np.abs(heard) > 0.3)
    assert loud[0] / 8000 == pytest.approx(0.3, abs=0.01)
    assert loud[-1] / 8000 == pytest.approx(0.4, abs=0.01)


def test_a_turned_picture_stays_stored_as_it_was(tmp_path: Path, rendered: Callable[[str], Path]) -> None:
    with av.open(str(cut(rendered("turned.mp4"), tmp_path / "part.mp4", WINDOWS[0], "exact"))) as made:
        assert (made.streams.video[0].width, made.streams.video[0].height) == (96, 64)


# in a run


def captions(request: CaptionRequest, _i: int) -> str:
    return f"{request.window.start_seconds:g}"


def operator(fn: Any = captions, **parameters: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn), **parameters)


SETTINGS: dict[str, Any] = {"format": "videofolder", "with_videos": True, "cut": "exact"}


def three(folder: Path, video: Path, *more: dict[str, Any]) -> Path:
    """A data file about three parts of a video, and other rows."""
    rows = [{"video": str(video), "start_seconds": start, "end_seconds": start + 1} for start in range(3)]
    return jsonl(folder / "rows.jsonl", [*rows, *more])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


PARTS = ["sound.00000-00001.mp4", "sound.00000-00001.txt", "sound.00001-00002.mp4", "sound.00001-00002.txt",
         "sound.00002-00003.mp4", "sound.00002-00003.txt"]  # fmt: skip


@pytest.mark.parametrize("how", NAMES)
def test_a_run_cuts_the_parts_that_its_rows_are_about(
    tmp_path: Path, rendered: Callable[[str], Path], how: str
) -> None:
    out = tmp_path / "out"
    source = three(tmp_path, rendered("sound.mp4"), {"video": str(rendered("vp9.webm"))})
    summary = caption_file(
        operator(lambda request, _i: str(request.window.start_seconds)), source, out, **SETTINGS | {"cut": how}
    )
    assert (summary.rows_in, summary.failed_rows) == (4, 0)
    assert names_in(out) == ["README.md", "metadata.jsonl", *PARTS, "vp9.txt", "vp9.webm"]
    assert (out / "sound.00001-00002.txt").read_text() == "1.0"
    assert [row["file_name"] for row in load(out / "metadata.jsonl")] == [*PARTS[::2], "vp9.webm"]
    numbers = frames_of(shown(out / PARTS[2], TimeWindow()))
    assert numbers[-11:] == list(range(10, 21))
    assert how == "copy" or len(numbers) == 11
    assert not [path for path in (run_folder(out / "metadata.jsonl") / "pieces").iterdir() if path.suffix != ".json"]
    assert caption_file(operator(lambda _r, _i: "x"), source, out, **SETTINGS | {"cut": how}).is_old


def test_a_part_that_cannot_be_cut_is_the_failure_of_its_row(tmp_path: Path, rendered: Callable[[str], Path]) -> None:
    out, noise = tmp_path / "out", tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    late = {"video": str(rendered("vp9.webm")), "start_seconds": 100, "end_seconds": 101}
    source = three(tmp_path, rendered("sound.mp4"), {"video": str(noise), "start_seconds": 0, "end_seconds": 1}, late)
    summary = caption_file(operator(failure_key="failure"), source, out, **SETTINGS)
    assert summary.failures == {"unreadable": 1, "no_frames": 1}
    assert (summary.failed_rows, summary.captions, summary.exit_code) == (2, 3, 3)
    assert names_in(out) == ["README.md", "metadata.jsonl", "metadata.jsonl.failures.jsonl", *PARTS]
    failed = load(out / "metadata.jsonl.failures.jsonl")
    assert [(one["row"], one["kind"]) for one in failed] == [(3, "unreadable"), (4, "no_frames")]


def test_retry_cuts_what_was_mended_and_leaves_the_rest(
    tmp_path: Path, rendered: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, video = tmp_path / "out", tmp_path / "late.mp4"
    source = three(tmp_path, rendered("sound.mp4"), {"video": str(video), "start_seconds": 0, "end_seconds": 1})
    asked: list[int] = []

    def count(request: CaptionRequest, i: int) -> str:
        asked.append(request.id.row)
        return captions(request, i)

    assert caption_file(operator(count), source, out, **SETTINGS).failures == {"not_found": 1}
    before = {name: (out / name).stat().st_ino for name in PARTS[::2]}
    clips.render_video(video)
    asked.clear()
    tried: list[str] = []
    real = cutter.Cutter._try
    monkeypatch.setattr(
        cutter.Cutter,
        "_try",
        lambda self, piece, plain: tried.append(piece.target.name) or real(self, piece, plain=plain),
    )
    summary = caption_file(operator(count), source, out, **SETTINGS, retry=())
    assert (summary.failed_rows, asked, tried) == (0, [3], ["late.00000-00001.mp4"])
    assert {name: (out / name).stat().st_ino for name in PARTS[::2]} == before
    assert (out / "late.00000-00001.txt").read_text() == "0"


@pytest.mark.parametrize("name", [PARTS[0], "sound.mp4"])
def test_a_file_with_the_name_of_a_part_is_not_replaced(
    tmp_path: Path, rendered: Callable[[str], Path], name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"theirs")
    source = three(tmp_path, rendered("sound.mp4"), {"video": str(rendered("sound.mp4"))})
    with pytest.raises(DataError, match="already exists"):
        caption_file(operator(), source, out, **SETTINGS)
    assert names_in(out) == [name]


@pytest.mark.parametrize(("what", "kind"), [("crash", "crashed"), ("hang", "timeout")])
def test_a_process_that_dies_while_it_cuts_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, kind: str
) -> None:
    monkeypatch.setattr(cutter, "CUTTING", "fake_readers:read")
    video = tmp_path / f"{what}.mp4"
    video.touch()
    summary = caption_file(operator(max_read_seconds=1), three(tmp_path, video), tmp_path / "out", **SETTINGS)
    assert summary.failures == {kind: 3}


def test_a_run_that_was_ended_goes_on_with_its_parts(tmp_path: Path, rendered: Callable[[str], Path]) -> None:
    out = tmp_path / "out"
    source = three(tmp_path, rendered("sound.mp4"))

    def stop(request: CaptionRequest, i: int) -> str:
        if request.id.row == 2:
            raise KeyboardInterrupt
        return captions(request, i)

    with pytest.raises(KeyboardInterrupt):
        caption_file(operator(stop), source, out, **SETTINGS, part_rows=1)
    assert not out.exists() or not names_in(out)
    caption_file(operator(), source, out, **SETTINGS, part_rows=1)
    assert names_in(out) == ["README.md", "metadata.jsonl", *PARTS]


def test_retry_by_name_knows_how_parts_are_cut(tmp_path: Path) -> None:
    out, video = tmp_path / "out", tmp_path / "late.mp4"
    source = jsonl(tmp_path / "rows.jsonl", [{"video": str(video), "start_seconds": 0, "end_seconds": 1}])
    op = VideoCaptioningFromVLMMapper("reelscribe/shapes", sampling_params={"max_tokens": 4})
    assert caption_file(op, source, out, **SETTINGS).failed_rows == 1
    op.close()
    assert retry_file(out).failed_rows == 1  # the folder names it, too
    clips.render_video(video)
    assert retry_file(out / "metadata.jsonl").failed_rows == 0
    assert "late.00000-00001.mp4" in names_in(out)


def test_the_last_frame_stays_as_long_as_in_its_source(tmp_path: Path, rendered: Callable[[str], Path]) -> None:
    window = TimeWindow(0.0, 0.3)  # frames at 0, 0.01, 0.04, 0.09, 0.16, 0.25; the next one at 0.36
    made = shown(cut(rendered("vfr.mp4"), tmp_path / "part.mp4", window, "exact"), TimeWindow())
    assert made.duration_seconds == pytest.approx(0.36, abs=0.002)


def test_a_part_of_a_video_that_was_replaced_by_an_older_one_is_cut_again(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    clips.render_video(video)
    target = tmp_path / "a.00000-00001.mp4"
    piece = Piece(video, TimeWindow(0, 1), "exact", target, waiting_path(tmp_path / "pieces", target, "exact"))
    piece.waiting.parent.mkdir()
    cut(video, piece.waiting, piece.window, "exact")
    assert piece.is_there
    other = clips.render_video(tmp_path / "other.mp4", count=12)
    os.utime(other, (1e9, 1e9))
    other.replace(video)
    assert not piece.is_there
