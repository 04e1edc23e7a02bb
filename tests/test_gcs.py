"""Data and videos in Google's store, against an emulator of its server on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.data import open_source
from reelscribe.runners.run.run import caption_file
from reelscribe.types import Clip
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.reader import read_clip

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

BUCKET = "gs://clips"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A store with one empty bucket; the environment of this process and its children leads to it."""
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    http = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="clips")
    http.start()
    port = http._api._httpd.server_address[1]
    before = dict(os.environ)
    os.environ.update(
        STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{port}",
        FSSPEC_GS_TOKEN="anon",
        NO_GCE_CHECK="true",
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
    )
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield
    gcsfs.GCSFileSystem.clear_instance_cache()
    os.environ.clear()
    os.environ.update(before)
    http.stop()


def put(name: str, data: bytes) -> str:
    import fsspec

    fsspec.filesystem("gs").pipe_file(f"clips/{name}", data)
    return f"{BUCKET}/{name}"


def test_a_video_of_the_store_is_the_clip_of_its_file(video: Callable[[str], Path]) -> None:
    url = put("a.mp4", video("h264.mp4").read_bytes())
    clip = read_clip(url, FramePolicy(), limits=ReadLimits(allow_remote=True))
    local = read_clip(video("h264.mp4"), FramePolicy())
    assert isinstance(clip, Clip), clip
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_reads_and_writes_the_store(
    video: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    put("run/a.mp4", video("h264.mp4").read_bytes())
    rows = [{"video": "a.mp4"}, {"video": "none.mp4"}]
    source = put("run/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    captioner = ScriptedCaptioner(lambda _request, _i: "words", policy=FramePolicy())
    operator = VideoCaptioningFromVLMMapper(captioner=captioner, allow_remote=True, num_proc=1)
    summary = caption_file(operator, source, f"{BUCKET}/out/captions{suffix}")
    assert (summary.rows_in, summary.failed_rows) == (2, 1)
    found = list(open_source(f"{BUCKET}/out/captions{suffix}"))
    assert [bool(row["captions"]) for row in found] == [True, False]
    failures = list(open_source(f"{BUCKET}/out/captions{suffix}.failures.jsonl"))
    assert [row["kind"] for row in failures] == ["not_found"]
