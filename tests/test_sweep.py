"""A few files of `benchmarks.sweep`: clips are as a plain decode of everything, and the table counts the others."""

from __future__ import annotations

from benchmarks import sweep


def test_odd_files_give_what_a_plain_decode_gives() -> None:
    found, _ = sweep.sweep(files=25, seed=7, only="by h264")
    assert sum(one.made for one in found.values()) >= 20
    assert not [line for one in found.values() for line in one.wrong]


def test_the_table_counts_what_differs() -> None:
    figures = sweep.Figures(made=3, equal=1, wrong=["gap in mkv by vp9: every frame: times do not ascend"])
    figures.refused["unreadable"] += 1
    assert "| gap | 3 | 1 | 0 | 1 `unreadable` | 1 |" in sweep.table({"gap": figures})
