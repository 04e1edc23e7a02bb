"""Runs on a real cluster of several raylets on this machine: what comes out, what is lost, and how fast it is."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import clips
import ray_words
from reelscribe import FramePolicy, VideoCaptioningFromVLMMapper
from reelscribe.errors import ModelError, SettingsError, TooManyFailuresError
from reelscribe.runners.ray import answerer as ray_answerer
from reelscribe.runners.ray.cluster import connect, disconnect
from reelscribe.runners.ray.driver import caption_ray
from reelscribe.runners.ray.run import caption_file_ray
from reelscribe.runners.ray.settings import RaySettings
from reelscribe.runners.report.progress import NoProgress
from reelscribe.runners.run.retry import retry_file
from reelscribe.runners.run.run import caption_file
from reelscribe.settings import FailureLimit
from rows import Rows, jsonl, load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray` brings it)"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of much that is not ours
]

TESTS = Path(__file__).parent
STORE_BYTES = 80 << 20
GPU_NODES = 3
CLIPS_TIMED = 320


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head and three nodes, each of which says that it has a GPU; one may be taken away."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    spill = str(tmp_path_factory.mktemp("spill"))
    store = {"object_store_memory": STORE_BYTES, "object_spilling_directory": spill}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, **store})
    made.spill = spill
    for _ in range(GPU_NODES):
        made.add_node(num_cpus=1, num_gpus=1, **store)
    yield made
    disconnect()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered videos, among them one that is no video."""
    made = tmp_path_factory.mktemp("ray")
    for name in ("one", "two", "three", "mute", "deadly"):
        clips.render_video(made / f"{name}.mp4", count=12)
    (made / "noise.mp4").write_bytes(b"\0" * 4096)
    return made


def settings(cluster: Any, **given: Any) -> RaySettings:
    return RaySettings(**{"address": cluster.address, "gpus": 1, "rows_per_block": 4, "rows_per_file": 16, **given})


def operator(captioner: Any, **given: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=captioner, **given)


def plain(count: int) -> Rows:
    """Rows with one video each that can be read, each with a text of its own."""
    names = ("one", "two", "three")
    return [{"id": i, "text": f"<__dj__video> {i}", "videos": [f"{names[i % 3]}.mp4"]} for i in range(count)]


def mixed(count: int) -> Rows:
    """Rows of every kind: with two videos, none, one that is missing, or cannot be read, and too many tokens."""
    rows = plain(count)
    for i, row in enumerate(rows):
        match i % 25:
            case 3:
                row["videos"] = ["gone.mp4"]
            case 7:
                row["videos"], row["text"] = [], "no video"
            case 11:
                row["text"], row["videos"] = "<__dj__video> a <|__dj__eoc|> <__dj__video> b", ["one.mp4", "two.mp4"]
            case 15:
                row["videos"] = ["noise.mp4"]
            case 19:
                row["text"] = "<__dj__video><__dj__video>"
            case 23:
                row["videos"] = ["mute.mp4"]
    return rows


def timeless(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def made_here(captioner: Any, source: Path, output: Path, **given: Any) -> bytes:
    """What a local run gives."""
    op = operator(captioner, **given)
    caption_file(op, source, output)
    op.close()
    return output.read_bytes()


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(true: Callable[[], Any], *, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.1)


def test_500_rows_give_the_local_runners_bytes(cluster: Any, folder: Path) -> None:
    source = jsonl(folder / "mixed.jsonl", mixed(500))
    given = {"caption_num": 3, "keep_candidate_mode": "similar_one_simhash"}
    local = made_here(ray_words.captioner(), source, folder / "mixed-local.jsonl", **given)
    output = folder / "mixed-ray.jsonl"
    summary = caption_file_ray(
        operator(ray_words.captioner(), **given),
        source,
        output,
        cluster=settings(cluster, max_captioners=2, rows_per_block=16, rows_per_file=100),
    )
    assert output.read_bytes() == local
    failed = [timeless(load(folder / f"mixed-{where}.jsonl.failures.jsonl")) for where in ("local", "ray")]
    assert failed[0] == failed[1]
    assert {row["kind"] for row in failed[1]} == {"not_found", "unreadable", "bad_sample", "empty_caption"}
    assert (summary.rows_in, summary.exit_code) == (500, 3)
    assert not (folder / ".mixed-ray.jsonl.run/answers").exists()


def test_a_data_set_of_rays_gives_the_samples_that_run_gives(cluster: Any, folder: Path) -> None:
    connect(settings(cluster))
    import ray

    rows = mixed(60)
    op = operator(ray_words.captioner(), video_root=str(folder), failure_key="why", caption_key="said")
    made = caption_ray(ray.data.from_items(rows), op, settings=settings(cluster)).take_all()
    expected = op.run(rows)
    op.close()
    disconnect()

    def ordered(samples: Rows) -> Rows:
        return sorted(samples, key=lambda sample: (sample["id"], sample["said"] is not None))

    assert ordered(made) == ordered(expected)


def test_frames_wait_where_there_is_no_room_for_them(cluster: Any, folder: Path) -> None:
    """Several times what the nodes can hold goes by a slow captioner, and nothing of it goes to disk."""
    count, log, most = 96, folder / "large.log", [0]
    policy = FramePolicy(min_frames=12, max_frames=12, min_frame_pixels=200_000)
    slow = ray_words.ScriptedCaptioner(ray_words.Logged(str(log), 0.05), policy=policy)
    source = jsonl(folder / "large.jsonl", plain(count))
    assert count * 12 * 200_000 * 3 > 2 * (1 + GPU_NODES) * STORE_BYTES
    with watching(lambda: most.append(max(most.pop(), spilled_bytes(cluster)))):
        caption_file_ray(
            operator(slow), source, folder / "large-ray.jsonl", cluster=settings(cluster, max_captioners=1)
        )
    assert len(lines(log)) == count
    assert most[0] < STORE_BYTES // 4


@contextmanager
def watching(look: Callable[[], Any]) -> Iterator[None]:
    """Look again and again while the body runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    ended.set()
    thread.join()


def spilled_bytes(cluster: Any) -> int:
    """What the nodes have on disk at the moment because their stores are full."""
    sizes = []
    for path in Path(cluster.spill).rglob("*"):
        with suppress(OSError):  # it may just have been removed
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)


def test_a_killed_actor_and_a_lost_node_lose_and_double_nothing(cluster: Any, folder: Path) -> None:
    source, log, killed = jsonl(folder / "lost.jsonl", plain(200)), folder / "lost.log", []
    local = made_here(ray_words.captioner(), source, folder / "lost-local.jsonl")

    def sabotage() -> None:
        import ray

        wait_for(lambda: len(lines(log)) > 40)
        os.kill(int(lines(log)[-1][1]), signal.SIGKILL)
        killed.append("actor")
        seen = len(lines(log))
        wait_for(lambda: len(lines(log)) > seen + 60)
        ours = ray.get_runtime_context().get_node_id()  # the one that the driver speaks with cannot be lost
        host = next(line[2] for line in reversed(lines(log)) if line[2] != ours)
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == host), allow_graceful=False)
        killed.append("node")

    def reported() -> None:
        try:
            sabotage()
        except BaseException as exc:
            killed.append(repr(exc))

    saboteur = threading.Thread(target=reported)
    saboteur.start()
    output = folder / "lost-ray.jsonl"
    summary = caption_file_ray(
        operator(ray_words.captioner(log, seconds=0.05)),
        source,
        output,
        cluster=settings(cluster, min_captioners=2, max_captioners=2),
    )
    saboteur.join()
    assert killed == ["actor", "node"]
    assert summary.exit_code == 0
    assert output.read_bytes() == local


def test_a_run_whose_driver_is_killed_goes_on(cluster: Any, folder: Path) -> None:
    source, log, output = (
        jsonl(folder / "killed.jsonl", plain(200)),
        folder / "killed.log",
        folder / "killed.jsonl.out.jsonl",
    )
    local = made_here(ray_words.captioner(), source, folder / "killed-local.jsonl")
    checkpoint = folder / f".{output.name}.run/checkpoint"
    command = [sys.executable, str(TESTS / "ray_run.py"), cluster.address, str(source), str(output), str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: sum(".pending" not in path.name for path in checkpoint.glob("*.parquet")) > 2)
        driver.kill()
    asked = len(lines(log))
    assert not output.exists()
    again = folder / "again.log"
    summary = caption_file_ray(
        operator(ray_words.captioner(again, seconds=0.02)), source, output, cluster=settings(cluster)
    )
    assert output.read_bytes() == local
    assert summary.known_videos >= 3 * 16
    assert 200 - summary.known_videos <= len(lines(again)) < 200
    assert asked < 200
    twice = caption_file_ray(operator(ray_words.captioner(again)), source, output, cluster=settings(cluster))
    assert twice.is_old


class Evil:
    """Makes a folder where it is un-pickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_what_others_put_into_the_input_and_the_run_folder_is_not_run(cluster: Any, folder: Path) -> None:
    """Pickles where an earlier version kept answers, and in columns of Ray's own type, which un-pickles them."""
    connect(settings(cluster))
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    mark = folder / "was-run"
    evil = pickle.dumps(Evil(mark))
    objects = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pa.array([evil] * 24, pa.large_binary()))
    rows = {"video": ["one.mp4"] * 24, "text": [str(i) for i in range(24)], "x": objects}
    source, output = folder / "evil.parquet", folder / "evil-ray.parquet"
    pq.write_table(pa.table(rows), source)
    run = folder / ".evil-ray.parquet.run"
    for name, table in {
        "answers/old.parquet": {"row": [0], "answers": pa.array([evil], pa.binary())},
        "answers/typed.parquet": {"row": [0], "answered": objects[:1]},
        "checkpoint/typed.parquet": {"row": objects[:1]},
        "checkpoint/more.parquet": {"row": [1], "x": objects[:1]},
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), run / name)
    said = Said()
    summary = caption_file_ray(
        operator(ray_words.captioner()), source, output, cluster=settings(cluster), progress=said
    )
    assert sum("contains no answers of this version" in line for line in said.lines) == 2
    assert (summary.rows_in, summary.failed_rows) == (24, 0)
    assert not mark.exists()
    made = pq.read_table(output)
    assert made["x"].to_pylist() == [evil] * 24
    caption_file(operator(ray_words.captioner()), source, folder / "evil-local.parquet")
    assert pq.read_table(folder / "evil-local.parquet").equals(made)
    (run / "checkpoint").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": objects[:1]}), run / "checkpoint/typed.parquet")
    output.unlink()
    assert (
        caption_file_ray(
            operator(ray_words.captioner()), source, output, cluster=settings(cluster), progress=said
        ).rows_in
        == 24
    )
    assert any("is not part of a checkpoint" in line for line in said.lines)
    assert not mark.exists()


def test_a_video_that_ends_the_process_fails_alone(cluster: Any, folder: Path) -> None:
    rows = plain(24)
    rows[9]["videos"] = ["deadly.mp4"]
    source, output = jsonl(folder / "deadly.jsonl", rows), folder / "deadly-ray.jsonl"
    summary = caption_file_ray(operator(ray_words.captioner()), source, output, cluster=settings(cluster))
    (failed,) = load(folder / "deadly-ray.jsonl.failures.jsonl")
    assert (failed["row"], failed["kind"], failed["attempts"]) == (9, "engine_died", 2)
    assert (summary.rows_out, summary.failed_rows) == (2 * 24 - 1, 1)


def test_answers_of_a_local_run_are_not_asked_again(cluster: Any, folder: Path) -> None:
    source, log = jsonl(folder / "both.jsonl", plain(40)), folder / "both.log"
    output = folder / "both-out.jsonl"
    here = operator(ray_words.captioner())
    caption_file(here, source, output, limit=30)
    here.close()
    caption_file_ray(operator(ray_words.captioner(log)), source, output, cluster=settings(cluster), update=True)
    assert Counter(int(row) for *_, row in lines(log)) == Counter(range(30, 40))
    assert output.read_bytes() == made_here(ray_words.captioner(), source, folder / "both-local.jsonl")


class Said(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_failed_videos_are_tried_again_on_the_cluster(
    cluster: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of this machine, with a model, whose missing video arrives; what was captioned is not asked again. While
    nothing moves, it is said what that may be."""
    monkeypatch.setattr(ray_answerer, "STALLED_SECONDS", 0.0)
    source, output = jsonl(tmp_path / "late.jsonl", [{"video": "one.mp4"}, {"video": "late.mp4"}]), tmp_path / "o.jsonl"
    for name in ("one", "two"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())
    given = {"sampling_params": {"max_tokens": 8}, "model_params": {"device": "cpu"}}
    first = VideoCaptioningFromVLMMapper("reelscribe/shapes", **given)
    assert caption_file(first, source, output).failed_rows == 1
    first.close()
    kept = load(output)[0]
    (tmp_path / "two.mp4").rename(tmp_path / "late.mp4")
    again = partial(caption_file_ray, cluster=settings(cluster, gpus=0, max_captioners=1))
    said = Said()
    summary = retry_file(output, caption=again, progress=said)
    assert any("no row was captioned on Ray" in line for line in said.lines)
    assert (summary.rows_in, summary.failed_rows, summary.known_videos) == (2, 0, 1)
    assert summary.stages is not None
    assert {stage.name for stage in summary.stages.stages} == {"decode", "model"}
    assert load(output)[0] == kept
    assert load(output)[1]["captions"][0]


def test_errors_of_the_package_come_through(cluster: Any, folder: Path) -> None:
    source = jsonl(folder / "wrong.jsonl", [*plain(200), *({**row, "videos": ["gone.mp4"]} for row in plain(200))])
    limit = FailureLimit(rows=2)
    with pytest.raises(TooManyFailuresError, match="more than --max-failures"):
        caption_file_ray(
            operator(ray_words.captioner()),
            jsonl(folder / "gone.jsonl", [{**row, "videos": ["gone.mp4"]} for row in plain(60)] + plain(300)),
            folder / "gone-out.jsonl",
            cluster=settings(cluster),
            max_failures=limit,
        )
    broken = VideoCaptioningFromVLMMapper(str(folder / "no-model"))
    with pytest.raises(ModelError):
        caption_file_ray(broken, source, folder / "broken.jsonl", cluster=settings(cluster))
    lock = threading.Lock()
    with pytest.raises(SettingsError, match="cannot be sent"):
        caption_file_ray(
            operator(ray_words.ScriptedCaptioner(lambda request, i: str(lock))),
            source,
            folder / "lock.jsonl",
            cluster=settings(cluster),
        )


def clips_per_second(cluster: Any, folder: Path, captioners: int, go: int) -> float:
    """Measured at the captioners, from their first answer to their last; 0 where one began after all was answered."""
    source, log = jsonl(folder / "speed.jsonl", plain(CLIPS_TIMED)), folder / f"speed-{captioners}-{go}.log"
    caption_file_ray(
        operator(ray_words.captioner(log, seconds=0.05, reads=False)),
        source,
        folder / f"speed-{captioners}-{go}.jsonl.out.jsonl",
        cluster=settings(
            cluster, min_captioners=captioners, max_captioners=captioners, rows_per_block=8, rows_per_file=CLIPS_TIMED
        ),
    )
    times = [float(line[0]) for line in lines(log)]
    if len({line[1] for line in lines(log)}) < captioners:
        return 0.0
    return (len(times) - 1) / (max(times) - min(times))


def test_two_captioners_are_nearly_twice_as_fast_as_one(cluster: Any, folder: Path) -> None:
    """One pair of runs in three must show it: other work on the machine can only make it less."""
    seen = []
    for go in range(3):
        one, two = (clips_per_second(cluster, folder, count, go) for count in (1, 2))
        seen.append(two / one)
        if seen[-1] >= 1.8:
            break
    assert max(seen) >= 1.8, seen


def test_the_command_starts_a_cluster_of_its_own_for_a_real_model(folder: Path) -> None:
    source = jsonl(folder / "command.jsonl", [{"video": f"{name}.mp4"} for name in ("one", "two", "gone")])
    command = [sys.executable, "-m", "reelscribe", "caption", str(source), "--model", "reelscribe/shapes"]
    options = ["--max-tokens", "16", "-o"]
    outputs = [folder / "command-local.jsonl", folder / "command-ray.jsonl"]
    for output, more in zip(outputs, ([], ["--ray"]), strict=True):
        done = subprocess.run([*command, *options, str(output), *more], capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
