"""What a run takes of a cluster, read and checked; and clips as columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from reelscribe.cli import main
from reelscribe.errors import MissingExtraError, SettingsError
from reelscribe.runners.ray import cluster
from reelscribe.runners.ray.clip_columns import clips_of, with_clips, without_clips
from reelscribe.runners.ray.settings import RaySettings
from reelscribe.settings import captioner_range
from reelscribe.types import Clip, Failure


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gpus": 1.5}, "fraction"),
        ({"gpus": -1}, "fraction"),
        ({"min_captioners": 0}, "at least 1"),
        ({"min_captioners": 4, "max_captioners": 2}, "below"),
        ({"reader_cpus": 0}, "above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        RaySettings(**values)


@pytest.mark.parametrize(
    ("backend", "options", "available", "gpus"),
    [
        ("hf", {}, None, 1),
        ("hf", {}, 0, 0),
        ("hf", {"device": "cpu"}, 8, 0),
        ("vllm", {"tensor_parallel_size": 4}, 8, 4),
        ("server", {}, 8, 0),
        (None, {}, 8, 0),
    ],
)
def test_gpus_of_a_captioner_are_what_its_model_needs(
    backend: str | None, options: dict[str, Any], available: float | None, gpus: float
) -> None:
    assert RaySettings().gpus_for(backend, options, available=available) == gpus
    assert RaySettings(gpus=0.5).gpus_for(backend, options, available=available) == 0.5


def test_a_pool_grows_only_where_gpus_bound_it() -> None:
    assert RaySettings().pool(1) == (1, None)
    assert RaySettings().pool(0) == (1, 1)
    assert RaySettings(min_captioners=2, max_captioners=8).pool(0) == (2, 8)


@pytest.mark.parametrize(("text", "fewest", "most"), [("4", 4, 4), ("1:8", 1, 8)])
def test_captioners_are_read(text: str, fewest: int, most: int) -> None:
    assert captioner_range(text) == (fewest, most)


@pytest.mark.parametrize("text", ["", "0", "8:1", "two", "1:", "1:2:3"])
def test_other_captioners_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="captioners must be a number"):
        captioner_range(text)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"reelscribe\[ray\]"):
        cluster.connect(RaySettings())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--ray"], RaySettings()),
        (["--ray", "auto", "--ray-captioners", "2:8"], RaySettings("auto", min_captioners=2, max_captioners=8)),
        (["--ray", "10.0.0.1:6379", "--ray-gpus", "0.5"], RaySettings("10.0.0.1:6379", gpus=0.5)),
        ([], None),
    ],
)
def test_options_of_the_command_become_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: RaySettings | None
) -> None:
    seen = []
    monkeypatch.setattr("reelscribe.cli.run", lambda *args, cluster, **settings: seen.append(cluster))
    made = CliRunner().invoke(main, ["caption", str(tmp_path), "-o", str(tmp_path / "out.jsonl"), *given])
    assert (made.exit_code, made.output) == (0, "")
    assert seen == [expected]


@pytest.mark.parametrize("given", [["--ray-gpus", "1"], ["--ray-captioners", "2"], ["--ray", "--ray-captioners", "x"]])
def test_options_that_need_a_cluster_or_cannot_be_read_are_refused(tmp_path: Path, given: list[str]) -> None:
    made = CliRunner().invoke(main, ["caption", str(tmp_path), "-o", str(tmp_path / "out.jsonl"), *given])
    assert made.exit_code == 2


def clip(value: int, frames: int = 2) -> Clip:
    pixels = np.full((frames, 4, 6, 3), value, np.uint8)
    return Clip(pixels, np.arange(frames, dtype=float), 2.0, 1.0, 40, 60, window_seconds=1.5)


def test_clips_come_out_of_columns_as_they_went_in() -> None:
    table = pa.table({"id": [1, 2, 3, 4]})
    failure = Failure("not_found", "gone", attempts=2, seconds=0.5)
    packed = with_clips(table, [[clip(1), clip(2, 5)], [failure, clip(3)], [], [None]])
    moved = pa.concat_tables([packed.slice(1, 3), packed.slice(0, 1)])
    (gone, third), none, (nothing,), (first, second) = clips_of(moved)
    assert (gone, gone.attempts, gone.seconds, none, nothing()) == (failure, 2, 0.5, [], None)
    for load, expected in [(first, clip(1)), (second, clip(2, 5)), (third, clip(3))]:
        made = load()
        assert np.array_equal(made.frames, expected.frames)
        assert made.frames.flags.writeable
        assert np.array_equal(made.pts_seconds, expected.pts_seconds)
        assert made.window_seconds == 1.5
        assert (made.source_height, made.source_width) == (40, 60)
    assert without_clips(moved).to_pydict() == {"id": [2, 3, 4, 1]}


def test_frames_take_little_more_than_their_bytes() -> None:
    clips = [[clip(1, 64)] for _ in range(16)]
    frames = sum(one.nbytes for row in clips for one in row)
    assert with_clips(pa.table({"id": range(16)}), clips).nbytes < frames + 16 * 1024
