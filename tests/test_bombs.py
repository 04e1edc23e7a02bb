"""Data sets that are small on the disk and large in memory: one clear line, and memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from reelscribe import DataError, ScriptedCaptioner, SettingsError, cli
from reelscribe.data import open_source
from reelscribe.data.base import MAX_ROW_BYTES
from reelscribe.pipeline import weight_of
from reelscribe.recipe import read_recipe
from reelscribe.rows.asks import Ask
from reelscribe.rows.data_juicer_rows import DataJuicerRows
from reelscribe.rows.fields import FieldNames
from reelscribe.rows.one_video_rows import OneVideoRows
from reelscribe.rows.plan import Planner
from reelscribe.runners.settings import read_yaml
from reelscribe.settings import RunSettings
from rows import jsonl, load

MIB = 2**20


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "reelscribe.operator.load_captioner", lambda spec: ScriptedCaptioner(lambda request, i: "words")
    )


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(path: Path, *options: Any) -> str:
    """The one line with which a run over a file ends."""
    result = run("caption", path, "-o", path.parent / "out.jsonl", *options)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert not (path.parent / "out.jsonl").exists()
    return line


def rows_within(path: Path, *, mib: int) -> str:
    """What reading a data set in a process of its own ends with, and that it took no more than so much memory."""
    script = (
        "import resource, sys\n"
        "from reelscribe import DataError\n"
        "from reelscribe.data import open_source\n"
        "import pyarrow, webdataset, numpy\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    print(sum(1 for _ in open_source(sys.argv[1])), 'rows')\n"
        "except DataError as exc:\n"
        "    print(exc)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    told, took = done.stdout.strip().rsplit("\n", 1)
    assert int(took) < mib, f"{took} MiB"
    return told


# lines


def test_a_compressed_line_is_not_held_before_it_is_known_to_be_short(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"video": "a.mp4"}\n{"video": "')
        for _ in range(700):
            file.write(b"a" * MIB)
        file.write(b'"}\n')
    told = rows_within(path, mib=650)
    assert f"{path}:2 is a longer line" in told
    assert "--max-row-bytes" in told


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".tsv"])
def test_a_row_over_the_limit_is_one_line_and_a_larger_limit_takes_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    if suffix in (".csv", ".tsv"):
        path.write_text('video\na.mp4\n"' + ("b\n" * 3000) + '"\nc.mp4\n')
    else:
        text = "".join(json.dumps({"video": name}) + "\n" for name in ("a.mp4", "b" * 6000, "c.mp4")).encode()
        with pa.output_stream(str(path), compression="detect") as file:
            file.write(text)
    line = refused(path, "--max-row-bytes", 5000)
    assert "--max-row-bytes" in line
    assert str(path) in line
    output = tmp_path / "all.jsonl"
    assert run("caption", path, "-o", output, "--max-row-bytes", 7000).exit_code == 0
    assert len(load(output)) == 3
    assert run("caption", path, "-o", output, "--max-row-bytes", 70000).exit_code == 0, "it is no other run"


def test_values_that_are_many_times_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"video": "a.mp4", "x": [' + "[]," * 1_000_000 + "0]}\n")
    assert "holds more values" in refused(path, "--max-row-bytes", 4 * MIB)
    assert len(list(open_source(path))) == 1


def test_a_line_without_end_in_a_file_with_holes(tmp_path: Path) -> None:
    for name in ("in.jsonl", "in.csv"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
        assert "--max-row-bytes" in refused(tmp_path / name, "--max-row-bytes", MIB)


def test_tens_of_thousands_of_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(40_000)]
    path = tmp_path / "in.csv"
    path.write_text(",".join([*names, "video"]) + "\n" + "," * 40_000 + "a.mp4\n")
    output = tmp_path / "out.jsonl"
    assert run("caption", path, "-o", output).exit_code == 0
    assert load(output)[0]["video"] == "a.mp4"
    path.write_text(",".join([*names, "c7"]) + "\n")
    with pytest.raises(DataError, match="'c7' more than once"):
        list(open_source(path))


@pytest.mark.parametrize("given", ["0", "-1", "x", "1.5"])
def test_a_limit_that_is_none_is_a_usage_error(tmp_path: Path, given: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    assert run("caption", source, "-o", tmp_path / "out.jsonl", "--max-row-bytes", given).exit_code == 2


# tar shards


def shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    for kind in ("gnu", "posix"):
        path = tmp_path / f"{kind}.tar"
        sparse = tmp_path / "a.mp4"
        with sparse.open("wb") as file:
            file.truncate(2**33)
        done = subprocess.run(
            ["tar", f"--format={kind}", "--sparse", "-cf", path, "-C", tmp_path, "a.mp4"], check=False
        )
        if done.returncode:
            pytest.skip("tar packs no sparse files here")
        assert path.stat().st_size < 100_000
        assert "sparse" in refused(path)


def test_members_and_samples_over_the_limit_are_refused(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"a.{suffix}"), b"x" * 3000) for suffix in ("mp4", "one", "two")]
    path = shard(tmp_path / "in.tar", *members)
    assert "the sample 'a' is larger" in refused(path, "--max-row-bytes", 8000)
    assert len(list(open_source(path, max_row_bytes=9000))) == 1


def test_a_member_that_is_a_hole_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    member = tarfile.TarInfo("a.mp4")
    member.size = 2**33
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 2048)
    assert "is larger" in rows_within(path, mib=100)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_absurd_size_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "in.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 2**33
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 2048)
    assert "header of" in rows_within(path, mib=100)


# Parquet


def test_a_text_that_many_rows_share_is_not_there_for_all_of_them_at_once(tmp_path: Path) -> None:
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["y" * (5 * MIB)]))
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"video": ["a.mp4"] * 300, "shared": shared}), path)
    assert path.stat().st_size < 4 * MIB
    assert rows_within(path, mib=1000) == "300 rows"


def test_rows_of_absurd_size_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    many = pa.ListArray.from_arrays([0, 30_000_000], pa.nulls(30_000_000, pa.int8()))
    pq.write_table(pa.table({"video": ["a.mp4"], "many": many}), path)
    assert path.stat().st_size < 10_000
    assert "row group 0" in rows_within(path, mib=100)
    pq.write_table(pa.table({"video": ["a.mp4", "b.mp4"], "long": ["y" * 9000, "z"]}), path)
    assert "row group 0" in refused(path, "--max-row-bytes", 4000)
    assert "row 0 of" in refused(path, "--max-row-bytes", 6000)
    assert len(list(open_source(path, max_row_bytes=20_000))) == 2


def test_wide_tables_come_in_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"video": ["a.mp4"] * 1000, **{f"c{i}": range(1000) for i in range(3000)}}), path)
    source = open_source(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert next(iter(source))["c2999"] == 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 300


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["video", "video"]), path)
    assert "'video' more than once" in refused(path)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"video": [f"{i}.mp4" for i in range(1000)]}), path)
    data = path.read_bytes()
    for place in range(4, len(data) - 8, 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            rows = list(open_source(path))
        except DataError as exc:
            if str(path) not in str(exc):
                raise
        else:
            assert rows


# other data sets


def test_junk_in_lance(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    for part, junk in (("data", b"junk" * 100), ("data", b""), ("_versions", b"junk" * 100), ("_versions", b"")):
        folder = tmp_path / f"{part}{len(junk)}.lance"
        lance.write_dataset(pa.table({"video": ["a.mp4"] * 5}), str(folder))
        for path in (folder / part).iterdir():
            path.write_bytes(junk)
        assert str(folder) in refused(folder)


def test_junk_in_a_saved_data_set(tmp_path: Path) -> None:
    from datasets import Dataset

    junk = {"*.arrow": b"junk" * 100, "state.json": b"[" * 5000, "dataset_info.json": b"[]"}
    for pattern, data in junk.items():
        folder = tmp_path / f"{len(data)}"
        Dataset.from_list([{"video": "a.mp4"}]).save_to_disk(str(folder))
        for path in folder.glob(pattern):
            path.write_bytes(data)
        assert str(folder) in refused(folder)


# recipes

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "process: *i\n",
        "a: &a {x: 1}\nb: &b [*a, *a]\nprocess: &p [*p]\n",
        "process: " + "[" * 3000 + "]" * 3000 + "\n",
        "process: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
        "".join("  " * i + "a:\n" for i in range(3000)),
        "process: [2020-13-77]\n",
        "x: " + "y" * 2**21 + "\n",
        "process: !!python/object/apply:os.system [true]\n",
        "[" * 300 + "]" * 300,
    ],
)
def test_a_recipe_that_is_a_bomb_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises((DataError, SettingsError)) as caught:
        read_recipe(path)
    assert len(str(caught.value)) < 2000
    assert run("process", "--config", path).exit_code == 1


def test_options_that_are_bombs_are_usage_errors(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    for value in ("[" * 3000, "2020-13-77", "&a [*a]"):
        result = run("caption", source, "-o", tmp_path / "out.jsonl", "--model-param", f"x={value}")
        assert result.exit_code == 2, result.output
        assert len(result.stderr) < 3000
    assert read_yaml("&a [1, *b]".replace("*b", "2")) == [1, 2]
    assert read_yaml("x: &x {a: 1}\ny: *x") == {"x": {"a": 1}, "y": {"a": 1}}


def test_the_default_limit_is_what_the_readme_says() -> None:
    assert MAX_ROW_BYTES == 256 * MIB


def test_rows_wait_by_all_that_they_hold(tmp_path: Path) -> None:
    """Fields that nobody asks about take memory too while their row waits."""
    row = {"video": "a.mp4", "long": "x" * 10_000, "inside": [{"deep": "y" * 10_000}]}
    assert weight_of(row) > 20_000
    names = FieldNames()
    for form in (OneVideoRows(names, "video"), DataJuicerRows(names, "videos")):
        assert weight_of(Planner(form=form, asks=(Ask(),), seed=0).plan(row, 0).sample) == weight_of(row)
    assert weight_of(dict.fromkeys(map(str, range(1000)))) >= 100_000


@pytest.mark.parametrize("given", [0, -1, 2.5, "1"])
def test_a_limit_that_is_none_is_an_error_in_python(given: Any) -> None:
    with pytest.raises(SettingsError, match="max_row_bytes"):
        RunSettings(max_row_bytes=given)


def test_the_limit_of_a_run_holds_when_it_is_tried_again(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4", "start_seconds": -1}, {"video": "b" * 3000}])
    output = tmp_path / "out.jsonl"
    assert run("caption", source, "-o", output, "--max-row-bytes", 4000).exit_code == 3
    assert run("retry", output).exit_code == 3
