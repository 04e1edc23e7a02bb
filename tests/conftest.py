"""Fixtures every test may use: rendered videos, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import clips

# A busy machine is no fault of the code under test.
settings.register_profile("reelscribe", deadline=None)
settings.load_profile("reelscribe")


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that rendered videos share for the session; nobody deletes from it."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def video(video_folder: Path) -> Callable[[str], Path]:
    """Path of a rendered video by its name in `clips.CODECS`: 20 numbered frames."""
    return lambda name: clips.render_codec(name, video_folder)


@pytest.fixture(scope="session")
def broken_video(video_folder: Path) -> Callable[[str], Path]:
    """Path of a file by its name in `clips.BROKEN`."""
    return lambda name: clips.break_video(name, video_folder)
