"""Frame policies of packages: found by the class of a video processor, and followed when frames are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from packages import forget, on_path, write_package
from reelscribe import FramePolicy, FrameSettings
from reelscribe.models.chat import OTHER_POLICY, has_exact_policy, policy_from_processor
from reelscribe.types import CaptionRequest, Clip, RequestId
from reelscribe.video.processes.clip_stream import ClipStream, WorkerPool

POLICY = """
from reelscribe import FramePolicy

def three_frames(video):
    return FramePolicy(num_frames=video.number, temporal_patch=1, sizer="fit", multiple=1, max_pixels=video.pixels)
"""


class OwnVideoProcessor:
    """A video processor that only a package knows."""

    number, pixels = 3, 64 * 48


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = {"reelscribe.frame_policies": {"OwnVideoProcessor": "own_policy:three_frames"}}
    on_path(monkeypatch, write_package(tmp_path / "site", "own-policy", modules={"own_policy": POLICY}, points=points))
    yield
    forget()


def test_a_package_says_which_frames_its_processor_is_shown(brought: None, video: Callable[[str], Path]) -> None:
    processor = SimpleNamespace(video_processor=OwnVideoProcessor())
    policy = policy_from_processor(processor)
    assert (policy.num_frames, policy.max_pixels, has_exact_policy(processor)) == (3, 64 * 48, True)
    request = CaptionRequest(RequestId(0, 0), str(video("h264.mp4")), "?")
    pool = WorkerPool(1)
    try:
        for settings, count in ((FrameSettings(), 3), (FrameSettings(num_frames=5), 5)):
            ((_, clip),) = ClipStream(pool, [request], policy.override(settings))
            assert isinstance(clip, Clip)
            assert len(clip.frames) == count
    finally:
        pool.close()


def test_without_it_the_processor_is_asked() -> None:
    assert not has_exact_policy(SimpleNamespace(video_processor=OwnVideoProcessor()))
    assert isinstance(OTHER_POLICY, FramePolicy)
