"""The operator in Data-Juicer: its own `dj-process`, both executors, and what its own operator does without us."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import reelscribe
from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.demo.render import DEMO_SEEDS, render_clip
from reelscribe.errors import FailedSamplesError, ModelError, SettingsError
from reelscribe.operator import OPERATOR_NAME

pytestmark = pytest.mark.data_juicer

SHAPES = {"hf_model": "reelscribe/shapes", "sampling_params": {"temperature": 0.5, "max_tokens": 40}}
TOKENS = {"video": "<v>", "image": "<i>", "audio": "<a>", "eoc": "<e>"}
OWN_TOKENS = {f"{name}_token": token for name, token in TOKENS.items()}
SPECIAL_TOKENS = {f"{name}_special_token": token for name, token in TOKENS.items()}
ROOT = Path(__file__).parent.parent
PLUGIN = str(Path(reelscribe.__file__).with_name("data_juicer_plugin.py"))
TIMEOUT_SECONDS = 150

WITHOUT_PLUGINS = """
import importlib.metadata, sys
found = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **asked: () if asked.get("group") == "data_juicer.ops" else found(**asked)
"""
"""Before `dj-process`: the entry point is not found."""

READING_MENDED = """
from benchmarks.data_juicer_peer import repair_reading
repair_reading()
"""
"""Before `dj-process`: transformers reads videos without torchcodec, whose absence is no fault of the operator."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    made = [render_clip(folder / f"{i}.mp4", DEMO_SEEDS + i, short_side=(96, 120), seconds=(2, 2)) for i in range(3)]
    return [str(clip.path) for clip in made]


def rows_of(clips: list[str], *, bad: bool = True) -> list[dict[str, Any]]:
    """One video, two in a chunk, none, and (if asked) a file that is not there among them."""
    video, eoc = "<__dj__video>", "<|__dj__eoc|>"
    rows: list[dict[str, Any]] = [
        {"id": 0, "text": f"{video} a circle moves {eoc}", "videos": clips[:1]},
        {"id": 1, "text": f"see {video}{video} two things {eoc} no video", "videos": clips[1:]},
        {"id": 2, "text": f"{video} gone {eoc}", "videos": [clips[0] + ".gone"]},
        {"id": 3, "text": "nothing to see", "videos": []},
        {"id": 4, "text": f"{video} a {eoc}{video} b {eoc}", "videos": clips[:2]},
    ]
    return rows if bad else [row for row in rows if row["id"] != 2]


def with_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the words of `TOKENS`."""
    return {**row, "text": row["text"].replace("<__dj__video>", "<v>").replace("<|__dj__eoc|>", "<e>")}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_recipe(
    folder: Path,
    rows: list[dict[str, Any]],
    operator: dict[str, Any],
    *,
    before: Sequence[dict[str, Any]] = (),
    after: Sequence[dict[str, Any]] = (),
    **keys: Any,
) -> Path:
    """A recipe with its input, and operators around ours; its output will be `out/captions.jsonl`."""
    recipe = {
        "dataset_path": str(write_rows(folder / "rows.jsonl", rows)),
        "export_path": str(folder / "out/captions.jsonl"),
        "open_monitor": False,
        **keys,
        "process": [*before, {OPERATOR_NAME: operator}, *after],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


def dj_process(recipe: Path, *, first: str = "") -> tuple[int, str]:
    """Exit code and log of Data-Juicer's own command, or of the same function after some lines of Python."""
    command = [str(Path(sys.executable).with_name("dj-process"))]
    if first:
        command = [sys.executable, "-c", f"{first}\nfrom data_juicer.tools.process_data import main\nmain()"]
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(recipe.parent / "cache"),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        [*command, "--config", str(recipe)], cwd=recipe.parent, env=environment, timeout=TIMEOUT_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    return done.returncode, done.stdout


def captions_of(recipe: Path, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """The output of a run that succeeds, and its log."""
    code, log = dj_process(recipe, **options)
    assert code == 0, log[-6000:]
    output = recipe.parent / "out/captions.jsonl"
    files = [output] if output.is_file() else sorted(output.glob("*.json"))  # Ray writes a folder
    return [row for file in files for row in read_rows(file)], log


def expected(rows: list[dict[str, Any]], **parameters: Any) -> list[dict[str, Any]]:
    """What our operator makes of the rows by itself."""
    operator = VideoCaptioningFromVLMMapper(**parameters)
    with contextlib.closing(operator):
        return operator.run(rows)  # type: ignore[no-any-return]


# dj-process


@pytest.mark.slow
def test_all_candidates_with_a_bad_video_in_two_processes(clips: list[str], tmp_path: Path) -> None:
    asked = {**SHAPES, "caption_num": 4, "keep_candidate_mode": "all", "failure_key": "error"}
    rows = rows_of(clips)
    made, log = captions_of(write_recipe(tmp_path, rows, asked, np=2, skip_op_error=True))
    assert "num_proc=2" in log
    assert made == expected(rows, **asked)
    assert [row["id"] for row in made] == [0] * 5 + [1] * 5 + [2, 3] + [4] * 5
    assert [row["error"]["kind"] for row in made if row["error"]] == ["not_found"]
    assert "An error occurred in video_captioning_from_vlm_mapper" in log
    assert f"{clips[0]}.gone does not exist" in log


@pytest.mark.slow
def test_a_random_candidate_with_keys_and_tokens_of_the_recipe(clips: list[str], tmp_path: Path) -> None:
    rows = [{"id": row["id"], "words": row["text"], "clips": row["videos"]} for row in map(with_tokens, rows_of(clips))]
    asked = {**SHAPES, "caption_num": 4, "keep_candidate_mode": "random_any"}
    made, log = captions_of(write_recipe(tmp_path, rows, asked, text_keys="words", video_key="clips", **SPECIAL_TOKENS))
    assert made == expected(rows, **asked, **OWN_TOKENS, text_key="words", video_key="clips")
    assert made[3]["words"].count("<v>") == 2
    assert ".gone does not exist" in log


@pytest.mark.slow
def test_the_most_similar_candidate_without_originals(clips: list[str], tmp_path: Path) -> None:
    rows = [{**row, "ask": "Say what moves." if row["id"] else None} for row in rows_of(clips)]
    asked = {
        **SHAPES, "caption_num": 4, "keep_candidate_mode": "similar_one_simhash", "keep_original_sample": False,
        "prompt_key": "ask", "caption_key": "captions",
    }  # fmt: skip
    made, _ = captions_of(write_recipe(tmp_path, rows, asked))
    assert made == expected(rows, **asked)
    assert [(row["id"], len(row["captions"])) for row in made] == [(0, 1), (1, 2), (4, 2)]


@pytest.mark.slow
def test_a_bad_video_stops_the_run_if_errors_are_not_skipped_and_nothing_is_lost(
    clips: list[str], tmp_path: Path
) -> None:
    rows, asked = rows_of(clips), {**SHAPES, "failure_key": "error"}
    rows = [rows[number] for number in (0, 1, 3, 2, 4)]
    recipe = write_recipe(tmp_path, rows, {**asked, "batch_size": 1}, np=1, skip_op_error=False)
    code, log = dj_process(recipe)
    assert code != 0
    assert f"{clips[0]}.gone does not exist" in log
    assert "FailedSamplesError" in log
    assert not (tmp_path / "out/captions.jsonl").exists()
    assert read_rows(tmp_path / "rows.jsonl") == rows
    (kept,) = (tmp_path / "out").rglob(f"{OPERATOR_NAME}_stopped_*.jsonl")
    assert str(kept) in log
    made = read_rows(kept)
    whole = expected(rows, **asked)
    assert made == whole[: len(made)], "what was done before it, and the batch that stopped it"
    assert made[-1]["error"]["kind"] == "not_found"
    assert {row["id"] for row in made} == {0, 1, 3, 2}


@pytest.mark.slow
def test_nothing_is_left_behind_where_no_video_fails(clips: list[str], tmp_path: Path) -> None:
    rows = rows_of(clips, bad=False)
    asked = {**SHAPES, "batch_size": 1}
    made, _ = captions_of(write_recipe(tmp_path, rows, asked, np=2, skip_op_error=False))
    assert made == expected(rows, **asked)
    assert not list((tmp_path / "out").rglob("*_stopped_*"))


@pytest.mark.slow
def test_custom_operator_paths_name_the_plugin_file(clips: list[str], tmp_path: Path) -> None:
    rows, asked = rows_of(clips), {**SHAPES, "failure_key": "error"}
    recipe = write_recipe(tmp_path, rows, {**asked, "workers": 1}, custom_operator_paths=[PLUGIN])
    assert captions_of(recipe, first=WITHOUT_PLUGINS)[0] == expected(rows, **asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "more"),
    [("", {}), (WITHOUT_PLUGINS, {"custom_operator_paths": [PLUGIN]})],
    ids=["entry point", "custom path"],
)
def test_the_ray_executor(first: str, more: dict[str, Any], clips: list[str], tmp_path: Path) -> None:
    rows = [with_tokens(row) for row in rows_of(clips)]
    asked = {**SHAPES, "caption_num": 4, "keep_candidate_mode": "all", "failure_key": "error"}
    keys = {"executor_type": "ray", "ray_address": "local", **SPECIAL_TOKENS, **more}
    made, log = captions_of(write_recipe(tmp_path, rows, asked, **keys), first=first)
    assert sorted(made, key=lambda row: row["id"]) == expected(rows, **asked, **OWN_TOKENS)
    assert ".gone does not exist" in log


# other operators around ours

RAY = {"executor_type": "ray", "ray_address": "local"}
APART = {"num_cpus": 0.5}
"""What keeps Ray from running an operator in the same process as its neighbours."""


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"np": 2}, RAY], ids=["default", "ray"])
def test_video_operators_before_and_text_filters_after(keys: dict[str, Any], tmp_path: Path) -> None:
    sizes = [(96, 2), (120, 2), (160, 4), (144, 2)]
    videos = [
        str(render_clip(tmp_path / f"{i}.mp4", DEMO_SEEDS + i, short_side=(side, side), seconds=(length, length)).path)
        for i, (side, length) in enumerate(sizes)
    ]
    text = "<__dj__video> a clip <|__dj__eoc|>"
    rows = [{"id": i, "text": text, "videos": [video]} for i, video in enumerate(videos)]
    before: list[dict[str, Any]] = [
        {"video_resolution_filter": {"min_width": 100, "min_height": 100, **APART}},  # not 0
        {"video_aspect_ratio_filter": {"min_ratio": "1/9", "max_ratio": "9/1"}},
        {"video_duration_filter": {"min_duration": 1, "video_backend": "av"}},
        {"video_duration_filter": {"max_duration": 3, "video_backend": "ffmpeg"}},  # not 2
        {"video_split_by_duration_mapper": {
            "split_duration": 1, "keep_original_sample": False, "save_dir": str(tmp_path / "pieces"), **APART,
        }},  # two or three pieces
    ]  # fmt: skip
    original = text.replace("<__dj__video>", "<__dj__video>" * 3)
    after = [{"text_length_filter": {"min_len": len(original) + 5}}, {"words_num_filter": {"min_num": 3}}]
    recipe = write_recipe(tmp_path, rows, dict(SHAPES), before=before, after=after, skip_op_error=True, **keys)
    made, log = captions_of(recipe)
    assert "An error occurred" not in log, log[-6000:]
    assert sorted(row["id"] for row in made) == [1, 3], "the originals are too short"
    for row in made:
        assert len(row["videos"]) == row["text"].count("<__dj__video>") > 1
        assert all(Path(piece).parent == tmp_path / "pieces" for piece in row["videos"])
    assert log.count("reelscribe replaced these calls in close_video") >= 1


# Data-Juicer's own operator


@pytest.mark.slow
def test_the_built_in_operator_alone_fails(clips: list[str], tmp_path: Path) -> None:
    """The day this test fails the built-in operator has been mended: docs/data_juicer.md is to be read again."""
    model = str(Path(reelscribe.__file__).with_name("models") / "bundled" / "shapes")
    recipe = write_recipe(tmp_path, rows_of(clips, bad=False), {"hf_model": model}, np=1, skip_op_error=True)
    made, log = captions_of(recipe, first=WITHOUT_PLUGINS + READING_MENDED)
    assert made == []
    assert "got multiple values for keyword argument 'max_new_tokens'" in log


def test_the_built_in_operator_throws_its_results_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its model says: a batch with results is given back empty, and one without is an IndexError."""
    from data_juicer.ops.mapper.video_captioning_from_vlm_mapper import VideoCaptioningFromVLMMapper as BuiltIn

    operator = BuiltIn.__new__(BuiltIn)
    operator.text_key, operator.keep_original_sample = "text", True
    monkeypatch.setattr(BuiltIn, "_process_single_sample", lambda self, sample, **_: [dict(sample, text="a caption")])
    assert operator.process_batched({"text": ["a"], "videos": [["a.mp4"]]}) == {}
    with pytest.raises(IndexError):
        operator.process_batched({"text": [], "videos": []})


# the class


def operator_of(**parameters: Any) -> Any:
    from reelscribe.data_juicer import VideoCaptioningFromVLMMapper as Inside

    return Inside(**parameters)


def says(request: Any, i: int) -> str:
    return "" if "gone" in request.video else f"caption {i} of {request.video}"


def scripted(**parameters: Any) -> Any:
    return operator_of(captioner=ScriptedCaptioner(says), **parameters)


def test_it_stands_in_the_registry_in_place_of_the_built_in() -> None:
    from data_juicer.ops import OPERATORS, load_op_plugins

    from reelscribe import data_juicer as module

    assert "reelscribe" in load_op_plugins()
    assert OPERATORS.modules[OPERATOR_NAME] is module.VideoCaptioningFromVLMMapper
    assert module.VideoCaptioningFromVLMMapper._name == OPERATOR_NAME
    assert module.VideoCaptioningFromVLMMapper._batched_op


def test_it_takes_every_parameter_of_the_built_in_and_all_of_ours() -> None:
    from data_juicer.core.preflight import _get_valid_params, pre_instantiation_check
    from data_juicer.ops.mapper import VideoCaptioningFromVLMMapper as BuiltIn

    from reelscribe import data_juicer as module

    taken = list(inspect.signature(module.VideoCaptioningFromVLMMapper.__init__).parameters)[1:]
    assert set(_get_valid_params(BuiltIn)) <= set(taken)
    assert set(inspect.signature(VideoCaptioningFromVLMMapper).parameters) <= set(taken)
    built_in = inspect.signature(BuiltIn.__init__).parameters.values()
    in_order = [p.name for p in built_in if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    assert taken[: len(in_order)] == in_order
    pre_instantiation_check([{OPERATOR_NAME: {**dict.fromkeys(taken), **SHAPES, "caption_num": 2, "workers": 1}}])


def test_a_wrong_value_is_an_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match=r"caption_num: input should be greater than 0; got 0"):
        operator_of(caption_num=0)
    with pytest.raises(TypeError, match="captoin_num"):
        operator_of(captoin_num=1)


def test_tokens_of_the_recipe_are_read_and_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_juicer.utils.mm_utils import SpecialTokens

    for name, token in TOKENS.items():
        monkeypatch.setattr(SpecialTokens, name, token)
    tokens = operator_of().operator.planner.names.tokens
    given = operator_of(video_token="<film>").operator.planner.names.tokens
    assert tokens.all == tuple(TOKENS.values())
    assert given.video == "<film>"


def test_an_actor_is_built_with_the_tokens_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_juicer.utils.mm_utils import SpecialTokens

    with monkeypatch.context() as recipe:
        recipe.setattr(SpecialTokens, "video", "<film>")
        operator = operator_of(text_key="words")
    actor = type(operator)(*operator._init_args, **operator._init_kwargs)
    assert actor.operator.parameters == operator.operator.parameters


def test_processes_of_the_operator_and_those_that_read_are_two_things() -> None:
    operator = operator_of(num_proc=3, workers=2, batch_size=7)
    assert (operator.num_proc, operator.operator.parameters["num_proc"]) == (3, 2)
    assert (operator.batch_size, operator.operator.parameters["batch_size"]) == (7, 7)
    assert operator_of().operator.parameters["num_proc"] is None
    assert operator_of(num_proc=3, enable_vllm=True).num_proc == 1
    assert operator_of(num_proc=3, backend="vllm").num_proc == 1
    assert operator_of(num_proc=3, backend="hf").num_proc == 3


def test_a_failed_sample_leaves_the_others_whatever_the_batch_is_made_of() -> None:
    import pyarrow as pa

    batch = {"text": ["", "", ""], "videos": [["a.mp4"], ["gone.mp4"], ["b.mp4"]]}
    operator = scripted(skip_op_error=True, failure_key="error")
    made = operator.process(batch)
    assert made["videos"] == [["a.mp4"], ["a.mp4"], ["gone.mp4"], ["b.mp4"], ["b.mp4"]]
    assert [error and error["kind"] for error in made["error"]] == [None, None, "empty_caption", None, None]
    table = operator.process(pa.table(batch))
    assert isinstance(table, pa.Table)
    assert table.to_pydict() == made


def test_without_skipping_the_batch_is_kept_in_the_working_directory(tmp_path: Path) -> None:
    operator = scripted(work_dir=str(tmp_path))
    with pytest.raises(FailedSamplesError, match="empty_caption") as raised:
        operator.process({"text": ["", ""], "videos": [["a.mp4"], ["gone.mp4"]]})
    (kept,) = tmp_path.glob("*_stopped_*.jsonl")
    assert str(kept) in str(raised.value)
    assert [row["videos"] for row in read_rows(kept)] == [["a.mp4"], ["a.mp4"], ["gone.mp4"]]


def test_an_error_that_is_no_videos_fault_stops_the_run_and_empties_no_batch() -> None:
    operator = operator_of(hf_model="/no/such/model", skip_op_error=True)
    with pytest.raises(ModelError):
        operator.process({"text": [""], "videos": [["a.mp4"]]})


def test_new_fields_have_their_types_where_the_first_rows_are_null() -> None:
    from datasets import Dataset

    rows = [{"text": None, "videos": [name]} for name in ("a.mp4", "b.mp4", "gone.mp4")]
    operator = scripted(
        skip_op_error=True, failure_key="error", caption_key="captions", batch_size=1, auto_op_parallelism=False
    )
    made = operator.run(Dataset.from_list(rows)).to_list()
    assert [row["error"] and row["error"]["kind"] for row in made] == [None] * 4 + ["empty_caption"]
    assert [row["captions"] for row in made][:2] == [None, ["caption 0 of a.mp4"]]


def test_a_tracer_that_wants_as_many_rows_as_before_does_not_stop_it() -> None:
    from datasets import Dataset

    rows = [{"text": "", "videos": [name]} for name in ("a.mp4", "gone.mp4")]
    operator = scripted(skip_op_error=True, keep_original_sample=False, auto_op_parallelism=False)
    made = operator.run(Dataset.from_list(rows), tracer=object()).to_list()
    assert [row["videos"] for row in made] == [["a.mp4"]]


def test_a_prompt_key_that_no_row_has_stops_the_run() -> None:
    from datasets import Dataset

    operator = scripted(prompt_key="ask")
    with pytest.raises(SettingsError, match="prompt_key is 'ask'"):
        operator.run(Dataset.from_list([{"text": "", "videos": ["a.mp4"]}]))


def test_it_travels_to_another_process() -> None:
    import dill

    operator = operator_of(**SHAPES, caption_num=3, text_key="words")
    for again in (pickle.loads(pickle.dumps(operator)), dill.loads(dill.dumps(operator))):
        assert again.operator.parameters == operator.operator.parameters
        assert again.text_key == "words"
