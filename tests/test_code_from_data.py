"""Nothing that lies in a data set, or in the folder of a run, is run as code: each place that could is known here."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe import DataError, ScriptedCaptioner, VideoCaptioningFromVLMMapper
from reelscribe.data import open_source
from reelscribe.data.arrow import plain
from reelscribe.runners.ray import answer_files
from reelscribe.runners.ray.forms import ANSWERS, ROW, answers_type
from reelscribe.runners.run.journal import Journal
from reelscribe.runners.run.payload import payload_of, result_of
from reelscribe.runners.run.run import caption_file
from reelscribe.runners.run.run_folder import DATABASE, run_folder
from reelscribe.types import Candidate, CaptionResult, Failure, RequestId, Usage

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "benchmarks", "training")

OURS = "what a process of the same run has just sent, through memory that no data set fills"
ALLOWED = {
    ("src/reelscribe/__init__.py", "import_module"): "one of the package's own modules, from a table",
    ("src/reelscribe/settings.py", "import_module"): "one of the package's own modules, named at an option",
    ("src/reelscribe/demo/run.py", "import_module"): "one of the package's own modules, which names the extra "
    "where a package is missing",
    ("src/reelscribe/models/backends.py", "import_module"): "a module that the table of back ends names: the package's "
    "own, or one of a package that the user has installed and whose back end is asked for",
    (
        "src/reelscribe/models/scripted.py",
        "str.format",
    ): "a test double: its template is the model's name, its values are text",
    ("src/reelscribe/demo/scenes.py", "str.format"): "sentences of the package",
    (
        "src/reelscribe/video/files/https.py",
        "recv",
    ): "bytes of a connection, which are read as HTTP and unpickled by nobody",
    ("src/reelscribe/runners/run/written_rows.py", "str.format"): "questions of the package, with names of its tables",
    ("src/reelscribe/data/webdataset.py", "webdataset's base_plus_ext"): "it splits a name and decodes nothing",
    ("src/reelscribe/data_juicer_pyav.py", "import_module"): "modules of Data-Juicer, from a table",
    ("src/reelscribe/data_juicer_pyav.py", "compile"): "functions of the Data-Juicer that is installed",
    ("src/reelscribe/runners/report/summary.py", "str.format"): "a sentence of the package",
    ("src/reelscribe/models/processor_rule.py", "import pickle"): "a video processor that this run has loaded",
    ("src/reelscribe/models/processor_rule.py", "pickle.loads"): "a video processor that this run has loaded",
    ("src/reelscribe/runners/ray/clip_columns.py", "import pickle"): OURS,
    ("src/reelscribe/runners/ray/clip_columns.py", "pickle.loads"): OURS,
    ("src/reelscribe/runners/ray/forms.py", "import pickle"): OURS,
    ("src/reelscribe/runners/ray/forms.py", "pickle.loads"): OURS,
    ("src/reelscribe/runners/ray/source.py", "import pickle"): OURS,
    ("src/reelscribe/runners/ray/job.py", "import cloudpickle"): "only to see that the operator can be sent",
    (
        "src/reelscribe/video/processes/pool.py",
        "recv",
    ): "the other end of a socket pair is a process that this one has started",
    (
        "src/reelscribe/video/processes/transport.py",
        "recv",
    ): "the other end of a socket pair is a process that this one has started",
    (
        "src/reelscribe/video/processes/child.py",
        "recv",
    ): "the other end of a socket pair is the process that has started this one",
    ("src/reelscribe/video/processes/child.py", "import pickle"): "an exception of its own, to see that it can be sent",
    ("src/reelscribe/video/processes/child.py", "pickle.loads"): "an exception of its own, to see that it can be sent",
    ("src/reelscribe/video/processes/child.py", "import_module"): "the reader that the parent names, never a data set",
    ("benchmarks/data_juicer_peer.py", "exec"): "the source of an installed package, with a fault of it taken out",
    ("benchmarks/data_juicer_peer.py", "compile"): "the same",
    ("benchmarks/data_juicer_peer.py", "str.format"): "a piece of code of its own",
    ("benchmarks/wanted.py", "np.load"): "arrays that the benchmark has written; objects are refused (NumPy's default)",
    ("benchmarks/page.py", "str.format"): "a template of the repository",
    ("benchmarks/engines_page.py", "str.format"): "a template of the repository",
    ("training/export.py", "torch.load"): "weights_only: tensors and plain values, from the training's own folder",
    ("training/train.py", "torch.load"): "weights_only: tensors and plain values, from the training's own folder",
    ("training/dialogues.py", "str.format"): "sentences of the repository",
    ("training/vocabulary.py", "str.format"): "sentences of the repository",
}
"""File and what it does there to the reason why that runs no code of others."""

PICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "jinja2",
}
LOADERS = {*PICKLERS, "torch", "np", "numpy", "yaml", "pd", "pandas"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"recv", "import_module", "read_pickle", "popen", "system", "enable_load_extension", "full_load",
           "unsafe_load", "load_module", "exec_module", "getoutput", "getstatusoutput",
           "create_subprocess_shell"}  # fmt: skip
WEBDATASET = {"tar_file_iterator", "group_by_keys", "TarWriter"}
"""What is used of `webdataset`: its decoders un-pickle members, and its addresses can be commands."""


def dotted(node: ast.expr) -> str:
    """A name such as `torch.load`; what stands before a call or an index is left out."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}".lstrip(".") if isinstance(node, ast.Attribute) else ""


def of_import(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if getattr(node, "level", 0):
        return
    module = getattr(node, "module", None) or ""
    for alias in node.names:
        parts = {*module.split("."), *alias.name.split(".")}
        yield from (f"import {name}" for name in parts & PICKLERS)
        if "webdataset" in (module.split(".")[0], alias.name.split(".")[0]) and alias.name not in WEBDATASET:
            yield f"webdataset's {alias.name}"


def of_call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    method = name.rpartition(".")[2]
    if method in METHODS or (method in BUILTINS and isinstance(node.func, ast.Name)):
        yield method
    if method in ("load", "loads", "Unpickler", "load_all") and name.split(".")[0] in LOADERS:
        yield name
    text = node.func.value if isinstance(node.func, ast.Attribute) else None
    if method in ("format", "format_map") and text is not None and not isinstance(text, ast.Constant):
        yield "str.format"
    for keyword in node.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and not is_false:
            yield f"{keyword.arg}="
        if keyword.arg == "weights_only" and is_false:
            yield "weights_only=False"


def dangers(code: str) -> set[str]:
    """What in this code may run what it reads."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(of_import(node))
        if isinstance(node, ast.Call):
            found.update(of_call(node))
    return found


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_each_place_that_could_run_what_it_reads_is_known_with_a_reason() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what) for path in sources() for what in dangers(path.read_text("utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from cloudpickle import loads", "from ray import cloudpickle", "torch.load(path)",
        "np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.unsafe_load(text)", "eval(text)", "exec(text)",
        "template.format(a=1)", "subprocess.run(text, shell=True)", "os.system(text)", "pd.read_pickle(path)",
        "import webdataset", "from webdataset import WebDataset", "from webdataset.gopen import gopen", "import jinja2",
        "database.enable_load_extension(True)", "connection.recv()", "load(trust_remote_code=True)",
        "torch.load(path, weights_only=False)", "import shelve", "from joblib import load",
        "importlib.import_module(a)",
    ],
)  # fmt: skip
def test_what_could_run_code_is_seen(code: str) -> None:
    assert dangers(code)


def test_what_cannot_is_let_be() -> None:
    assert not dangers("re.compile('a'); json.loads(b); yaml.safe_load(c); '{}'.format(d); f(shell=False); x.load()")


MAKES_VALUES = {
    ("arrow.py", "_rows_of_batch"): "of batches that `plain_rows` has made plain",
    ("arrow.py", "_row_of"): "the same",
    ("arrow.py", "_count"): "numbers of places, which Arrow makes itself",
    ("arrow.py", "scalar_value"): "of scalars from such batches; of an extension's scalar only what it is stored as",
    ("hf_dataset.py", "tables"): "of tables that it has made plain",
    ("hf_dataset.py", "_is_captioned"): "the same",
}
"""Functions in `data` that make Python values of Arrow's, and why no type of another package is among them."""


def test_sources_make_values_of_plain_columns_only() -> None:
    """`plain` is what keeps Ray's types from un-pickling: nothing in `data` goes around it."""
    makes, functions = set(), {}
    for path in sorted((ROOT / "src/reelscribe/data").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            functions[path.name, function.name] = ast.unparse(function)
            if any(dotted(call.func).rpartition(".")[2] in ("to_pylist", "to_pydict", "as_py") for call in calls):
                makes.add((path.name, function.name))
    assert makes == set(MAKES_VALUES)
    assert "map(plain, batches)" in functions["arrow.py", "plain_rows"]
    assert "table = plain(table)" in functions["hf_dataset.py", "tables"]
    callers = {name for name, text in functions.items() if "_rows_of_batch(" in text.partition("\n")[2]}
    assert callers == {("arrow.py", "plain_rows"), ("arrow.py", "_rows_of_batch")}


# attacks


class Evil:
    """Makes a file where it is un-pickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What is there where code of a data set was run."""
    path = tmp_path / "was-run"
    yield path
    assert not path.exists()


def test_the_attack_works_where_it_is_let(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


def hostile_answers(folder: Path, evil: bytes) -> Iterator[Path]:
    """Files of answers that this version does not write; those of the one before it among them."""
    folder.mkdir(parents=True)
    rows = pa.array([0, 1])
    good = {"video": 0, "digest": b"d", "result": payload_of(CaptionResult(RequestId(0, 0), (Candidate("a"),)))}
    bad = [
        {**good, "result": "{"}, {**good, "result": '{"u": [0, 0], "c": [[["a"], "stop", 1, null]]}'},
        {**good, "result": '{"u": 5}'}, {**good, "result": "[" * 100_000}, {**good, "result": None},
        {**good, "digest": None}, {**good, "result": '{"u": [0, 0], "f": ["no_kind", "", 1, 0]}'},
        {**good, "result": '{"u": [0, 0]}'}, {**good, "result": "5"},
    ]  # fmt: skip
    tables = {
        "old": {ROW: rows, "answers": pa.array([evil] * 2, pa.binary())},
        "bytes": {ROW: rows, ANSWERS: pa.array([evil] * 2, pa.binary())},
        "more": {ROW: rows, ANSWERS: pa.array([[good]] * 2, answers_type()), "more": rows},
        "text": {ROW: pa.array(["0", "1"]), ANSWERS: pa.array([[good]] * 2, answers_type())},
        "null": {ROW: pa.array([None, 1], pa.int64()), ANSWERS: pa.array([[good]] * 2, answers_type())},
        **{f"bad{i}": {ROW: rows, ANSWERS: pa.array([[good], [one]], answers_type())} for i, one in enumerate(bad)},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        yield folder / f"{name}.parquet"


def test_answers_of_a_cluster_are_never_un_pickled(tmp_path: Path, mark: Path) -> None:
    evil = pickle.dumps(Evil(mark))
    for path in hostile_answers(tmp_path / "answers", evil):
        with pytest.raises(ValueError):
            [
                result_of(RequestId(row, one["video"]), one["result"])
                for row, answers in answer_files.rows_in(path)
                for one in answers
            ]
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(evil)
    assert list(answer_files.rows_in(torn)) == []
    os.mkfifo(tmp_path / "fifo.parquet")
    assert list(answer_files.rows_in(tmp_path / "fifo.parquet")) == []


def test_a_checkpoint_holds_numbers_of_rows_and_nothing_else(tmp_path: Path, mark: Path) -> None:
    def written(name: str, columns: dict[str, Any]) -> Path:
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    assert answer_files.may_be_rows(written("good.parquet", {ROW: pa.array([1, 2])}))
    evil = pa.array([pickle.dumps(Evil(mark))], pa.large_binary())
    assert not answer_files.may_be_rows(written("bytes.parquet", {ROW: evil}))
    assert not answer_files.may_be_rows(written("more.parquet", {ROW: pa.array([1]), "x": evil}))
    field = pa.field(ROW, pa.int64(), metadata={"ARROW:extension:name": "x", "ARROW:extension:metadata": ""})
    marked = pa.table([pa.array([1])], schema=pa.schema([field]))
    pq.write_table(marked, tmp_path / "typed.parquet")
    assert not answer_files.may_be_rows(tmp_path / "typed.parquet")
    assert not answer_files.may_be_rows(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    assert answer_files.may_be_rows(tmp_path / "torn.parquet")


floats = st.floats(allow_nan=False)
texts = st.text(st.characters(), max_size=20)
candidates = st.builds(
    Candidate, texts, st.sampled_from(["stop", "length"]), st.integers(0, 1 << 40), st.none() | floats
)
failures = st.builds(Failure, st.sampled_from(["timeout", "crashed"]), texts, st.integers(0, 9), floats)
answers = st.tuples(st.lists(candidates, max_size=3), failures)


@given(answers, st.binary(max_size=20), st.integers(0, 1 << 62))
def test_answers_come_back_as_they_were(made: Any, digest: bytes, row: int) -> None:
    found, failure = made
    result = CaptionResult(RequestId(row, 1), tuple(found), failure=None if found else failure, usage=Usage(3, 4))
    column = pa.array([[{"video": 1, "digest": digest, "result": payload_of(result)}]], answers_type())
    buffer = io.BytesIO()
    pq.write_table(pa.table({ROW: [row], ANSWERS: column}), buffer)
    ((one,),) = pq.read_table(pa.BufferReader(buffer.getvalue()))[ANSWERS].to_pylist()
    again = result_of(RequestId(row, one["video"]), one["result"])
    assert (again, one["digest"]) == (result, digest)
    assert again.failure is None or again.failure.seconds == failure.seconds


def test_a_journal_that_others_have_filled_runs_nothing(tmp_path: Path, mark: Path) -> None:
    """Its answers are asked again, or it is one clear line."""
    evil = pickle.dumps(Evil(mark))
    source = tmp_path / "rows.jsonl"
    source.write_text('{"video": "a.mp4"}\n')
    output = tmp_path / "out.jsonl"

    def run(**given: Any) -> int:
        operator = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda request, i: "a text"))
        return caption_file(operator, source, output, **given).failed_rows

    run()
    output.unlink()
    with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database, database:
        database.execute("UPDATE results SET payload = ?", (evil,))
        database.execute("DELETE FROM facts WHERE name = 'finished'")
    assert run() == 0
    assert json.loads(output.read_text())["captions"] == ["a text"]
    for name in ("identity", "failures", "finished"):
        with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database, database:
            kept = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            database.execute("UPDATE facts SET value = ? WHERE name = ?", (evil, name))
        with pytest.raises(DataError, match="damaged"):
            run()
        with closing(sqlite3.connect(run_folder(output) / DATABASE)) as database, database:
            database.execute("UPDATE facts SET value = ? WHERE name = ?", (*kept, name))
    (run_folder(output) / DATABASE).write_bytes(evil)
    with pytest.raises(DataError, match="damaged"), Journal(run_folder(output)):
        pass


def test_members_of_a_shard_are_not_decoded(tmp_path: Path, mark: Path) -> None:
    evil = pickle.dumps(Evil(mark))
    names = ("pyd", "pickle", "pkl", "pth", "npy", "npz", "tb", "cbor", "mp")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(f"a.{name}")
            info.size = len(evil)
            tar.addfile(info, io.BytesIO(evil))
    [row] = open_source(tmp_path / "x.tar")
    assert row == {"__key__": "a", **dict.fromkeys(names, evil)}


class RunsScalar(pa.ExtensionScalar):
    def as_py(self, **_options: Any) -> Any:
        return pickle.loads(self.value.as_py())


class Runs(pa.ExtensionType):
    """A type that un-pickles its values, as Ray's does."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "tests.runs")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Runs:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return RunsScalar


def test_types_of_other_packages_are_what_they_are_stored_as(tmp_path: Path, mark: Path) -> None:
    evil = pickle.dumps(Evil(mark))
    pa.register_extension_type(Runs())
    try:
        array = pa.ExtensionArray.from_storage(Runs(), pa.array([evil], pa.large_binary()))
        inner = pa.StructArray.from_arrays([array], ["x"])
        table = pa.table(
            {
                "video": ["a.mp4"],
                "flat": array,
                "struct": inner,
                "list": pa.ListArray.from_arrays([0, 1], inner),
                "large": pa.LargeListArray.from_arrays([0, 1], array),
                "fixed": pa.FixedSizeListArray.from_arrays(array, 1),
                "map": pa.MapArray.from_arrays([0, 1], pa.array(["k"]), array),
                "uuid": pa.array([bytes(16)], pa.uuid()),
            }
        )
        pq.write_table(table, tmp_path / "x.parquet")
        assert pq.read_schema(tmp_path / "x.parquet").field("flat").type == Runs()
        source = open_source(tmp_path / "x.parquet")
        [row] = source
        assert row["flat"] == row["struct"]["x"] == row["list"][0]["x"] == row["fixed"][0] == row["map"][0][1] == evil
        assert source.schema().field("flat").type == pa.large_binary()
        operator = VideoCaptioningFromVLMMapper(captioner=ScriptedCaptioner(lambda request, i: "a text"))
        caption_file(operator, tmp_path / "x.parquet", tmp_path / "out.parquet")
        assert next(iter(open_source(tmp_path / "out.parquet")))["flat"] == evil
        assert plain(table.select(["video", "uuid"])).schema.field("uuid").type == pa.uuid()
    finally:
        pa.unregister_extension_type("tests.runs")
