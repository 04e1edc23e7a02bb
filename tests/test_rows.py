"""Rows of any content: each is captioned, fails alone, or is passed on, and nothing of a user's is replaced."""

from __future__ import annotations

import datetime
import decimal
import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.answering import acceptance
from reelscribe.data import open_source
from reelscribe.data.json_row import MAX_DEPTH, read_row
from reelscribe.rows.data_juicer_rows import DataJuicerRows
from reelscribe.rows.one_video_rows import OneVideoRows
from reelscribe.rows.plan import Planner
from reelscribe.runners.report.summary import RunSummary
from reelscribe.runners.run.run import Run, caption_file
from reelscribe.runners.run.run_folder import DATABASE, run_folder
from reelscribe.types import BadRow
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.processes.pool import WorkerPool
from rows import Rows, jsonl, load

OWN = ["MY OWN CAPTION"]


def caption(source: Path, output: Path, *, asked: list[int] | None = None, **parameters: Any) -> RunSummary:
    """Caption with a scripted model; fields of `RunSettings` go to the run."""
    run = {
        name: parameters.pop(name) for name in ("update", "overwrite", "format", "max_row_bytes") if name in parameters
    }

    def words(request: Any, _i: int) -> str:
        if asked is not None:
            asked.append(request.id.row)
        return "words"

    op = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words), **parameters)
    return caption_file(op, source, output, **run)


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
    return path


def failures(output: Path) -> Rows:
    return load(output.with_name(output.name + ".failures.jsonl"))


# fields of a user's own


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_captions_that_only_a_later_row_has_are_kept(tmp_path: Path, suffix: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "b.mp4", "captions": OWN}])
    output = tmp_path / f"out{suffix}"
    summary = caption(source, output)
    assert summary.failures == {"bad_sample": 1}
    assert "--caption-key" in failures(output)[0]["message"]
    row = list(open_source(output))[1]
    assert (json.loads(row["captions"]) if suffix == ".csv" else row["captions"]) == OWN
    assert caption(source, tmp_path / "other.jsonl", caption_key="made").failed_rows == 0
    assert load(tmp_path / "other.jsonl")[1] == {"video": "b.mp4", "captions": OWN, "made": ["words"]}


@pytest.mark.parametrize("key", ["caption_key", "failure_key", "finish_reason_key", "reasoning_key"])
@pytest.mark.parametrize("form", ["video", "videos"])
@pytest.mark.parametrize("keep_original", [True, False])
def test_no_named_field_of_a_later_row_is_replaced(tmp_path: Path, key: str, form: str, keep_original: bool) -> None:
    def row(name: str, **more: Any) -> dict[str, Any]:
        return {"video": name, **more} if form == "video" else {"text": "old", "videos": [name], **more}

    mine = {"kind": "mine"}
    rows = [row("a.mp4"), row("b.mp4", field=mine), row("c.mp4", field=None)]
    output = tmp_path / "out.jsonl"
    summary = caption(jsonl(tmp_path / "in.jsonl", rows), output, keep_original_sample=keep_original, **{key: "field"})
    made = load(output)
    assert summary.failures == {"bad_sample": 1}
    assert [one["field"] for one in made if one.get("field") == mine] == [mine] * keep_original
    assert len(made) == summary.rows_out
    assert f"--{key.replace('_', '-')}" in failures(output)[0]["message"]


def test_a_field_that_the_first_row_has_and_that_is_named_is_replaced(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "captions": ["old"]}, {"video": "b.mp4", "captions": ["old"]}]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="--caption-key"):
        caption(source, output)
    assert caption(source, output, caption_key="captions").failed_rows == 0
    assert [row["captions"] for row in load(output)] == [["words"]] * 2


def test_a_row_without_a_video_keeps_its_captions_too(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": None, "captions": OWN}])
    assert caption(source, tmp_path / "out.jsonl").failed_rows == 0
    assert load(tmp_path / "out.jsonl")[1] == {"video": None, "captions": OWN}
    first = jsonl(tmp_path / "first.jsonl", [{"video": None, "captions": OWN}, {"video": "a.mp4"}])
    with pytest.raises(DataError, match="--caption-key"):
        caption(first, tmp_path / "none.jsonl")


def test_a_videofolder_is_refused_before_anything_is_captioned(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "b.mp4", "captions": OWN}])
    asked: list[int] = []
    with pytest.raises(DataError, match="row 1 of .* already has a field 'captions'"):
        caption(source, tmp_path, asked=asked, format="videofolder")
    assert not asked
    assert not (tmp_path / "a.txt").exists()


def test_a_tar_shard_holds_a_text_that_is_called_captions_as_it_came(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "b.mp4", "captions": "MINE"}])
    caption(source, tmp_path / "out.tar")
    assert [(row.get("text"), row["captions"]) for row in open_source(tmp_path / "out.tar")] == [
        ("words", ["words"]), (None, "MINE"),
    ]  # fmt: skip


# rows that cannot be read

DEEP = '{"video": "deep.mp4", "x": ' + "[" * 985 + "]" * 985 + "}"
BAD_LINES = {
    "a thousand levels": DEEP,
    "objects in objects": '{"video": "b.mp4", "x": ' + '{"a":' * 300 + "1" + "}" * 301,
    "levels past any stack": '{"video": "b.mp4", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a name twice": '{"video": "b.mp4", "id": 1, "id": 2}',
    "a name twice inside": '{"video": "b.mp4", "meta": [{"a": 1, "a": 2}]}',
    "thousands of digits": '{"video": "b.mp4", "x": ' + "1" * 5000 + "}",
    "seconds past any number": '{"video": "b.mp4", "end_seconds": 1' + "0" * 400 + "}",
    "seconds of thousands of digits": '{"video": "b.mp4", "start_seconds": ' + "9" * 5000 + "}",
    "negative seconds": '{"video": "b.mp4", "start_seconds": -1' + "0" * 400 + "}",
    "seconds that are a list of lists": '{"video": "b.mp4", "start_seconds": [[1]]}',
    "seconds that are a truth value": '{"video": "b.mp4", "end_seconds": true}',
    "seconds that are an object": '{"video": "b.mp4", "end_seconds": {"a": 1}}',
    "an end before the start": '{"video": "b.mp4", "start_seconds": 3, "end_seconds": 1}',
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_row_fails_alone_and_is_passed_on(tmp_path: Path, name: str, suffix: str) -> None:
    source = lines(tmp_path / "in.jsonl", '{"video": "a.mp4"}', BAD_LINES[name], '{"video": "c.mp4"}')
    output, asked = tmp_path / f"out{suffix}", list[int]()
    if suffix == ".parquet" and "seconds" in name:
        pytest.skip("a column of Parquet has one type")
    summary = caption(source, output, asked=asked)
    assert summary.failures == {"bad_sample": 1}
    assert (summary.rows_in, summary.rows_out, asked) == (3, 3, [0, 2])
    assert failures(output)[0]["row"] == 1
    if suffix == ".jsonl":
        bad = output.read_text("utf-8").splitlines()[1]
        assert bad == BAD_LINES[name][:-1] + ', "captions": null}', "as it came, with the new field"
    assert len(list(open_source(output))) == 3


def test_a_bad_row_can_be_the_first_or_the_only_one(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert caption(lines(tmp_path / "in.jsonl", DEEP), output, failure_key="why").failures == {"bad_sample": 1}
    assert output.read_text().startswith(DEEP[:-1] + ', "captions": null, "why": {"kind": "bad_sample"')
    assert caption(lines(tmp_path / "in2.jsonl", DEEP, '{"video": "a.mp4"}'), tmp_path / "2.jsonl").captions == 1


def test_a_bad_row_in_data_juicers_form_is_passed_on_once(tmp_path: Path) -> None:
    bad = DEEP.replace('"video": "deep.mp4"', '"text": "t", "videos": ["deep.mp4"]')
    source = lines(tmp_path / "in.jsonl", '{"text": "t", "videos": ["a.mp4"]}', bad)
    for keep, count in ((True, 3), (False, 1)):
        output = tmp_path / f"{keep}.jsonl"
        assert caption(source, output, keep_original_sample=keep, caption_key="made").rows_out == count
        found = output.read_text().splitlines()
        assert len(found) == count
        assert (found[-1] == bad[:-1] + ', "made": null}') == keep


def test_what_is_not_json_still_ends_the_run_with_its_line(tmp_path: Path) -> None:
    for bad in ('{"video": ', "[" * 5000, '{"video": "a", "x": ' + "[" * 5000 + "}", "\x00", '{"a": 01}'):
        with pytest.raises(DataError, match=r"in\.jsonl:2 "):
            caption(lines(tmp_path / "in.jsonl", '{"video": "a.mp4"}', bad), tmp_path / "out.jsonl", overwrite=True)


def test_depth_is_counted_outside_of_texts() -> None:
    marks = json.dumps({"video": "[" * 1000, "x": "\\" * 3 + '"' + "{" * 1000})
    assert read_row(marks, where="here") == json.loads(marks)
    inside = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert not isinstance(read_row('{"x": ' + inside + "}", where="here"), BadRow)
    assert isinstance(read_row('{"x": [' + inside + "]}", where="here"), BadRow)


def test_a_row_that_does_not_fit_fails_alone_where_another_shows_the_form(tmp_path: Path) -> None:
    """The readers refuse what is no video; here every value of the wrong type reaches them."""
    values: list[Any] = [5, True, 1.5, {"path": 5}, {"bytes": "x"}, {}, [], ["a.mp4"], [["a.mp4"]], [None]]
    model = ScriptedCaptioner(lambda request, i: "words")
    model.policy = FramePolicy()  # type: ignore[misc]
    for field, good in (("video", "a.mp4"), ("videos", ["a.mp4"])):
        source = jsonl(tmp_path / f"{field}.jsonl", [*({field: value} for value in values), {field: good}])
        op = VideoCaptioningFromVLMMapper(captioner=model, num_proc=1)
        op.pool = WorkerPool(1)
        summary = caption_file(op, source, tmp_path / f"{field}.out.jsonl")
        op.close()
        assert summary.rows_in == len(values) + 1
        assert set(summary.failures) <= {"bad_sample", "not_found"}
        assert "bad_sample" in summary.failures


# values of Arrow that Python cannot hold


def viewed(numbers: list[int | None], type_: pa.DataType) -> pa.Array:
    return pa.array(numbers, pa.int64()).view(type_)


def odd_columns() -> dict[str, pa.Array]:
    """Columns of which the second row holds something that Python cannot."""
    text = pa.array([b"ok", b"\xff\xfe", None], pa.binary()).view(pa.string())
    far = viewed([0, 2**62, None], pa.timestamp("us"))
    return {
        "text that is not UTF-8": text,
        "a large one": text.cast(pa.binary()).cast(pa.large_binary()).view(pa.large_string()),
        "a time past any date": far,
        "a time with a zone": viewed([0, -(2**62), None], pa.timestamp("ms", tz="UTC")),
        "a date past any date": pa.array([0, 2**31 - 1, None], pa.int32()).view(pa.date32()),
        "inside of a struct": pa.StructArray.from_arrays([text, far], ["text", "time"]),
        "inside of a list": pa.ListArray.from_arrays([0, 1, 2, 3], text),
        "in a dictionary": text.dictionary_encode(),
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("name", odd_columns())
def test_a_value_that_python_cannot_hold_fails_its_row_and_comes_out(tmp_path: Path, name: str, suffix: str) -> None:
    table = pa.table({"video": ["a.mp4", "b.mp4", "c.mp4"], "odd": odd_columns()[name]})
    source, output = tmp_path / "in.parquet", tmp_path / f"out{suffix}"
    pq.write_table(table, source)
    summary = caption(source, output)
    assert summary.failures == {"bad_sample": 1}
    (failed,) = failures(output)
    assert (failed["row"], failed["video"]) == (1, "b.mp4")
    assert "'odd'" in failed["message"]
    assert str(source) in failed["message"]
    assert len(list(open_source(output))) == 3
    if suffix == ".parquet":
        made, stored = (pq.read_table(path)["odd"].combine_chunks() for path in (output, source))
        assert [part and part.to_pybytes() for part in made.buffers()][-1:] == [
            part and part.to_pybytes() for part in stored.buffers()
        ][-1:], "byte for byte"


def test_paths_as_bytes_are_no_videos_but_no_end_of_the_run(tmp_path: Path) -> None:
    paths = pa.array([{"path": b"a.mp4"}, {"path": b"\xff"}], pa.struct({"path": pa.binary()}))
    pq.write_table(pa.table({"video": paths}), tmp_path / "in.parquet")
    asked: list[int] = []
    with pytest.raises(DataError, match="'video'.*bytes"):
        caption(tmp_path / "in.parquet", tmp_path / "out.jsonl", asked=asked)
    assert not asked
    model = ScriptedCaptioner(lambda request, i: "words")
    model.policy = FramePolicy()  # type: ignore[misc]
    op = VideoCaptioningFromVLMMapper(captioner=model, num_proc=1)
    summary = caption_file(op, tmp_path / "in.parquet", tmp_path / "out.parquet")
    op.close()
    assert summary.failures == {"bad_sample": 2}
    assert pq.read_table(tmp_path / "out.parquet")["video"].combine_chunks().equals(paths)


def test_bytes_in_a_later_row_are_refused_for_json_lines_before_anything_is_captioned(tmp_path: Path) -> None:
    table = pa.table({"video": ["a.mp4", "b.mp4"], "thumb": pa.array([None, b"x"])})
    pq.write_table(table, tmp_path / "in.parquet")
    asked: list[int] = []
    for name in ("out.jsonl", "out.csv"):
        with pytest.raises(DataError, match="'thumb'"):
            caption(tmp_path / "in.parquet", tmp_path / name, asked=asked)
    assert not asked
    empty = {"path": pa.array(["a.mp4"]), "bytes": pa.array([None], pa.binary())}
    pq.write_table(
        pa.table({"video": pa.StructArray.from_arrays(list(empty.values()), list(empty))}), tmp_path / "e.parquet"
    )
    assert caption(tmp_path / "e.parquet", tmp_path / "e.jsonl").captions == 1


def test_parquet_without_columns_or_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({}), tmp_path / "none.parquet")
    assert caption(tmp_path / "none.parquet", tmp_path / "none.out.parquet").rows_in == 0
    schema = pa.schema({"video": pa.string()})
    with pq.ParquetWriter(tmp_path / "groups.parquet", schema) as writer:
        for videos in ([], ["a.mp4"], [], ["b.mp4"], []):
            writer.write_table(pa.table({"video": pa.array(videos, pa.string())}))
    assert caption(tmp_path / "groups.parquet", tmp_path / "groups.out.parquet").captions == 2


# any rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**400), 10**400) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["video", "videos", "text", "start_seconds", "end_seconds", "captions", "made", "why", "ask", "id", "", "\ud800"]
)
ANY_ROWS = st.lists(
    st.dictionaries(NAMES, VALUES | st.just("a.mp4") | st.just(["a.mp4"]), max_size=6), min_size=1, max_size=5
)
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def adds_up(summary: RunSummary, rows: int) -> None:
    """Every row is captioned, failed, or had no video."""
    assert summary.rows_in == rows
    assert summary.rows_out >= rows
    assert sum(summary.failures.values()) >= summary.failed_rows
    assert "internal_error" not in summary.failures, "a kind of error that no rule knows of"


@QUICK
@given(
    rows=ANY_ROWS, video_key=st.sampled_from(["video", "videos"]), suffix=st.sampled_from([".jsonl", ".csv", ".tar"])
)
def test_any_rows_of_json(tmp_path: Path, rows: Rows, video_key: str, suffix: str) -> None:
    source = lines(tmp_path / "in.jsonl", *(json.dumps(row) for row in rows))
    keys: dict[str, Any] = {"video_key": video_key, "caption_key": "made", "failure_key": "why"}
    if any("ask" in row for row in rows):
        keys["prompt_key"] = "ask"
    (tmp_path / f"out{suffix}").unlink(missing_ok=True)
    try:
        summary = caption(source, tmp_path / f"out{suffix}", overwrite=True, **keys)
    except (DataError, SettingsError):
        assert not (tmp_path / f"out{suffix}").exists()
    else:
        adds_up(summary, len(rows))


def scalars(type_: pa.DataType) -> st.SearchStrategy[Any]:
    """An array of three values of a type, of any bytes that it may hold."""
    if pa.types.is_boolean(type_):
        return st.lists(st.booleans() | st.none(), min_size=3, max_size=3).map(lambda some: pa.array(some, type_))
    if type_ in (pa.string(), pa.large_string(), pa.binary()):
        binary = {pa.large_string(): pa.large_binary()}.get(type_, pa.binary())
        some = st.lists(st.binary(max_size=6) | st.none(), min_size=3, max_size=3)
        return some.map(lambda values: pa.array(values, binary).view(type_))
    width = type_.bit_width // 8
    raw = st.lists(st.binary(min_size=width, max_size=width), min_size=3, max_size=3)
    return raw.map(lambda parts: pa.Array.from_buffers(type_, 3, [None, pa.py_buffer(b"".join(parts))]))


FLAT = [
    pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.string(), pa.large_string(), pa.binary(),
    pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.timestamp("s"), pa.timestamp("ns"),
    pa.timestamp("us", tz="UTC"), pa.duration("s"), pa.duration("ns"), pa.decimal128(38, 3), pa.decimal256(70, 3),
]  # fmt: skip


def nested(array: pa.Array) -> list[pa.Array]:
    """The same values inside of other types."""
    offsets = pa.array([0, 1, 1, 3], pa.int32())
    made = [
        array,
        pa.ListArray.from_arrays(offsets, array),
        pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), array),
        pa.FixedSizeListArray.from_arrays(array, 1),
        pa.StructArray.from_arrays([array, pa.array([1, None, 3])], ["a", "b"]),
        pa.MapArray.from_arrays(offsets, pa.array(["x", "y", "z"]), array),
    ]
    with suppress(pa.ArrowException, ValueError):
        made.append(array.dictionary_encode())
    with suppress(pa.ArrowException, ValueError, AttributeError):
        made.append(
            pa.ListViewArray.from_arrays(pa.array([0, 1, 1], pa.int32()), pa.array([1, 0, 2], pa.int32()), array)
        )
    return made


@QUICK
@given(
    array=st.sampled_from(FLAT).flatmap(scalars).flatmap(lambda array: st.sampled_from(nested(array))),
    column=st.sampled_from(["odd", "id", "start_seconds", "text", "ask", "made"]),
    suffix=st.sampled_from([".jsonl", ".parquet", ".csv"]),
)
def test_any_values_of_arrow(tmp_path: Path, array: pa.Array, column: str, suffix: str) -> None:
    source = tmp_path / "in.parquet"
    try:
        pq.write_table(pa.table({"video": ["a.mp4", "b.mp4", "c.mp4"], column: array}), source)
    except (pa.ArrowException, ValueError, OSError):
        return  # Parquet cannot hold it
    keys = {"caption_key": "captions", "failure_key": "why", "prompt_key": "ask" if column == "ask" else None}
    try:
        summary = caption(source, tmp_path / f"out{suffix}", overwrite=True, **keys)
    except DataError as exc:
        if repr(column) not in str(exc):
            raise
    else:
        adds_up(summary, 3)
        assert summary.rows_out == 3


# errors that nobody expected

STAGES: dict[str, tuple[Any, str]] = {
    "read": (OneVideoRows, "slots"),
    "plan": (Planner, "_plan"),
    "check": (acceptance, "parted"),
    "finish": (Planner, "_finish"),
    "look up": (Run, "answer"),
    "keep": (Run, "keep"),
    "place": (OneVideoRows, "place"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_unexpected_error_of_one_row_is_its_failure_and_in_a_log(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = STAGES[stage]
    before, calls = getattr(owner, name), [0]

    def breaking(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise ZeroDivisionError("nobody knows")
        return before(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaking)
    rows = [{"video": f"{i}.mp4", "id": i} for i in range(4)]
    output = tmp_path / "out.jsonl"
    summary = caption(jsonl(tmp_path / "in.jsonl", rows), output)
    assert summary.failures == {"internal_error": 1}
    assert [row["id"] for row in load(output)] == [0, 1, 2, 3]
    assert [row["captions"] for row in load(output)] == [["words"], None, ["words"], ["words"]]
    assert failures(output)[0]["message"] == "ZeroDivisionError: nobody knows"
    assert summary.errors_path is not None
    log = Path(summary.errors_path).read_text()
    assert log.startswith("row 1: ZeroDivisionError")
    assert "Traceback" in log
    again = caption(jsonl(tmp_path / "in.jsonl", rows), output, update=True)
    assert again.rows_in == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_errors_of_the_machine_and_the_user_still_end_the_run(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*_args: Any, **_named: Any) -> Any:
        raise error

    monkeypatch.setattr(DataJuicerRows, "slots", breaking)
    with pytest.raises(type(error)):
        caption(jsonl(tmp_path / "in.jsonl", [{"text": "", "videos": ["a.mp4"]}]), tmp_path / "out.jsonl")


# journals with bad values

GARBAGE: list[Any] = [5, b"\xff\xfe", "", "{", "[" * 5000, "null", "[]", "{}", '{"u": 1}', '{"c": [], "u": [0, 0]}',
                      '{"f": ["no such kind", "m", 1, 1], "u": [0, 0]}', '{"c": [[5, "stop", 1, null]], "u": [0, 0]}',
                      '{"c": [["x", "stop", "many", null]], "u": ["a", {}]}']  # fmt: skip


def half_done(folder: Path) -> tuple[Path, Path, Rows]:
    """A run of four rows that was ended after two."""
    rows: Rows = [{"video": f"{i}.mp4"} for i in range(4)]
    source, output = jsonl(folder / "in.jsonl", rows), folder / "out.jsonl"

    def words(request: Any, _i: int) -> str:
        if request.id.row == 2:
            raise KeyboardInterrupt
        return "words"

    op = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(words))
    with suppress(KeyboardInterrupt):
        caption_file(op, source, output, part_rows=1)
    return source, output, rows


def spoil(output: Path, sql: str, *values: Any) -> None:
    database = sqlite3.connect(run_folder(output) / DATABASE)
    database.execute("PRAGMA ignore_check_constraints = ON")
    with database:
        database.execute(sql, values)
    database.close()


@pytest.mark.parametrize("place", range(len(GARBAGE)))
@pytest.mark.parametrize("sql", ["UPDATE results SET payload = ?", "UPDATE parts SET counts = ?"])
def test_answers_and_parts_that_are_no_good_are_made_again(tmp_path: Path, sql: str, place: int) -> None:
    source, output, rows = half_done(tmp_path)
    spoil(output, sql, GARBAGE[place])
    if sql.startswith("UPDATE results"):
        spoil(output, "DELETE FROM parts")
    summary = caption(source, output)
    assert (summary.rows_in, summary.captions) == (4, 4)
    assert [row["captions"] for row in load(output)] == [["words"]] * len(rows)


@pytest.mark.parametrize("place", range(len(GARBAGE)))
@pytest.mark.parametrize("fact", ["identity", "command", "finished", "failures"])
def test_facts_that_are_no_good_are_one_line_with_the_way_out(tmp_path: Path, fact: str, place: int) -> None:
    source, output, rows = half_done(tmp_path)
    spoil(output, "INSERT OR REPLACE INTO facts VALUES (?, ?)", fact, GARBAGE[place])
    try:
        caption(source, output)
    except (DataError, SettingsError) as exc:
        if "--overwrite" not in str(exc):
            raise
        caption(source, output, overwrite=True)
    assert len(load(output)) == len(rows)


def test_a_journal_of_random_bytes_is_one_line(tmp_path: Path) -> None:
    source, output, _ = half_done(tmp_path)
    path = run_folder(output) / DATABASE
    data = bytearray(path.read_bytes())
    chance = np.random.default_rng(0)
    for _go in range(20):
        spoiled = bytearray(data)
        for place in chance.integers(0, len(data), 200):
            spoiled[place] = int(chance.integers(0, 256))
        path.write_bytes(spoiled)
        with suppress(DataError, SettingsError):
            caption(source, output)
        output.unlink(missing_ok=True)
        assert not list(tmp_path.glob("*.part"))


def test_types_without_a_place_in_json_are_texts(tmp_path: Path) -> None:
    table = pa.table(
        {
            "video": ["a.mp4"],
            "price": pa.array([decimal.Decimal("1.50")]),
            "span": pa.array([datetime.timedelta(seconds=1.5)]),
            "day": pa.array([datetime.date(2020, 1, 2)]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    caption(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    (row,) = load(tmp_path / "out.jsonl")
    assert (row["price"], row["span"], row["day"]) == ("1.50", 1.5, "2020-01-02")
