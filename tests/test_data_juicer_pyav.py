"""Data-Juicer's other video operators next to ours, on the PyAV that is installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytestmark = pytest.mark.data_juicer

NO_LONGER_NEEDED = (
    f"py-data-juicer and PyAV {av.__version__} fit each other here: take this part out of data_juicer_pyav.py, and "
    "with the last one the file and what docs/data_juicer.md says about it"
)
REPLACED = {
    "data_juicer.utils.mm_utils:close_video": ("stream.close()",),
    "data_juicer.utils.mm_utils:cut_video_by_seconds": ("add_stream(template=)",),
    "data_juicer.utils.mm_utils:process_each_frame": ("add_stream(template=)", "stream.width"),
    "data_juicer.ops.op_fusion:FusedFilter.compute_stats_batched": ("stream.close()",),
    "data_juicer.ops.fused_batch_executor:_cleanup_context_rows": ("stream.close()",),
    "data_juicer.ops.filter.video_face_ratio_filter:VideoFaceRatioFilter.compute_stats_single": ("av.AVError",),
}
ALONE = """
import importlib.metadata, sys
found = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **asked: () if asked.get("group") == "data_juicer.ops" else found(**asked)
import av
from data_juicer.utils import mm_utils
video, folder = sys.argv[1:]

def fails(error, call):
    try:
        call()
    except error as exc:
        print(type(exc).__name__)
    else:
        print("works")

fails(AttributeError, lambda: mm_utils.extract_key_frames(video))
fails(TypeError, lambda: mm_utils.cut_video_by_seconds(video, folder + "/cut.mp4", 1.0, 2.0))
mm_utils.close_video = lambda container: container.close()
silent = av.open(folder + "/silent.mp4", "w")
stream = silent.add_stream("mpeg4", rate=10)
stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
for _ in range(3):
    silent.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
silent.mux(stream.encode())
silent.close()
made = folder + "/made.mp4"
fails(RuntimeError, lambda: mm_utils.process_each_frame(folder + "/silent.mp4", made, lambda frame: frame))
fails(AttributeError, lambda: av.AVError)
"""
"""Data-Juicer without this package, on the installed PyAV: what each call ends with."""


@pytest.fixture(scope="module")
def talkie(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four seconds with a key frame every half second, and a sound."""
    path = tmp_path_factory.mktemp("talkie") / "talkie.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=10)
        video.width, video.height, video.pix_fmt, video.gop_size = 96, 64, "yuv420p", 5
        sound = container.add_stream("aac", rate=8000)
        sound.layout = "mono"
        for shade in range(40):
            picture = np.full((64, 96, 3), shade * 5, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for number in range(32):
            tone = np.sin(np.arange(1000, dtype=np.float32))[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 1000
            container.mux(sound.encode(frame))
        container.mux(video.encode())
        container.mux(sound.encode())
    return str(path)


def test_it_is_still_needed(talkie: str, tmp_path: Path) -> None:
    """The day this test fails, a part of `data_juicer_pyav.py` has become superfluous."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, talkie, str(tmp_path)],
        stdout=subprocess.PIPE, timeout=120, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["AttributeError", "TypeError", "RuntimeError", "AttributeError"], NO_LONGER_NEEDED


def test_what_was_replaced_where() -> None:
    from reelscribe import data_juicer_pyav

    assert tuple(REPLACED) == data_juicer_pyav.FUNCTIONS
    assert data_juicer_pyav.adapt() == REPLACED, NO_LONGER_NEEDED


def test_no_other_function_of_data_juicer_calls_what_pyav_removed() -> None:
    import data_juicer

    from reelscribe.data_juicer_pyav import FUNCTIONS, REPLACEMENTS

    root = Path(data_juicer.__file__).parent
    found = set()
    for path in sorted(root.rglob("*.py")):
        text = path.read_text("utf-8")
        if not any(word in text for word in ("streams.video", "strict=False", "add_stream", "AVError")):
            continue
        module = ".".join(("data_juicer", *path.relative_to(root).with_suffix("").parts))
        for name, function in _functions(ast.parse(text)):
            nodes = list(ast.walk(function))
            if any(replace(node) is not node for _, replace in REPLACEMENTS.values() for node in nodes):
                found.add(f"{module}:{name}")
    assert found == set(FUNCTIONS)


def _functions(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    found: list[tuple[str, ast.AST]] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found += [(f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, ast.FunctionDef)]
        else:
            found.append((getattr(node, "name", "<module>"), node))
    return found


def test_operators_that_imported_a_function_by_name_have_the_new_code() -> None:
    from data_juicer.ops.filter import video_resolution_filter
    from data_juicer.utils import mm_utils

    from reelscribe.data_juicer_pyav import adapt

    adapt()
    assert video_resolution_filter.close_video is mm_utils.close_video
    assert "strict" not in str(mm_utils.close_video.__code__.co_consts)
    assert mm_utils.close_video.__code__.co_filename == mm_utils.__file__
    assert mm_utils.close_video.__code__.co_firstlineno > 1000, "tracebacks name Data-Juicer's own lines"


def test_a_container_is_closed(talkie: str) -> None:
    from data_juicer.utils.mm_utils import close_video, load_video

    container = load_video(talkie)
    close_video(container)
    with pytest.raises(AssertionError, match="Container is not open"):
        next(container.decode(video=0))


def test_reading_and_cutting_with_its_helpers(talkie: str, tmp_path: Path) -> None:
    from data_juicer.utils import mm_utils

    assert mm_utils.get_key_frame_seconds(talkie) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert len(mm_utils.extract_video_frames_uniformly(talkie, 4)) == 4
    assert len(mm_utils.extract_video_frames_uniformly_by_seconds(talkie, 2, 1)) == 6
    sounds, rates, _ = mm_utils.extract_audio_from_video(talkie)
    assert (len(sounds), rates) == (1, [8000.0])
    cut = tmp_path / "cut.mp4"
    assert mm_utils.cut_video_by_seconds(talkie, str(cut), 1.0, 2.0)
    assert _streams(cut) == {"video": ("h264", 11), "audio": ("aac", 8)}


def test_frames_of_another_size(talkie: str, tmp_path: Path) -> None:
    from data_juicer.utils import mm_utils

    made = tmp_path / "small.mp4"
    small = mm_utils.process_each_frame(talkie, str(made), lambda frame: frame.reformat(width=48, height=32))
    assert small == str(made)
    assert _streams(made)["video"] == ("h264", 40)
    with av.open(str(made)) as container:
        assert {(frame.width, frame.height) for frame in container.decode(video=0)} == {(48, 32)}


def _streams(path: Path) -> dict[str, tuple[str, int]]:
    """Codec and number of packets of each stream."""
    with av.open(str(path)) as container:
        counts: dict[str, Any] = {s.type: [s.codec_context.name, 0] for s in container.streams}
        for packet in container.demux():
            counts[packet.stream.type][1] += packet.size > 0
    return {kind: (name, number) for kind, (name, number) in counts.items()}


def test_workers_of_ray_are_adapted_where_no_entry_point_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import load_class

    from reelscribe import data_juicer_pyav

    monkeypatch.delenv(data_juicer_pyav.RAY_HOOK_VARIABLE, raising=False)
    data_juicer_pyav.adapt_ray_workers()
    hook = load_class(os.environ[data_juicer_pyav.RAY_HOOK_VARIABLE])
    made = hook({"env_vars": {"a": "b"}})
    assert made["env_vars"] == {"a": "b"}
    assert load_class(made["worker_process_setup_hook"]) is data_juicer_pyav.adapt
    assert hook({"worker_process_setup_hook": "other.hook"}) == {"worker_process_setup_hook": "other.hook"}
