"""The operator's contract beyond the text cases: counts, parameters, seeds, batches of every shape."""

import pickle

import datasets
import numpy as np
import pyarrow as pa
import pydantic
import pytest

from reelscribe import (
    FailedSamplesError,
    ModelSpec,
    ScriptedCaptioner,
    SettingsError,
    VideoCaptioningFromVLMMapper,
)
from reelscribe.models.captioner import generation_config, resolve_sampling
from reelscribe.operator import DEFAULT_PROMPT

TOKEN, EOC = "<__dj__video>", "<|__dj__eoc|>"


def caption_of(request, i):
    return f"{request.video.removesuffix('.mp4')}{i}"


def operator(fn=caption_of, **params):
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(fn), **params)


def batch_of(count):
    return {"text": [TOKEN] * count, "videos": [[f"v{i}.mp4"] for i in range(count)], "id": list(range(count))}


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("num_candidates", [1, 3])
@pytest.mark.parametrize("keep_original", [True, False])
@pytest.mark.parametrize("mode", ["random_any", "similar_one_simhash", "all"])
def test_row_counts(num_rows, num_candidates, keep_original, mode):
    op = operator(caption_num=num_candidates, keep_candidate_mode=mode, keep_original_sample=keep_original)
    out = op.process_batched(batch_of(num_rows))
    made = num_candidates if mode == "all" else 1
    assert {len(values) for values in out.values()} == {num_rows * (made + keep_original)}
    assert out["id"] == [i for i in range(num_rows) for _ in range(made + keep_original)]


@pytest.mark.parametrize(
    ("params", "needles"),
    [
        ({"caption_num": 0}, ["caption_num", "0", "greater than 0"]),
        ({"caption_num": "2"}, ["caption_num", "'2'", "integer"]),
        ({"caption_num": True}, ["caption_num"]),
        ({"keep_candidate_mode": "best"}, ["best", "random_any", "similar_one_simhash", "all"]),
        ({"prompt": 3}, ["prompt", "3", "string"]),
        ({"nonsense": 1}, ["nonsense"]),
        ({"accelerator": "tpu"}, ["tpu", "cuda"]),
    ],
)
def test_parameters_are_checked(params, needles):
    with pytest.raises(pydantic.ValidationError) as caught:
        operator(**params)
    assert all(needle in str(caught.value) for needle in needles)


@pytest.mark.parametrize(
    ("params", "needle"),
    [
        ({"sampling_params": {"temprature": 1.0}}, "did you mean temperature"),
        ({"sampling_params": {"max_tokens": 5, "max_new_tokens": 6}}, "twice"),
        ({"sampling_params": {"top_p": 1.5}}, "top_p"),
        ({"sampling_params": {"n": 3}}, "caption_num"),
        ({"fps": 2.0, "num_frames": 4}, "num_frames"),
        ({"start_seconds": 4.0, "end_seconds": 2.0}, "end before it starts"),
        ({"video_token": "<__dj__image>"}, "special tokens"),
        ({"model_params": {"dtype": "float32"}}, "captioner replaces the model"),
        ({"enable_vllm": True}, "captioner replaces the model"),
    ],
)
def test_settings_that_do_not_go_together(params, needle):
    with pytest.raises(SettingsError, match=needle):
        operator(**params)


def test_positional_order_is_the_tables():
    op = VideoCaptioningFromVLMMapper(
        "reelscribe/shapes", False, 2, "all", False, "P", "p", {"dtype": "float32"}, {"temperature": 0.5}
    )
    rules = op.planner.names
    (ask,) = op.planner.asks
    assert (op.spec.model, ask.num_candidates, ask.keep, ask.prompt) == ("reelscribe/shapes", 2, "all", "P")
    assert (op.spec.backend, rules.keep_original, rules.prompt_key) == ("hf", False, "p")
    assert (op.spec.options["dtype"], op.spec.generation.temperature) == ("float32", 0.5)


def test_the_callers_dicts_are_not_changed():
    model, sampling = {"dtype": "float32"}, {"temperature": 0.5}
    VideoCaptioningFromVLMMapper("reelscribe/shapes", model_params=model, sampling_params=sampling, accelerator="cpu")
    assert (model, sampling) == ({"dtype": "float32"}, {"temperature": 0.5})


@pytest.mark.parametrize(
    ("params", "temperature"),
    [
        ({"do_sample": True}, 0.7),
        ({"do_sample": False}, 0.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({}, 0.0),
    ],
)
def test_do_sample_takes_the_models_temperature(params, temperature):
    config = generation_config(params)
    own = {"temperature": 0.7, "do_sample": False}
    assert resolve_sampling(config, num_candidates=1, model_defaults=own).temperature == temperature


def test_not_a_captioner():
    with pytest.raises(SettingsError, match="must be a Captioner or a ModelSpec; got int"):
        VideoCaptioningFromVLMMapper(captioner=3)


def test_a_spec_can_stand_for_the_model():
    op = VideoCaptioningFromVLMMapper(captioner=ModelSpec("scripted", "any", {"template": "{video}-{i}"}))
    assert op.process_batched(batch_of(1))["text"][1] == f"{TOKEN} v0-0 {EOC}"


def test_back_ends_that_are_not_there():
    with pytest.raises(SettingsError, match="unknown back end 'nonesuch'; choose from hf, vllm, server, scripted"):
        VideoCaptioningFromVLMMapper(captioner=ModelSpec("nonesuch", "any"))


@pytest.mark.parametrize(
    ("params", "backend", "options"),
    [
        ({}, "hf", {"max_batch_size": 3}),
        ({"enable_vllm": True}, "vllm", {"max_in_flight": 3}),
        ({"model_params": {"base_url": "http://host"}}, "server", {"base_url": "http://host", "max_in_flight": 3}),
        ({"enable_vllm": True, "model_params": {"max_in_flight": 9}}, "vllm", {"max_in_flight": 9}),
        ({"captioner": ModelSpec("scripted", "any")}, "scripted", {}),
    ],
)
def test_parameters_choose_the_back_end_and_what_the_batch_size_means_to_it(params, backend, options):
    spec = VideoCaptioningFromVLMMapper(batch_size=3, **params).spec
    assert (spec.backend, spec.options) == (backend, options)


def test_a_second_process_does_not_start_a_second_vllm_on_the_same_devices():
    op = VideoCaptioningFromVLMMapper(enable_vllm=True)
    with pytest.raises(SettingsError, match="num_proc=1"):
        op.process_batched(batch_of(1), rank=1)


def test_a_server_and_vllm_exclude_each_other():
    with pytest.raises(SettingsError, match="leave out enable_vllm"):
        VideoCaptioningFromVLMMapper(enable_vllm=True, model_params={"base_url": "http://host"})


def test_result_does_not_depend_on_batch_size_or_order():
    def fn(request, i):
        return f"{request.seed} {i}"

    rows = [{"text": f"{TOKEN} t{i}", "videos": [f"v{i}.mp4"]} for i in range(12)]
    op = operator(fn, caption_num=4, keep_original_sample=False)
    whole = {row["videos"][0]: row["text"] for row in op.run(rows)}
    for order in (rows[::-1], rows[3:], rows[:1]):
        assert all(whole[row["videos"][0]] == row["text"] for row in op.run(order))
    assert len(set(whole.values())) == 12
    other = operator(fn, caption_num=4, keep_original_sample=False, seed=1).run(rows)
    assert all(row["text"] != whole[row["videos"][0]] for row in other)


def test_a_bad_sample_touches_nobody_else():
    def fn(request, i):
        if request.video == "bad.mp4":
            raise RuntimeError("boom")
        return "fine"

    op = operator(fn, failure_key="why")
    out = op.process_batched({"text": [TOKEN] * 3, "videos": [["a.mp4"], ["bad.mp4"], ["c.mp4"]]})
    assert out["text"] == [TOKEN, f"{TOKEN} fine {EOC}", TOKEN, TOKEN, f"{TOKEN} fine {EOC}"]
    assert [why and why["kind"] for why in out["why"]] == [None, None, "model_error", None, None]
    (failure,) = op.failures
    assert (failure[0], failure[1], failure[2].kind) == (1, 0, "model_error")
    assert "boom" in failure[2].message


def test_failures_raise_where_errors_must_not_be_skipped():
    op = operator(lambda request, i: "", skip_op_error=False)
    with pytest.raises(FailedSamplesError, match="empty_caption") as caught:
        op.process_batched(batch_of(2))
    assert caught.value.batch["text"] == [TOKEN, TOKEN]


def test_one_empty_candidate_among_several():
    def fn(request, i):
        return " " if i == 1 else f"c{i}"

    keep_one = operator(fn, caption_num=3, keep_original_sample=False)
    assert keep_one.process_batched(batch_of(1))["text"][0] in (f"{TOKEN} c0 {EOC}", f"{TOKEN} c2 {EOC}")
    assert keep_one.failures == []
    keep_all = operator(fn, caption_num=3, keep_original_sample=False, keep_candidate_mode="all")
    assert keep_all.process_batched(batch_of(1))["text"] == [f"{TOKEN} c0 {EOC}", f"{TOKEN} c2 {EOC}"]
    assert [failure.kind for _, _, failure in keep_all.failures] == ["empty_caption"]


def test_caption_field():
    op = operator(caption_num=2, keep_candidate_mode="all", caption_key="captions")
    out = op.process_batched({"text": [TOKEN * 2], "videos": [["a.mp4", "b.mp4"]]})
    assert out["captions"] == [None, ["a0", "b0"], ["a1", "b1"]]


def test_custom_tokens():
    op = operator(video_token="[v]", image_token="[i]", audio_token="[a]", eoc_token="[e]", keep_original_sample=False)
    out = op.process_batched({"text": ["[i] x [v] y [e] z"], "videos": [["a.mp4"]]})
    assert out["text"] == ["[i][v] a0 [e]"]


def test_windows_from_the_row_and_the_operator():
    seen = []
    op = operator(lambda request, i: seen.append(request.window) or "x", start_seconds=1.0, end_seconds=9.0)
    op.process_batched(
        {
            "text": [TOKEN, TOKEN, TOKEN * 2],
            "videos": [["a"], ["b"], ["c", "d"]],
            "start_seconds": [None, 3, [4.0, 5.0]],
            "end_seconds": [2.5, None, None],
        }
    )
    assert [(w.start_seconds, w.end_seconds) for w in seen] == [(1.0, 2.5), (3.0, 9.0), (4.0, 9.0), (5.0, 9.0)]


@pytest.mark.parametrize(("start", "end"), [("soon", None), (-1, None), (5, 2), (True, None)])
def test_unusable_window_is_the_rows_own_failure(start, end):
    op = operator()
    out = op.process_batched({**batch_of(1), "start_seconds": [start], "end_seconds": [end]})
    assert len(out["text"]) == 1
    assert [failure.kind for _, _, failure in op.failures] == ["bad_sample"]


def test_generated_samples_share_nothing_with_the_original():
    out = operator().process_batched({**batch_of(1), "meta": [{"tags": ["x"]}]})
    out["meta"][1]["tags"].append("y")
    out["videos"][1].append("z")
    assert out["meta"][0] == {"tags": ["x"]}
    assert out["videos"][0] == ["v0.mp4"]


def test_missing_text_field():
    out = operator().process_batched({"videos": [["a.mp4"]]})
    assert out == {"videos": [["a.mp4"], ["a.mp4"]], "text": [None, f"{TOKEN} a0 {EOC}"]}


def test_array_of_videos():
    out = operator().process_batched({"text": [TOKEN], "videos": [np.array(["a.mp4"])]})
    assert out["text"][1] == f"{TOKEN} a0 {EOC}"


def test_empty_batch():
    assert operator().process_batched({"text": [], "videos": []}) == {"text": [], "videos": []}


def test_datasets_map_on_lists_and_arrow():
    data = datasets.Dataset.from_dict(batch_of(7))
    op = operator(caption_num=2, keep_candidate_mode="all")
    expected = op.process_batched(batch_of(7))
    assert data.map(op.process_batched, batched=True, batch_size=3).to_dict() == expected
    arrow = data.with_format("arrow").map(op.process_batched, batched=True, batch_size=3)
    assert arrow.with_format(None).to_dict() == expected
    assert arrow.features["videos"] == data.features["videos"]


def test_arrow_table_keeps_its_types():
    table = pa.table({"text": [TOKEN], "videos": [["a.mp4"]], "n": pa.array([3], pa.int8())})
    out = operator(caption_key="captions").process_batched(table)
    assert out.schema.field("n").type == pa.int8()
    assert out.column("captions").to_pylist() == [None, ["a0"]]
    nothing = operator(keep_original_sample=False).process_batched(table.slice(0, 0))
    assert nothing.schema == table.schema


def test_run_on_a_dataset():
    data = datasets.Dataset.from_dict({**batch_of(5), "videos": [["a.mp4"], [], ["bad"], ["c.mp4"], ["bad"]]})

    def fn(request, i):
        return "" if request.video == "bad" else caption_of(request, i)

    op = operator(fn, batch_size=2, caption_key="captions", failure_key="why")
    out = op.run(data)
    assert out["id"][:] == [0, 0, 1, 2, 3, 3, 4]
    assert out["captions"][:] == [None, ["a0"], None, None, None, ["c0"], None]
    assert [why and why["kind"] for why in out["why"]] == [
        None,
        None,
        None,
        "empty_caption",
        None,
        None,
        "empty_caption",
    ]
    assert [row for row, _, _ in op.failures] == [2, 4]


def test_run_on_an_arrow_formatted_and_an_empty_dataset():
    data = datasets.Dataset.from_dict(batch_of(3))
    assert len(operator().run(data.with_format("arrow"))) == 6
    empty = operator(caption_key="captions").run(data.select([]))
    assert (len(empty), set(empty.column_names)) == (0, {"text", "videos", "id", "captions"})


def test_failures_of_a_streamed_dataset():
    data = datasets.Dataset.from_dict({"text": [TOKEN] * 3, "videos": [["bad"], ["a"], ["b"]]}).to_iterable_dataset()
    op = operator(lambda request, i: "" if request.video == "bad" else "x", batch_size=1)
    assert len(list(op.run(data))) == 5
    assert [row for row, _, _ in op.failures] == [0]


def test_a_prompt_field_that_only_a_later_row_or_split_has():
    def rows():
        yield {"text": TOKEN, "videos": ["a"]}
        yield {"text": TOKEN, "videos": ["b"], "ask": "Why?"}

    op = operator(prompt_key="ask")
    assert len(list(op.run(datasets.IterableDataset.from_generator(rows)))) == 4
    with_it = datasets.Dataset.from_dict({**batch_of(1), "ask": ["Why?"]})
    assert len(op.run(datasets.DatasetDict(a=with_it, b=datasets.Dataset.from_dict(batch_of(1))))["b"]) == 2


def test_numpy_windows():
    seen = []
    op = operator(lambda request, i: seen.append(request.window.start_seconds) or "x")
    op.process_batched({**batch_of(3), "start_seconds": [np.int64(3), np.array([2.5]), float("nan")]})
    assert seen == [3.0, 2.5, None]


@pytest.mark.parametrize("keys", [{"caption_key": "text"}, {"failure_key": "videos"}, {"text_key": "videos"}])
def test_fields_that_would_be_one(keys):
    with pytest.raises(SettingsError, match="give one of them another name"):
        operator(**keys)


def test_a_late_failure_in_a_mapped_arrow_dataset():
    data = datasets.Dataset.from_dict({**batch_of(6), "videos": [["a"]] * 5 + [["bad"]]})
    op = operator(lambda request, i: "" if request.video == "bad" else "x", caption_key="c", failure_key="f")
    out = data.with_format("arrow").map(op.process_batched, batched=True, batch_size=2, writer_batch_size=2)
    assert [why and why["kind"] for why in out.with_format(None)["f"]] == [None] * 10 + ["empty_caption"]


def test_run_on_splits():
    parts = {name: datasets.Dataset.from_dict(batch_of(n)) for name, n in (("train", 2), ("test", 1))}
    op = operator(lambda request, i: "" if request.video == "v0.mp4" else "x")
    out = op.run(datasets.DatasetDict(parts))
    assert {name: part["id"][:] for name, part in out.items()} == {"train": [0, 1, 1], "test": [0]}
    assert [row for row, _, _ in op.failures] == [0, 2]


def test_a_value_that_is_no_video_belongs_to_its_row(tmp_path):
    op = VideoCaptioningFromVLMMapper("reelscribe/shapes")
    assert op.process_batched({"text": [TOKEN, TOKEN], "videos": [5, [5]]})["videos"] == [5, [5]]
    assert [(row, failure.kind) for row, _, failure in op.failures] == [(0, "bad_sample"), (1, "bad_sample")]
    op.close()


def test_run_on_rows_and_columns():
    rows = [{"text": TOKEN, "videos": ["a.mp4"]}, {"text": TOKEN, "videos": ["b.mp4"], "more": 1}]
    assert [row["text"] for row in operator(keep_original_sample=False).run(rows)] == [
        f"{TOKEN} a0 {EOC}",
        f"{TOKEN} b0 {EOC}",
    ]
    assert operator(keep_original_sample=False).run(batch_of(1))["text"] == [f"{TOKEN} v00 {EOC}"]


@pytest.mark.parametrize("make", [lambda b: b, datasets.Dataset.from_dict, lambda b: [{"text": "", "videos": []}]])
def test_a_prompt_field_that_no_row_has_stops_the_run(make):
    with pytest.raises(SettingsError, match="'ask'.*no row has that field"):
        operator(prompt_key="ask").run(make(batch_of(2)))


def test_a_prompt_field_that_some_rows_have():
    prompts = []
    op = operator(lambda request, i: prompts.append(request.prompt) or "x", prompt_key="ask")
    op.run([{"text": TOKEN, "videos": ["a"], "ask": "Why?"}, {"text": TOKEN, "videos": ["b"]}])
    assert prompts == ["Why?", DEFAULT_PROMPT]


def test_the_operator_travels_as_plain_values():
    op = VideoCaptioningFromVLMMapper(captioner=ModelSpec("scripted", "any"), caption_num=2, keep_candidate_mode="all")
    op.process_batched(batch_of(1))
    again = pickle.loads(pickle.dumps(op))
    assert again._captioner is None
    assert again.process_batched(batch_of(2)) == op.process_batched(batch_of(2))


def test_the_rank_of_a_parallel_map_reaches_the_model():
    op = VideoCaptioningFromVLMMapper("reelscribe/shapes")
    assert op.process_batched({"text": [], "videos": []}, rank=1) == {"text": [], "videos": []}
    assert op.spec.options == {"rank": 1}
    op.close()


def test_a_captioner_that_forgets_a_request():
    class Forgetful(ScriptedCaptioner):
        def caption(self, clips):
            return (result for i, result in enumerate(super().caption(clips)) if i != 1)

    op = VideoCaptioningFromVLMMapper(captioner=Forgetful(caption_of), keep_original_sample=False)
    assert op.process_batched(batch_of(3))["id"] == [0, 2]
    assert [(row, failure.kind) for row, _, failure in op.failures] == [(1, "model_error")]


def test_results_out_of_order_come_out_in_order():
    class Reversing(ScriptedCaptioner):
        def caption(self, clips):
            return reversed(list(super().caption(clips)))

    op = VideoCaptioningFromVLMMapper(captioner=Reversing(caption_of), keep_original_sample=False)
    assert op.process_batched(batch_of(6))["id"] == list(range(6))


def test_lists_of_different_length():
    with pytest.raises(Exception, match="equal lengths"):
        operator().process_batched({"text": ["a"], "videos": []})


KEYS = ["caption_key", "failure_key", "finish_reason_key", "reasoning_key"]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_in_a_field_to_be_written_stays_and_its_row_fails(key):
    rows = [{"text": "", "videos": ["a"]}, {"text": "", "videos": ["b"], "mine": "kept"}, {"text": "", "videos": ["c"]}]
    op = operator(lambda request, i: "x", **{key: "mine"})
    out = op.run(rows)
    assert [row["videos"] for row in out] == [["a"], ["a"], ["b"], ["c"], ["c"]]
    assert out[2] == rows[1]
    ((row, _, failure),) = op.failures
    assert (row, failure.kind) == (1, "bad_sample")
    assert f"field 'mine', which this run would overwrite; set {key} to another name" in failure.message


@pytest.mark.parametrize("key", KEYS)
def test_a_value_in_a_row_without_videos_stays(key):
    rows = [{"text": "", "videos": [], "mine": ["kept"]}, {"text": "", "videos": ["a"]}]
    op = operator(lambda request, i: "x", **{key: "mine"})
    assert op.run(rows)[0] == rows[0]
    assert op.failures == []


def test_nothing_and_the_failure_of_an_earlier_run_are_replaced():
    op = operator(lambda request, i: "" if request.video == "bad" else "x", failure_key="why")
    first = op.run([{"text": "", "videos": ["bad"]}, {"text": "", "videos": ["a"], "why": None}])
    again = operator(lambda request, i: "x", failure_key="why")
    assert [row["why"] for row in again.run(first[:1])] == [None, None]
    assert [row["why"] and row["why"]["kind"] for row in first] == ["empty_caption", None, None]
    for nothing in ("", [], {}, float("nan")):
        out = operator(lambda request, i: "x", caption_key="c").run([{"text": "", "videos": ["a"], "c": nothing}])
        assert out[1]["c"] == ["x"]


@pytest.mark.parametrize("key", KEYS)
def test_a_column_of_another_type_stops_the_run_before_a_caption_is_made(key):
    def never(request, i):
        raise AssertionError("asked")

    rows = {"text": ["", ""], "videos": [["a"], ["b"]], "mine": [None, 7]}
    op = operator(never, **{key: "mine"})
    for data in (datasets.Dataset.from_dict(rows), pa.table(rows)):
        with pytest.raises(SettingsError, match=r"field 'mine' of type int64, .*set caption_key, failure_key, finish_"):
            op.run(data) if isinstance(data, datasets.Dataset) else op.process_batched(data)


def test_an_array_in_a_field_to_be_written_stays():
    row = {"text": "", "videos": ["a"], "mine": np.array([1, 2])}
    op = operator(lambda request, i: "x", caption_key="mine")
    (out,) = op.run([row])
    assert out["mine"] is row["mine"]
    assert op.failures[0][2].kind == "bad_sample"


def test_values_in_a_column_of_the_same_type_stay():
    rows = {"text": ["", ""], "videos": [["a"], ["b"]], "mine": [None, ["kept"]]}
    op = operator(lambda request, i: "x", caption_key="mine")
    out = op.run(datasets.Dataset.from_dict(rows)).to_list()
    assert [row["mine"] for row in out] == [None, ["x"], ["kept"]]
    assert [failure.kind for _, _, failure in op.failures] == ["bad_sample"]
