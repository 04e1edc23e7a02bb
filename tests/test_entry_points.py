"""Rows that installed packages bring: found by name, loaded when they are named, and refused where they cannot be."""

from __future__ import annotations

import logging
import sys

import pytest

from packages import forget, on_path, write_package
from reelscribe import SettingsError
from reelscribe.entry_points import Table

GROUP = "reelscribe.numbers"


def numbers() -> Table[int]:
    return Table(GROUP, {"two": 2, "one": 1}, what="number", fits=lambda row: isinstance(row, int), rule="an int")


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Installs a package with these numbers; the folder they are in is the fixture's."""

    def install(source, points, *, name="more-numbers"):
        write_package(
            tmp_path / "site", name, modules={f"{name.replace('-', '_')}_module": source}, points={GROUP: points}
        )
        on_path(monkeypatch, tmp_path / "site")

    yield install
    forget()


def test_without_packages_a_table_is_its_own_rows_in_their_order():
    table = numbers()
    assert (list(table), len(table), dict(table)) == (["two", "one"], 2, {"two": 2, "one": 1})
    assert "three" not in table
    with pytest.raises(KeyError):
        table["three"]


def test_a_package_brings_rows(brought):
    brought("three = 3\nfour = 4", {"three": "more_numbers_module:three", "four": "more_numbers_module:four"})
    table = numbers()
    assert list(table) == ["two", "one", "four", "three"]
    assert ("three" in table, table["three"], table["two"]) == (True, 3, 2)


def test_a_package_is_imported_when_its_row_is_named_and_not_before(brought):
    brought("three = 3", {"three": "more_numbers_module:three"})
    table = numbers()
    assert (len(table), "three" in table, table["one"]) == (3, True, 1)
    assert "more_numbers_module" not in sys.modules
    assert (table["three"], "more_numbers_module" in sys.modules) == (3, True)


@pytest.mark.parametrize(
    ("source", "place", "said"),
    [
        (
            "import nowhere_at_all",
            "more_numbers_module:three",
            "cannot be loaded: ModuleNotFoundError: No module named",
        ),
        ("raise RuntimeError('no')", "more_numbers_module:three", "cannot be loaded: RuntimeError: no"),
        ("", "more_numbers_module:three", "cannot be loaded: AttributeError"),
        ("three = '3'", "more_numbers_module:three", "must be an int; it is str"),
    ],
)
def test_a_row_that_is_none_stops_only_who_names_it(brought, source, place, said):
    brought(source, {"three": place})
    table = numbers()
    assert (list(table), table["one"]) == (["two", "one", "three"], 1)
    with pytest.raises(SettingsError, match=rf"the number 'three' of more-numbers \({place}\) .*{said}"):
        table["three"]


def test_a_package_does_not_replace_what_is_built_in(brought, caplog):
    brought("one = 11", {"one": "more_numbers_module:one"})
    table = numbers()
    with caplog.at_level(logging.WARNING):
        assert (list(table), table["one"], list(table)) == (["two", "one"], 1, ["two", "one"])
    assert [line.message for line in caplog.records] == [
        "the number 'one' of more-numbers is not used: one is built in"
    ]


def test_two_packages_with_one_name_are_refused_by_their_names(brought):
    brought("three = 3", {"three": "more_numbers_module:three"})
    brought("three = 33", {"three": "other_numbers_module:three"}, name="other-numbers")
    with pytest.raises(SettingsError, match="more-numbers and other-numbers each bring a number 'three'; uninstall"):
        numbers()["three"]
