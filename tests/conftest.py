"""Fixtures every test may use: rendered videos, made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import clips
from chat_server import ChatServer, running

# A busy machine is no fault of the code under test.
settings.register_profile("reelscribe", deadline=None)
settings.load_profile("reelscribe")


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what programs of a user keep, so that tests leave that of the user alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


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


HAS_VLLM = find_spec("vllm") is not None
HAS_DATA_JUICER = find_spec("data_juicer") is not None


def pytest_configure(config: pytest.Config) -> None:
    """vLLM, Data-Juicer and what they import warn; only our own warnings are errors beside them."""
    if HAS_VLLM or HAS_DATA_JUICER:
        config.addinivalue_line("filterwarnings", "default:::(?!reelscribe|test_)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs vLLM or Data-Juicer where there is none, unless it must be there."""
    for mark, name, there in (("vllm", "vLLM", HAS_VLLM), ("data_juicer", "Data-Juicer", HAS_DATA_JUICER)):
        if there or os.environ.get(f"REQUIRE_{mark.upper()}") == "1":
            continue
        reason = f"{name} is not installed (make test-{mark.replace('_', '-')} installs it)"
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second thread, above all where other work runs beside the tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """The bundled model, loaded once for a file of tests."""
    from reelscribe.models.loading import load_model

    return load_model("reelscribe/shapes", {})


@pytest.fixture(scope="session")
def chat_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the bundled checkpoint: vLLM's where it is installed, else one that makes texts up."""
    if not HAS_VLLM:
        server = ChatServer()
        server.models = [{"id": "reelscribe/shapes"}]
        with running(server) as url:
            yield url
        return
    from vllm_server import VLLMServer

    real = VLLMServer(tmp_path_factory.mktemp("server"))
    real.start()
    yield real.url
    real.kill()
