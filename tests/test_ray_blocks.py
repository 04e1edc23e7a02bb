"""Rows on their way through the stages of a cluster, without one: what travels, and how often a row is planned."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ray_words
from reelscribe import VideoCaptioningFromVLMMapper
from reelscribe.errors import SettingsError
from reelscribe.models.captioner import ModelSpec
from reelscribe.rows.forms import choose_form
from reelscribe.rows.plan import Planner
from reelscribe.runners.ray import caption, read
from reelscribe.runners.ray.caption import BlockCaptioner
from reelscribe.runners.ray.forms import ANSWERS, PLANS, ROW, SAMPLE, BlockForm, FileForm, SampleForm
from reelscribe.runners.ray.job import Job, Ledger
from reelscribe.runners.ray.read import read_block
from reelscribe.runners.ray.source import row_tables
from reelscribe.runners.run.identity import RunIdentity
from reelscribe.settings import FailureLimit
from rows import jsonl

ROWS = [{"video": name, "text": f"t {i}"} for i, name in enumerate(["a.mp4", "mute.mp4", "b.mp4", None])]
SAMPLES = [{"text": f"<__dj__video> {i}", "videos": [f"{name}.mp4"]} for i, name in enumerate("abc")]


class Here:
    """Ray, as far as stages need it: what is remote is done at once."""

    @staticmethod
    def get(value: Any) -> Any:
        return value


class Handle:
    """A handle of the ledger."""

    def __init__(self) -> None:
        self._ledger = Ledger(FailureLimit())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        class Call:
            @staticmethod
            def remote(*values: Any) -> Any:
                return asyncio.run(method(*values))

        return Call


def operator(**given: Any) -> VideoCaptioningFromVLMMapper:
    return VideoCaptioningFromVLMMapper(captioner=ray_words.captioner(reads=False), **given)


def job(form: BlockForm, op: VideoCaptioningFromVLMMapper, *, checks: tuple[str, ...] | None = None) -> Job:
    names = tuple(op.planner.acceptance.checks) if checks is None else checks
    return Job(f"{id(form)}", op.parameters, form, Handle(), names)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the rows that were planned, in order; stages run in this process."""
    numbers: list[int] = []
    plan = Planner.plan

    def counted(self: Planner, row: Any, number: int) -> Any:
        numbers.append(number)
        return plan(self, row, number)

    monkeypatch.setattr(Planner, "plan", counted)
    for module in (read, caption):
        monkeypatch.setattr(module, "ray_library", lambda: Here)
    return numbers


def through(table: Any, of: Job) -> list[Any]:
    """The tables that come out of both stages, and those between them."""
    captioner = BlockCaptioner.__new__(BlockCaptioner)
    tables = []
    blocks = []
    for block in read_block(table, of):
        blocks.append(block)
        if not tables:
            captioner.__init__(of)  # type: ignore[misc]
        tables.append(captioner(block))
    return [blocks, tables]


def test_rows_of_a_file_are_planned_once_and_leave_as_answers(tmp_path: Path, planned: list[int]) -> None:
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    op = operator(caption_num=2)
    form = FileForm(choose_form(ROWS, op.planner.names), RunIdentity({}, {}), tmp_path)
    of = job(form, op)
    asyncio.run(of.ledger._ledger.tell_policy(None))
    (table,) = row_tables(source, None)
    blocks, made = through(table, of)
    assert planned == [0, 1, 2, 3]
    assert [block.column_names[:2] for block in blocks] == [[ROW, PLANS]], "rows are not sent on with their plans"
    assert SAMPLE not in blocks[0].column_names
    out = pa.concat_tables(made)
    assert out[ROW].to_pylist() == [0, 1, 2, 3]
    answers = out[ANSWERS].to_pylist()
    assert [[(one["video"], one["ask"], one["lack"]) for one in row] for row in answers] == [[(0, "", None)]] * 3 + [[]]
    assert '"f":["empty_caption"' in answers[1][0]["result"]


def test_an_answer_that_lacks_something_says_so(tmp_path: Path, planned: list[int]) -> None:
    """Where all candidates are kept, one without a text is a failure of the row, and is found by its kind."""

    class Half(ray_words.ScriptedCaptioner):
        def __init__(self) -> None:
            super().__init__(lambda request, i: "" if i else "words")

    op = VideoCaptioningFromVLMMapper(captioner=Half(), caption_num=2, keep_candidate_mode="all")
    form = FileForm(choose_form(ROWS, op.planner.names), RunIdentity({}, {}), tmp_path)
    of = job(form, op)
    asyncio.run(of.ledger._ledger.tell_policy(None))
    (table,) = row_tables(jsonl(tmp_path / "in.jsonl", ROWS[:1]), None)
    ((one,),) = through(table, of)[1][0][ANSWERS].to_pylist()
    assert one["lack"] == "empty_caption"
    assert '"c":[["words"' in one["result"]


def test_samples_are_planned_once_and_come_out_as_the_operator_makes_them(planned: list[int]) -> None:
    op = operator(caption_key="said")
    of = job(SampleForm(), op)
    asyncio.run(of.ledger._ledger.tell_policy(None))
    table = pa.Table.from_pylist(SAMPLES)
    _, made = through(table, of)
    assert planned == [0, 1, 2]
    assert pa.concat_tables(made).to_pylist() == op.run(SAMPLES)


def test_blocks_of_samples_do_not_get_each_others_answers(planned: list[int]) -> None:
    op = operator(caption_key="said", keep_original_sample=False)
    of = job(SampleForm(), op)
    asyncio.run(of.ledger._ledger.tell_policy(None))
    captioner = BlockCaptioner(of)
    made = [captioner(*read_block(pa.Table.from_pylist([sample]), of)).to_pylist()[0]["said"] for sample in SAMPLES]
    assert [said[0].split()[0] for said in made] == ["a", "b", "c"]


def test_a_node_with_other_checks_than_the_driver_ends_the_job(planned: list[int]) -> None:
    of = job(SampleForm(), operator(), checks=("not_finite", "empty", "loops"))
    with pytest.raises(SettingsError, match="the driver has the checks not_finite, empty, loops, but a cluster node"):
        BlockCaptioner(of)
    assert asyncio.run(of.ledger._ledger.error())[0] == "SettingsError"


@pytest.mark.parametrize("given", [{"thinking": "on"}, {"fit": True}, {"model_params": {"template": "x"}}])
def test_a_process_that_reads_takes_any_operator_and_loads_no_model(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr("reelscribe.operator.load_captioner", lambda spec: pytest.fail("a model was loaded"))
    op = VideoCaptioningFromVLMMapper(hf_model="no/model", **given)
    assert isinstance(op.spec, ModelSpec)
    reader = read._reader(job(SampleForm(), op))
    assert reader.operator.spec == op.spec
    reader.operator.close()
    read._readers.clear()
