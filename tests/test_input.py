"""The input of a run: how often it is opened, and what is known of it before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.data import input as input_module
from reelscribe.data import open_source
from reelscribe.data.input import Input
from reelscribe.data.jsonl import JsonlSource
from reelscribe.data.parquet import ParquetSource
from reelscribe.rows.data_juicer_rows import DataJuicerRows
from reelscribe.rows.fields import FieldNames
from reelscribe.rows.one_video_rows import OneVideoRows
from reelscribe.runners.bench import bench
from reelscribe.runners.run.run import caption_file
from rows import Rows, jsonl, load

NAMES = FieldNames(prompt_key="ask")


def rows_of(count: int) -> Rows:
    """Rows of which the second tells the form and the third has a prompt."""
    rows: Rows = [{"id": i, "video": None if i == 0 else f"{i}.mp4"} for i in range(count)]
    rows[2]["ask"] = "Who?"
    return rows


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by the source whenever the rows of a file are gone through from the first."""
    seen: list[Any] = []
    for source in (JsonlSource, ParquetSource):
        before = source.__iter__

        def counted(self: Any, before: Any = before) -> Iterator[Any]:
            seen.append(self)
            return before(self)

        monkeypatch.setattr(source, "__iter__", counted)
    return seen


def operator(**given: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda request, i: request.prompt), **given)


@pytest.mark.parametrize("form", ["video", "videos"])
def test_a_run_goes_through_its_input_once(tmp_path: Path, form: str, opened: list[Any]) -> None:
    rows = rows_of(50) if form == "video" else [{"text": "", "videos": [f"{i}.mp4"], "ask": "Who?"} for i in range(50)]
    output = tmp_path / "out.jsonl"
    caption_file(operator(prompt_key="ask"), jsonl(tmp_path / "in.jsonl", rows), output, limit=40)
    assert len(opened) == 1
    assert len(load(output)) == (40 if form == "video" else 80)


def test_facts_are_known_from_the_first_rows(tmp_path: Path, opened: list[Any]) -> None:
    given = Input.open(open_source(jsonl(tmp_path / "in.jsonl", rows_of(9))), NAMES, limit=7)
    assert isinstance(given.form, OneVideoRows)
    assert (given.fields, given.first, given.count, given.total) == (
        ["id", "video", "ask"], {"id": 0, "video": None}, 9, 7
    )  # fmt: skip
    assert [row["id"] for row in given.rows()] == list(range(7))
    assert len(opened) == 1
    assert [row["id"] for row in given.rows(5)] == [5, 6], "later it is opened again"
    assert len(opened) == 2
    given.close()


def test_a_run_that_resumes_starts_at_its_row(tmp_path: Path, opened: list[Any]) -> None:
    given = Input.open(open_source(jsonl(tmp_path / "in.jsonl", rows_of(9))), NAMES)
    assert [row["id"] for row in given.rows(1)] == list(range(1, 9)), "rows that were looked at count"
    assert len(opened) == 1


def test_without_a_prompt_field_the_row_that_tells_the_form_is_the_last_that_is_read(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"videos": ["a.mp4"]}) + "\nno JSON\n")
    given = Input.open(open_source(source), FieldNames())
    assert isinstance(given.form, DataJuicerRows)
    rows = given.rows()
    assert next(rows) == {"videos": ["a.mp4"]}
    with pytest.raises(DataError, match=r"in\.jsonl:2 is not JSON"):
        next(rows)


def test_rows_that_are_too_many_to_keep_are_read_again(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_module, "MAX_HEAD_BYTES", 1000)
    rows: Rows = [{"id": i, "video": None, "text": "x" * 100} for i in range(20)] + [{"id": 20, "video": "a.mp4"}]
    given = Input.open(open_source(jsonl(tmp_path / "in.jsonl", rows)), FieldNames())
    assert [row["id"] for row in given.rows()] == list(range(21))
    assert len(opened) == 2


def test_a_file_that_is_to_be_read_further_is_opened_again(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", rows_of(5))
    source: Any = open_source(path)
    given = Input.open(source, NAMES)
    with path.open("a") as file:
        file.write('{"id": 5, "video": "late.mp4"}\n')
    source.size = path.stat().st_size
    assert [row["id"] for row in given.rows()] == list(range(6))


def test_a_prompt_field_that_no_row_has_is_an_error_after_one_pass(tmp_path: Path, opened: list[Any]) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4", "id": i} for i in range(30)])
    with pytest.raises(SettingsError, match=r"'ask', but no row has that field; the fields are id, video"):
        caption_file(operator(prompt_key="ask"), source, tmp_path / "out.jsonl")
    assert len(opened) == 1


def test_an_empty_input_has_no_first_row(tmp_path: Path) -> None:
    given = Input.open(open_source(jsonl(tmp_path / "in.jsonl", [])), NAMES)
    assert (given.first, given.fields, given.total, list(given.rows())) == (None, [], 0, [])


def test_what_is_open_and_not_read_is_closed(tmp_path: Path) -> None:
    given = Input.open(open_source(jsonl(tmp_path / "in.jsonl", rows_of(5))), NAMES)
    (head,) = given._heads
    given.close()
    assert list(head) == []
    assert len(list(given.rows())) == 5


def test_bench_goes_through_the_input_once_for_its_sample(tmp_path: Path, opened: list[Any]) -> None:
    with pytest.raises(DataError, match="uses no frames"):
        bench(operator(), jsonl(tmp_path / "in.jsonl", rows_of(5)))
    assert len(opened) == 1
