"""Formats that packages bring, next to those that are built in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packages import forget, on_path, write_package
from reelscribe import DataError, ScriptedCaptioner, SettingsError, VideoCaptioningFromVLMMapper
from reelscribe.data import BY_NAME, BY_SUFFIX, FORMATS, Target, open_source
from reelscribe.runners.run.run import caption_file
from rows import jsonl, load

BROUGHT = """
from reelscribe.data.base import Format
from reelscribe.data.jsonl import JsonlSink, JsonlSource
from reelscribe.data.temporary import TemporaryFolder

OTHER = Format(name="other", suffixes=(".other", ".jsonl"), source=lambda path: 1 / 0, written=(".other",),
               sink=JsonlSink)

def join(parts, output, layout):
    folder = TemporaryFolder(output)
    folder.create()
    (folder.path / "rows.txt").write_bytes(b"".join(part.read_bytes() for part in parts))
    folder.commit()

NAMED = Format(name="heap", is_named=True, join=join, is_own_folder=lambda folder: (folder / "rows.txt").is_file())
"""
POINTS = {
    "other": "brought_formats:OTHER",
    "heap": "brought_formats:NAMED",
    "gone": "brought_formats:GONE",
    "jsonl": "brought_formats:OTHER",
}


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with two formats, one that cannot be loaded, and one whose name is taken."""
    points = {"reelscribe.formats": POINTS}
    on_path(monkeypatch, write_package(tmp_path / "site", "heaps", modules={"brought_formats": BROUGHT}, points=points))
    yield
    forget()


def test_a_format_of_a_package_takes_nothing_away(brought: None, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    assert list(open_source(source)) == [{"video": "a.mp4"}], "that of this package"
    assert "brought_formats" not in sys.modules, "and nothing else is imported for it"
    assert Target.of(tmp_path / "out.other").format.name == "other"
    assert BY_SUFFIX[".jsonl"] is FORMATS["jsonl"] is FORMATS.built_in["jsonl"]
    assert list(BY_NAME) == ["webdataset", "videofolder", "datasets", "heap"]
    with pytest.raises(SettingsError, match="the format 'gone' of heaps .* cannot be loaded: AttributeError"):
        FORMATS["gone"]


def test_what_cannot_be_loaded_is_logged_where_a_suffix_is_unknown(
    brought: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match=r"cannot tell the format of output .*; expected one of \.jsonl, .*, \.other$"):
        Target.of(tmp_path / "out.unheard")
    assert [line.message.split(" cannot")[0] for line in caplog.records] == [
        "the format 'jsonl' of heaps is not used: one is built in",
        "the format 'gone' of heaps (brought_formats:GONE)",
    ]


def test_a_format_of_a_package_is_named(brought: None, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": f"{i}.mp4"} for i in range(5)])
    operator = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda request, i: "said"))
    caption_file(operator, source, tmp_path / "heap", format="heap", part_rows=2)
    rows = load(tmp_path / "heap/rows.txt")
    assert rows == [{"video": f"{i}.mp4", "captions": ["said"]} for i in range(5)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="contains other files than heap data"):
        caption_file(operator, source, tmp_path / "mine", format="heap")
    with pytest.raises(SettingsError, match="heap cannot hold videos from other files"):
        caption_file(operator, source, tmp_path / "heap2", format="heap", with_videos=True)
