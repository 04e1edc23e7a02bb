"""The table of families, from what the tests find: `python -m families.table` in `tests/`, or `make models`.

It runs the tests of `test_parity.py` that are not slow and, where all pass, writes their verdicts to
`src/reelscribe/models/families.json` and the page `docs/models.md`. What is known of vLLM comes from the file that
`tests/vllm_families.py` writes.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from reelscribe.models.families import COLUMNS, RESULTS, ComparedFamily, Comparison, compared

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "models.md"
COMPARED_WITH = ("transformers", "torch")


class Verdicts:
    """A plug-in of pytest that keeps what tests record."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}
        """Family to what was recorded of it."""
        self.skipped: list[str] = []
        """Tests that did not run."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the properties of one test."""
        properties = dict(report.user_properties)
        if report.skipped:
            self.skipped.append(report.nodeid)
        if report.when == "call" and "family" in properties:
            self.found.setdefault(properties.pop("family"), {}).update(properties)


def results(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What `families.json` holds."""
    from .registry import FAMILIES

    return {
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in COMPARED_WITH},
        "families": [_row(family, found[name]) for name, family in FAMILIES.items()],
    }


def _row(family: Any, found: dict[str, str]) -> dict[str, Any]:
    row = {
        "name": family.name,
        "model": family.model,
        "verdicts": {column: found[column] for column in COLUMNS if column in found},
        "because": found.get("because", ""),
        "packages": list(family.packages),
        "note": family.note,
    }
    return {name: value for name, value in row.items() if value or name == "model"}


def page(comparison: Comparison) -> str:
    """The page `docs/models.md`."""
    versions = " and ".join(f"{name} {number}" for name, number in comparison.versions.items())
    head = ["family", "such as", *COLUMNS, "remarks"]
    rows = [_cells(one) for one in comparison.families]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
    meanings = "\n\n".join(_meanings(column) for column in COLUMNS)
    return _TEXT.format(
        date=comparison.date, versions=versions, table=table, meanings=meanings, summary=_summary(comparison)
    )


def _cells(one: ComparedFamily) -> list[str]:
    remarks = " ".join(one.remarks).replace("|", "\\|")
    model = f"`{one.model}`" if one.model else ""
    return [f"`{one.name}`", model, *(one.verdict(column) for column in COLUMNS), remarks]


def _meanings(column: str) -> str:
    lines = "\n".join(f"- {verdict}: {meaning}." for verdict, meaning in COLUMNS[column].items())
    return f"**{column}**\n\n{lines}"


def _summary(comparison: Comparison) -> str:
    exact = [one for one in comparison.families if one.verdict("captions") == "exact"]
    refused = [one for one in comparison.families if one.verdict("captions") == "refused"]
    alone = [one for one in exact if one.verdict("frames") == "exact"]
    return (
        f"Of {len(comparison.families)} families, {len(exact)} write what transformers writes, and {len(refused)} are "
        f"refused with a reason. Of those that write, {len(alone)} are shown what their own processor chooses alone."
    )


_TEXT = """# Families of models

Written by `make models` from the results of `tests/families/`, on {date} with {versions}. Each family is tried with a
tiny random checkpoint in its true structure: real classes, processor and chat template, small random weights. What is
found holds for the published models of a family as far as their processors are configured as their classes are by
default; how good captions are, it does not say. `reelscribe models` prints the same table, and `reelscribe models NAME`
the row of one model.

{summary}

{table}

## What the columns say

{meanings}
"""


def main() -> int:
    """Run the tests, then write what they found; the exit code of pytest."""
    verdicts = Verdicts()
    code = int(pytest.main([str(HERE / "test_parity.py"), "-q", "-m", "not slow"], plugins=[verdicts]))
    if code != 0 or verdicts.skipped:
        print("nothing is written: tests failed, or were skipped:", *verdicts.skipped, file=sys.stderr)
        return code or 1
    RESULTS.write_text(json.dumps(results(verdicts.found), indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(compared()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
