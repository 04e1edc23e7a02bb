"""The main job on real files: good and broken videos in a folder; the same file from the same seed, in any batches."""

import json
import shutil

import pytest
from click.testing import CliRunner

import clips
from reelscribe.cli import main
from reelscribe.demo.render import EVALUATION_SEEDS, render_clip

MODEL = "reelscribe/shapes"
GOOD, BROKEN_OF_EACH = 180, 2


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _dangling(path):
    path.symlink_to(path.with_name("nowhere.mp4"))


def _from(name):
    """A broken file of the reader's tests under another name."""

    def make(path):
        shutil.copy(clips.break_video(name, path.parent.parent), path)

    return make


def _huge(path):
    clips.render_video(path, height=400, width=500, count=4)


def _endless(path):
    ticks = {"video_track_timescale": "100"}
    clips.render_video(path, count=2, pts=[0, 200_000], time_base=clips.Fraction(1, 1), container_options=ticks)


BREAKAGES = {
    "empty": ("unreadable", _from("empty.mp4")),
    "text": ("unreadable", _from("text.mp4")),
    "noise": ("unreadable", _from("noise.mp4")),
    "headless": ("unreadable", _from("headless.mp4")),
    "cut": ("unreadable", _from("early_end.mp4")),
    "dangling": ("not_found", _dangling),
    "sound": ("no_video_stream", _from("sound.m4a")),
    "blank": ("no_frames", _from("blank.mp4")),
    "huge": ("too_large", _huge),
    "endless": ("too_long", _endless),
}
"""Ten ways to break a video, and the kind of failure each must have."""


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """200 files of which 20 are broken in ten ways, good and broken mixed by name, and the kind of each broken one."""
    folder = tmp_path_factory.mktemp("mixed") / "videos"
    folder.mkdir()
    rendered = [render_clip(folder / f"v{i:03d}.mp4", EVALUATION_SEEDS + 80_000 + i % 12) for i in range(12)]
    for i in range(12, GOOD):
        shutil.copy(rendered[i % 12].path, folder / f"v{i:03d}.mp4")
    kinds = {}
    for number in range(BROKEN_OF_EACH):
        for i, (name, (kind, make)) in enumerate(BREAKAGES.items()):
            path = folder / f"v{number * 90 + i * 9:03d}_{name}.mp4"
            make(path)
            kinds[
                str(path.resolve().parent / path.name) if name != "dangling" else str(folder.resolve() / path.name)
            ] = kind
    return folder, kinds


@pytest.mark.slow
def test_broken_videos_touch_nobody_else(mixed_folder, tmp_path):
    folder, kinds = mixed_folder
    output = tmp_path / "captions.jsonl"
    result = command("caption", folder, "-o", output, "--model", MODEL, "--max-source-pixels", 150_000)
    assert result.exit_code == 3, result.output
    rows = rows_of(output)
    assert [row["video"] for row in rows] == [str(p) for p in sorted(folder.resolve().iterdir())]
    assert sum(row["captions"] is not None for row in rows) == GOOD
    assert {row["video"] for row in rows if row["captions"] is None} == set(kinds)
    failures = rows_of(output.with_name("captions.jsonl.failures.jsonl"))
    assert {failure["video"]: failure["kind"] for failure in failures} == kinds
    assert len(failures) == len(kinds) == 20
    assert all(rows[failure["row"]]["video"] == failure["video"] for failure in failures)
    assert all(failure["message"].strip() for failure in failures)


@pytest.mark.slow
def test_broken_videos_keep_their_originals(mixed_folder, tmp_path):
    """The same folder as a data file in Data-Juicer's form: every original row is there, unchanged and in order."""
    folder, kinds = mixed_folder
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"id": i, "text": f"<__dj__video> old {i}", "videos": [str(path)], "nested": {"i": [i]}}
        for i, path in enumerate(sorted(folder.resolve().iterdir()))
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = command("caption", source, "-o", output, "--model", MODEL, "--max-source-pixels", 150_000)
    assert result.exit_code == 3, result.output
    made = rows_of(output)
    assert [row for row in made if " old " in row["text"]] == rows
    generated = [row for row in made if " old " not in row["text"]]
    assert [row["id"] for row in generated] == [row["id"] for row in rows if row["videos"][0] not in kinds]


def test_same_seed_same_file_whatever_the_batch_size(tmp_path):
    rendered = [render_clip(tmp_path / f"{i}.mp4", EVALUATION_SEEDS + 90_000 + i) for i in range(10)]
    source = tmp_path / "in.jsonl"
    rows = [{"text": "<__dj__video>", "videos": [clip.path.name]} for clip in rendered]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def run(name, *options):
        output = tmp_path / name
        result = command(
            "caption", source, "-o", output, "--model", MODEL, "--candidates", 4, "--keep", "all", *options
        )
        assert result.exit_code == 0, result.output
        return output.read_bytes()

    first = run("a.jsonl", "--seed", 5)
    assert run("b.jsonl", "--seed", 5) == first
    assert run("c.jsonl", "--seed", 5, "--batch-size", 1) == first
    assert run("d.jsonl", "--seed", 5, "--batch-size", 3, "--workers", 1) == first
    assert run("e.jsonl", "--seed", 6) != first
    assert first.count(b"\n") == 5 * len(rows)
