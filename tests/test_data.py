"""Formats: what goes in comes out, whole files or none, and errors that name the place."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reelscribe.data import SINKS, SOURCES, open_sink, open_source
from reelscribe.data import parquet as parquet_module
from reelscribe.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": 0, "text": "ein Bär läuft 熊 🐻\u2028\x00", "videos": ["a.mp4"], "meta": {"a": 1, "b": [1.5, None]}},
    {"id": 1, "text": None, "videos": [], "meta": {"a": None, "b": []}},
    {"id": 2, "text": "", "videos": None, "meta": None},
]


def write(path: Path, rows: Iterable[dict[str, Any]], **options: Any) -> Path:
    with open_sink(path, **options) as sink:
        for row in rows:
            sink.write(row)
        sink.commit()
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return list(open_source(path))


def cell(value: Any) -> str | None:
    """What a table of texts gives back for a value."""
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def as_read(rows: list[dict[str, Any]], suffix: str) -> list[dict[str, Any]]:
    """The rows as a format gives them back."""
    if suffix in (".csv", ".tsv"):
        return [{name: cell(value) or None for name, value in row.items()} for row in rows]
    if suffix == ".tar":
        return [{"__key__": f"{i:06}", **row} for i, row in enumerate(rows)]
    return rows


@pytest.mark.parametrize("suffix", SINKS)
def test_every_sink_gives_back_unicode_nulls_and_nested_values(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"new folder/rows{suffix}", ROWS)
    source = open_source(path)
    assert list(source) == as_read(ROWS, suffix)
    assert list(source) == as_read(ROWS, suffix), "a source can be iterated again"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left behind"


@pytest.mark.parametrize("suffix", SINKS)
def test_the_same_rows_are_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = (write(tmp_path / f"{name}{suffix}", ROWS) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", SINKS)
def test_without_commit_nothing_is_left_and_an_old_file_stays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("old")
    with open_sink(path) as sink:
        sink.write(ROWS[0])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SINKS)
def test_no_rows_make_an_empty_file_that_can_be_read(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"rows{suffix}", [])) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_place_that_cannot_be_written_to_is_an_error_at_once(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"), open_sink(tmp_path / f"file/rows{suffix}"):
        pass
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(DataError, match="it is a folder"), open_sink(tmp_path / f"folder{suffix}"):
        pass


def test_a_disk_that_is_full_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    from reelscribe.data.base import writing

    with pytest.raises(DataError, match="No space left"), writing(full), full.open("w") as file:
        file.write("x")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    real = tmp_path / "real.jsonl"
    real.write_text("")
    (tmp_path / "link.jsonl").symlink_to(real)
    write(tmp_path / "link.jsonl", ROWS)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert read(real) == ROWS


# choosing by name


def test_unknown_suffixes_list_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(DataError, match=r"rows\.xlsx.*\.jsonl.*\.parquet"):
        open_source(tmp_path / "rows.xlsx")
    with pytest.raises(DataError, match=r"output.*\.jsonl\.gz.*\.parquet"):
        open_sink(tmp_path / "rows")


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "ROWS.JSONL").write_text('{"a": 1}\n')
    assert read(tmp_path / "ROWS.JSONL") == [{"a": 1}]


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder matches"):
        open_source(tmp_path / "nothing.jsonl")


def test_relative_videos_belong_to_the_folder_of_the_data(tmp_path: Path) -> None:
    for suffix in SINKS:
        assert open_source(write(tmp_path / f"rows{suffix}", ROWS)).folder == tmp_path


def test_every_source_names_its_files(tmp_path: Path) -> None:
    for suffix in SOURCES:
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(b"")
        assert [p.resolve() for p in SOURCES[suffix](path).files()] == [path.resolve()]


# JSON lines


def test_blank_lines_byte_order_marks_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "\xe2\x80\xa8"}')
    assert read(path) == [{"a": 1}, {"a": "\u2028"}]
    assert open_source(path).count() == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"a": 1', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[1, 2]", "holds an array; `jq"),
        (b"7", "holds a number"),
        (b"null", "holds null"),
        (b"[" * 200_000, "is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n\n' + line + b"\n")
    rows = iter(open_source(path))
    assert next(rows) == {"a": 0}
    with pytest.raises(DataError, match=rf"rows\.jsonl:3 .*{what}"):
        next(rows)


def test_json_that_is_not_one_object_a_line_says_how_to_make_it_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"a": 1}\n]\n')
    with pytest.raises(DataError, match=r"rows\.json:1 .*jq"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_torn_compressed_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", [{"a": str(i) * 50} for i in range(5000)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read"):
        read(path)
    path.write_bytes(b"no such format")
    with pytest.raises(DataError, match="cannot read"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_files_put_together_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    path.write_bytes(path.read_bytes() * 2)
    assert read(path) == ROWS * 2


def test_compressed_files_are_what_other_tools_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", [{"a": 1}])
    assert gzip.decompress(path.read_bytes()) == b'{"a": 1}\n'


def test_json_lines_are_valid_whatever_the_values(tmp_path: Path) -> None:
    rows = [{"a": "\ud800 ok \udfff", "\ud801": [math.nan, math.inf, (1, 2)], "n": 10**30, "f": 0.1}]
    text = write(tmp_path / "rows.jsonl", rows).read_bytes().decode("utf-8")
    assert "NaN" not in text
    assert json.loads(text) == {"a": "\ud800 ok \udfff", "\ud801": [None, None, [1, 2]], "n": 10**30, "f": 0.1}


def test_dates_and_decimals_of_other_formats_become_strings(tmp_path: Path) -> None:
    row = {
        "day": datetime.date(2024, 2, 29),
        "moment": datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.UTC),
        "span": datetime.timedelta(seconds=1.5),
        "price": decimal.Decimal("1.10"),
    }
    assert read(write(tmp_path / "rows.jsonl", [row])) == [
        {"day": "2024-02-29", "moment": "2024-02-29T01:02:03+00:00", "span": 1.5, "price": "1.10"}
    ]


def test_bytes_do_not_fit_json_and_the_error_says_where_and_what_to_do(tmp_path: Path) -> None:
    with open_sink(tmp_path / "rows.jsonl") as sink:
        sink.write({"a": 1})
        with pytest.raises(DataError, match=r"row 1 .*field 'clip': JSON cannot hold bytes; write to a \.parquet"):
            sink.write({"a": 1, "clip": {"bytes": b"\x00"}})
        with pytest.raises(DataError, match="type object"):
            sink.write({"a": object()})


# Parquet


def test_parquet_keeps_the_types_and_the_metadata_of_its_source(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.int16(), nullable=False),
            pa.field("when", pa.timestamp("ns", tz="UTC")),
            pa.field("videos", pa.large_list(pa.struct({"path": pa.string(), "bytes": pa.binary()}))),
            pa.field("tags", pa.map_(pa.string(), pa.int32())),
            pa.field("price", pa.decimal128(10, 2)),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("nothing", pa.null()),
        ],
        metadata={"huggingface": "{}"},
    )
    now = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    rows = [
        {"id": 1, "when": now, "videos": [{"path": "a.mp4", "bytes": b"\x00\xff"}], "tags": [("k", 1)],
         "price": decimal.Decimal("1.10"), "kind": "x", "nothing": None},
        {"id": 2, "when": None, "videos": None, "tags": [], "price": None, "kind": None, "nothing": None},
    ]  # fmt: skip
    first = tmp_path / "first.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), first)
    source = open_source(first)
    second = write(tmp_path / "second.parquet", source, schema=source.schema(), new_fields={"text": "text"})
    expected = source.schema().append(pa.field("text", pa.string()))
    assert pq.read_schema(second).equals(expected, check_metadata=True)
    assert [dict(row) for row in open_source(second)] == [{**row, "text": None} for row in rows]


def test_parquet_widens_when_later_rows_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "GROUP_ROWS", 2)
    rows: list[dict[str, Any]] = [
        {"a": None, "n": 1, "s": {"x": 1}, "l": []},
        {"a": None, "n": 2, "s": None, "l": [None]},
        {"a": {"deep": ["text"]}, "n": 2.5, "s": {"x": 1, "y": "new"}, "l": [{"z": True}]},
        {"a": None, "n": 3, "s": {}, "l": None, "late": "field"},
        {"a": {"deep": None, "more": 1}, "n": None, "s": None, "l": []},
    ]
    path = write(tmp_path / "rows.parquet", rows)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert read(path) == [
        {"a": None, "n": 1, "s": {"x": 1, "y": None}, "l": [], "late": None},
        {"a": None, "n": 2, "s": None, "l": [None], "late": None},
        {"a": {"deep": ["text"], "more": None}, "n": 2.5, "s": {"x": 1, "y": "new"}, "l": [{"z": True}], "late": None},
        {"a": None, "n": 3, "s": {"x": None, "y": None}, "l": None, "late": "field"},
        {"a": {"deep": None, "more": 1}, "n": None, "s": None, "l": [], "late": None},
    ]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("group_rows", [1, 100])
def test_parquet_names_the_field_whose_values_have_no_common_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(parquet_module, "GROUP_ROWS", group_rows)
    with pytest.raises(DataError, match=r"field 'a' of rows \d to \d to .*rows\.parquet"):
        write(tmp_path / "rows.parquet", [{"a": 1}, {"a": "text"}])
    for values in ([2**70], [0.5, True], [{"x": 1}, {"x": "text"}], [[1], ["text"]], [{"x": 1}, 1], [1, {"x": 1}]):
        with pytest.raises(DataError, match="field 'n'"):
            write(tmp_path / "rows.parquet", [{"n": value} for value in values])
    assert not list(tmp_path.iterdir())


def test_parquet_does_not_turn_texts_into_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="texts and bytes"):
        write(tmp_path / "rows.parquet", [{"n": "text"}, {"n": b"bytes"}])


def test_parquet_takes_what_json_can_hold_and_it_cannot(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [{"a": "lone \ud800", "m": {}, "l": [{}], "x": math.nan}])
    [row] = read(path)
    assert row["a"] == "lone \\ud800"
    assert row["m"] is None
    assert row["l"] == [None]
    assert math.isnan(row["x"])


def test_parquet_row_groups_are_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "GROUP_BYTES", 1000)
    path = write(tmp_path / "rows.parquet", [{"video": {"bytes": bytes(400)}} for _ in range(9)])
    assert pq.ParquetFile(path).num_row_groups == 3


def test_parquet_fields_known_before_any_row_keep_their_types(tmp_path: Path) -> None:
    new = {"captions": "captions", "failure": "failure", "text": "text"}
    for rows in ([], [{"video": "a", "captions": None, "failure": None}]):
        schema = pq.read_schema(write(tmp_path / "rows.parquet", rows, new_fields=new))
        assert schema.field("captions").type == pa.list_(pa.string())
        assert schema.field("text").type == pa.string()
        assert [f.name for f in schema.field("failure").type] == ["kind", "message", "video_index"]
    assert schema.names == ["video", "captions", "failure", "text"]


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "b.parquet", [{"id": 2, "extra": "x"}])
    write(folder / "a/part.parquet", [{"id": 1}])
    write(folder / ".hidden.parquet", [{"id": 0}])
    source = open_source(folder)
    assert list(source) == [{"id": 1, "extra": None}, {"id": 2, "extra": "x"}]
    assert (source.count(), source.fields(), source.folder) == (2, ["id", "extra"], folder)
    write(folder / "c.parquet", [{"id": "text"}])
    with pytest.raises(DataError, match="have incompatible schemas"):
        open_source(folder).schema()


def test_a_parquet_file_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": list(range(5000)), "b": ["x" * 100] * 5000}), path)
    monkeypatch.setattr(parquet_module, "READ_BYTES", 1)
    with parquet_module._open(path) as file:
        assert parquet_module._batch_rows(file.metadata) == 1
    monkeypatch.undo()
    assert [row["a"] for row in open_source(path)] == list(range(5000))


def test_what_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"cannot read .*rows\.parquet"):
        read(tmp_path / "rows.parquet")


# CSV


def test_csv_values_are_strings_and_may_hold_anything_quoted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffvideo,text\r\na.mp4,"eins, ""zwei""\nund drei 熊"\r\n\r\nb.mp4,\r\n'.encode())
    source = open_source(path)
    assert list(source) == [{"video": "a.mp4", "text": 'eins, "zwei"\nund drei 熊'}, {"video": "b.mp4", "text": None}]
    assert source.fields() == ["video", "text"]


def test_csv_holds_long_values_and_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("video\ttext\na, b.mp4\t" + "x" * 500_000 + "\n")
    [row] = read(path)
    assert (row["video"], len(row["text"])) == ("a, b.mp4", 500_000)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a,b\n1\n", "rows.csv:2 has 1 values; the header names 2 fields"),
        (b"a,b\n1,2,3\n", "rows.csv:2 has 3 values"),
        (b"a,a\n1,2\n", "names the field 'a' more than once"),
        (b'a\n"open\n', "cannot be read as CSV"),
        (b"a\n\xff\n", "cannot be read as CSV"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=what):
        read(tmp_path / "rows.csv")


# folders of videos


def test_a_folder_of_videos_is_walked_and_sorted(tmp_path: Path) -> None:
    names = ["b/2.MP4", "b/1.webm", "a.mov", "b.mkv", "c d/é.gif", ".hidden/x.mp4", "b/._1.mp4", "notes.txt", "b/x.jpg"]
    for name in names:
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(b"")
    (tmp_path / "clips" / "folder.mp4").mkdir()
    source = open_source(tmp_path / "clips")
    found = [Path(row["video"]) for row in source]
    assert all(path.is_absolute() for path in found)
    relative = [path.relative_to(tmp_path.resolve() / "clips").as_posix() for path in found]
    assert relative == ["a.mov", "b/1.webm", "b/2.MP4", "b.mkv", "c d/é.gif"]
    assert (source.count(), source.fields()) == (5, ["video"])


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.mp4").write_bytes(b"")
    (tmp_path / "clips/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "clips/loop").symlink_to(tmp_path / "clips")
    (tmp_path / "clips/dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    names = [Path(row["video"]).name for row in open_source(tmp_path / "clips")]
    assert names == ["dangling.mp4", "x.mp4"]


def test_a_single_video_is_a_data_set_of_one(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"")
    assert read(tmp_path / "x.mp4") == [{"video": str(tmp_path.resolve() / "x.mp4")}]


def test_a_folder_with_nothing_or_with_both_kinds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no videos, .*\.mp4"):
        open_source(tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"")
    write(tmp_path / "x.parquet", [{"video": "x.mp4"}])
    with pytest.raises(DataError, match="Parquet files and videos"):
        open_source(tmp_path)
