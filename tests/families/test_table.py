"""The table of families says what the rows say, on the page and in the terminal."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from reelscribe.cli import main
from reelscribe.models.families import COLUMNS, compared

from .registry import FAMILIES, Family
from .table import PAGE, page

HELP = "`make models` writes it"


def test_the_page_is_made_of_the_results():
    assert PAGE.read_text("utf-8") == page(compared()), HELP


def test_the_results_have_a_row_for_every_family():
    assert [one.name for one in compared().families] == list(FAMILIES), HELP


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_results_say_what_the_rows_say(family: Family):
    (one,) = [one for one in compared().families if one.name == family.name]
    wanted = {"captions": family.captions}
    if family.captions == "exact":
        wanted |= {"frames": family.frames, "batches": family.batches, "candidates": family.candidates}
    found = {column: verdict for column, verdict in one.verdicts.items() if column != "vllm"}
    assert found == wanted, HELP
    assert family.because in one.because
    assert (one.model, one.packages, one.note) == (family.model, family.packages, family.note), HELP
    assert all(verdict in COLUMNS[column] for column, verdict in one.verdicts.items())


def test_the_command_prints_every_family_with_its_reason():
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for one in compared().families:
        (line,) = [line for line in lines if line.startswith(f"{one.name} ")]
        assert line.endswith(one.model)
        assert all(f"    {remark}" in lines for remark in one.remarks)


def test_the_command_says_what_would_be_done_with_one_model():
    result = CliRunner().invoke(main, ["models", "reelscribe/shapes"])
    assert result.exit_code == 0
    assert result.stdout.startswith("reelscribe/shapes is of the family qwen3_vl")
    assert "frames exact: " in result.stdout


def test_a_folder_that_holds_no_model_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["models", str(tmp_path)])
    assert result.exit_code != 0
    assert result.stderr.count("\n") == 1
    assert "has no config.json" in result.stderr
