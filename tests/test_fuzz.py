"""A few hundred files of `benchmarks.fuzz`: whatever bytes change, nothing hangs and nothing is hurt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import fuzz

import clips

DECODES = 300
ALWAYS_RENDERED = [name for name in clips.CODECS if not name.startswith("av1")]
"""Left out: the encoder that takes longest."""


@pytest.fixture(scope="module")
def files(video: Callable[[str], Path]) -> dict[str, bytes]:
    return {name: video(name).read_bytes() for name in ALWAYS_RENDERED}


def test_mutations_are_told_by_their_number(files: dict[str, bytes]) -> None:
    first = [fuzz.mutated(files, number, seed=0) for number in range(50)]
    assert first == [fuzz.mutated(files, number, seed=0) for number in range(50)]
    assert first != [fuzz.mutated(files, number, seed=1) for number in range(50)]
    assert len({name for name, _ in first}) > 15
    assert all(data and data != files[name] for name, data in first[:10])


def test_mutated_files_hurt_nobody(files: dict[str, bytes], tmp_path: Path) -> None:
    figures = fuzz.fuzz(files, decodes=DECODES, seed=1, workers=2, seconds=600, kept=tmp_path / "kept")
    assert figures.decodes == sum(figures.outcomes.values()) == DECODES
    assert figures.outcomes["clip"] > DECODES / 5
    assert figures.outcomes["timeout"] == 0
    assert figures.hurts() == []
    assert set(figures.outcomes) - set(fuzz.KEPT_KINDS) <= {
        "clip", "unreadable", "no_frames", "no_video_stream", "too_large", "too_long"
    }  # fmt: skip
    [(_, parent_bytes, reader_bytes)] = figures.memory
    assert parent_bytes > 0 or not Path("/proc/self").exists()
    assert reader_bytes < 500 << 20


def test_waits_and_memory_that_grows_are_told() -> None:
    hurt = fuzz.Figures(longest_wait_seconds=100.0, memory=[(200, 100 << 20, 0), (400, 200 << 20, 2 << 30)])
    assert [line.split()[0] for line in hurt.hurts()] == ["nothing", "this", "a"]


def test_the_time_of_a_fuzz_is_bounded(files: dict[str, bytes], tmp_path: Path) -> None:
    figures = fuzz.fuzz(files, decodes=10**9, seed=2, workers=2, seconds=0.5, kept=tmp_path / "kept")
    assert 0 <= figures.decodes < 10_000
