"""Ways to make the command read, write, remove or run what it must not, leak, hang, or end without a clear line.

An entry of `ATTACKS` is a name, how the input is made, and what must come of it; `test_attacks.py` runs each through
the command and checks what holds for all of them: files of the user's stay as they are, no secret is printed, nothing
waits, and the end is an exit code with a line, never a traceback. To add one, write a function that fills `Ground.data`
and gives the arguments, and an entry in `ATTACKS`.

Heavy ones are elsewhere: memory in `test_bombs.py`, code in `test_code_from_data.py`, videos in `test_zoo.py`,
addresses in `test_https.py`, answers of servers in `test_server.py`.
"""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reelscribe.runners.run.run_folder import DATABASE, PARTS, run_folder

SECRET = "k3y-of-the-user"
"""In the environment, in a file of the user's, and in addresses of rows that are to be redacted."""
SERVER = "http://127.0.0.1:9/v1"
"""Where nobody listens."""
WORDS = "words of the model"
"""What the captioner of the tests answers."""


@dataclass(frozen=True)
class Ground:
    """Where an attack takes place."""

    home: Path
    """The user's: nothing in it may change, but for what the command names."""
    data: Path
    """The data set, which somebody else has made; outputs go here too, unless an attack needs another place."""
    run: Callable[..., Any]
    """Runs the command before the attack, for what needs a finished run; its arguments as for the attack."""

    @property
    def secret(self) -> Path:
        """A file of the user's."""
        return self.home / "secret.mp4"

    def out(self, name: str = "out.jsonl") -> Path:
        """An output in the data set's folder."""
        return self.data / name


Command = Sequence[Any]


@dataclass(frozen=True)
class Attack:
    """One way in, and what must come of it."""

    name: str
    """What is tried."""
    make: Callable[[Ground], Command]
    """Makes the input, and gives the arguments of the command."""
    code: int
    """The exit code: 0 all captions, 3 some rows failed, 1 and 2 refused."""
    said: str = ""
    """A pattern in what is printed."""
    rows: int | None = None
    """Rows that `out.jsonl`, `out.tar` or `out.parquet` must have; None: it must not exist."""
    check: Callable[[Ground], None] | None = None
    """What else must hold."""
    reads: bool = False
    """Whether videos are read, as for a model that sees them."""


# helpers


def lines(ground: Ground, *rows: Any, name: str = "in.jsonl") -> Path:
    """A file of JSON lines; a text is a line as it is."""
    path = ground.data / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def caption(ground: Ground, source: Any, *options: Any, output: str = "out.jsonl") -> Command:
    """The command that captions a source."""
    return ["caption", source, "-o", ground.out(output), *options]


def of_rows(*rows: Any, options: Command = (), output: str = "out.jsonl") -> Callable[[Ground], Command]:
    """A file with these rows, beside a good one."""
    return lambda ground: caption(ground, lines(ground, {"video": "good.mp4"}, *rows), *options, output=output)


def clips(ground: Ground, *names: str) -> Path:
    """A folder of files with these names."""
    for name in names or ("a.mp4",):
        (ground.data / name).parent.mkdir(parents=True, exist_ok=True)
        (ground.data / name).write_bytes(b"x")
    return ground.data


def videofolder(ground: Ground, *options: Any) -> Command:
    """The command that writes captions beside the clips of the data set."""
    return ["caption", ground.data, "-o", ground.data, "--format", "videofolder", *options]


def finished(ground: Ground) -> Path:
    """A run that is finished; its folder."""
    ground.run(*of_rows({"video": "b.mp4"})(ground))
    return run_folder(ground.out())


def in_journal(folder: Path, *statements: str) -> None:
    """Change a journal."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.executescript(";".join(statements))


def journal_attack(*statements: str, again: Command = (), finish: bool = True) -> Callable[[Ground], Command]:
    """The run of two rows, again, with a journal that was changed."""

    def make(ground: Ground) -> Command:
        command = of_rows({"video": "b.mp4"})(ground)
        folder = finished(ground)
        dropped = [] if finish else ["DELETE FROM facts WHERE name = 'finished'", "DELETE FROM parts"]
        in_journal(folder, *dropped, *statements)
        return [*command, *again]

    return make


def kept_fact(name: str, value: str) -> str:
    """A statement that puts a value under a name in a journal."""
    return f"INSERT OR REPLACE INTO facts VALUES ('{name}', '{value}')"


def retry_attack(**changes: Any) -> Callable[[Ground], Command]:
    """`retry` of a run whose journal names another command; `HOME` in a text is the user's folder."""

    def make(ground: Ground) -> Command:
        folder = finished(ground)
        with closing(sqlite3.connect(folder / DATABASE)) as database, database:
            (kept,) = database.execute("SELECT value FROM facts WHERE name = 'command'").fetchone()
            command = json.loads(kept)
            parameters = changes.get("parameters", {})
            command |= {**changes, "parameters": {**command["parameters"], **parameters}}
            text = json.dumps(command).replace("HOME", str(ground.home))
            database.execute("UPDATE facts SET value = ? WHERE name = 'command'", (text,))
        return ["retry", ground.out()]

    return make


def somebody_elses(make: Callable[[Ground], Command]) -> Callable[[Ground], Command]:
    """The same where the folder of the run came with the data set: this user has no note of it."""

    def made(ground: Ground) -> Command:
        command = make(ground)
        for note in Path(os.environ["XDG_STATE_HOME"]).rglob("*.json"):
            note.unlink()
        return command

    return made


def link(path: Path, target: Path) -> Path:
    """A link of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def fifo(path: Path) -> Path:
    """A pipe that nobody writes to or reads from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def shard(ground: Ground, *members: tuple[str, bytes], name: str = "in.tar") -> Path:
    """A tar file."""
    with tarfile.open(ground.data / name, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return ground.data / name


def note(ground: Ground, text: str, *more: str) -> Command:
    """`runs` with a note that says this."""
    folder = Path(os.environ["XDG_STATE_HOME"], "reelscribe/known")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.json").write_text(text.replace("HOME", str(ground.home)), "utf-8")
    return ["runs", *more]


def recipe(ground: Ground, text: str) -> Command:
    """`process` with this recipe."""
    path = ground.data / "recipe.yaml"
    path.write_text(text.replace("HOME", str(ground.home)).replace("DATA", str(ground.data)), "utf-8")
    return ["process", "--config", path]


def safe_members(ground: Ground) -> None:
    """All members of the output lie below the folder they are extracted in."""
    for path in [ground.out("out.tar"), *ground.out("shards").glob("*.tar")]:
        if path.exists():
            with tarfile.open(path) as tar:
                for name in tar.getnames():
                    assert not name.startswith(("/", "\\")), name
                    assert ".." not in re.split(r"[/\\]", name), name
                    assert name.isprintable(), name


def no_secret_in_shards(ground: Ground) -> None:
    """No member holds what is in a file of the user's."""
    for path in ground.data.rglob("*.tar"):
        assert ground.secret.read_bytes() not in path.read_bytes()


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


# rows


def odd_values(ground: Ground) -> Command:
    values: list[Any] = [
        "file:///etc/passwd", "data:video/mp4;base64,AAAA", "pipe:0", "concat:/etc/passwd|/etc/hosts", "a\0b.mp4",
        "\ud800.mp4", "~/secret.mp4", "$HOME/secret.mp4", "x" * 5000, "/dev/zero", "/dev/stdin", "/proc/self/environ",
        "", "..", "/", {"path": "/etc/passwd", "bytes": None}, {"path": None, "bytes": "text"}, {"path": "\0"},
        {"bytes": [0] * 100}, {}, [], 5, True, 1e400, {"path": {"path": "a"}}, "lavfi:testsrc", "subfile,,start,0,:x",
    ]  # fmt: skip
    rows = ["{" + f'"video": {json.dumps(value)}' + "}" for value in values]
    return caption(ground, lines(ground, {"video": "good.mp4"}, *rows))


def secret_link_to_shard(ground: Ground) -> Command:
    link(ground.data / "a.mp4", ground.secret)
    source = lines(ground, {"video": "a.mp4"}, {"video": f"file://{ground.secret}"}, {"video": str(ground.secret)},
                   {"video": {"path": str(ground.secret), "bytes": None}}, {"video": "../home/secret.mp4"})  # fmt: skip
    return caption(ground, source, "--with-videos", "--media-root", ground.data, output="out.tar")


def secret_link_to_saved(ground: Ground) -> Command:
    link(ground.data / "a.mp4", ground.secret)
    source = lines(ground, {"video": "a.mp4"}, {"video": f"file://{ground.secret}"}, {"video": str(ground.secret)})
    return caption(ground, source, "--format", "datasets", "--with-videos", "--media-root", ground.data, output="saved")


def secret_link_to_folder(ground: Ground) -> Command:
    link(ground.data / "a.mp4", ground.secret)
    return caption(ground, lines(ground, {"video": "a.mp4"}, {"video": "b.mp4"}), "--with-videos", "--media-root",
                   ground.data, "--format", "videofolder", output="copies")  # fmt: skip


def secret_link_cut(ground: Ground) -> Command:
    link(ground.data / "a.mp4", ground.secret)
    source = lines(ground, {"video": "a.mp4", "start_seconds": 0.0, "end_seconds": 0.5})
    return caption(ground, source, "--with-videos", "--media-root", ground.data, "--format", "videofolder", "--cut",
                   "copy", output="copies")  # fmt: skip


def no_secret_copies(ground: Ground) -> None:
    for path in ground.data.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert ground.secret.read_bytes() not in path.read_bytes(), path


def hostile_keys(ground: Ground) -> Command:
    keys = ["/etc/cron.d/x", "../../up", "a\0b", "\ud800", "..", "", "con", "a/../../b", "~root", "a\nb", "\x1b[2J"]
    rows = [{"__key__": key, "video": "a.mp4", "../x": "y", "/abs": 1, "a\0": b"".decode()} for key in keys]
    return caption(ground, lines(ground, *rows), output="out.tar")


def hostile_keys_and_edits(ground: Ground) -> Command:
    ground.run(*hostile_keys(ground))
    with tarfile.open(ground.out("out.tar")) as tar:
        members = [(one.name, tar.extractfile(one).read()) for one in tar if one.isreg()]  # type: ignore[union-attr]
    edited = [(name, b"by hand" if name.endswith(".txt") else data) for name, data in members]
    shard(ground, *edited, ("../up.json", b'{"video": "c.mp4"}'), ("../up.txt", b"x"), name="out.tar")
    return [*hostile_keys(ground), "--update"]


def hostile_member_names(ground: Ground) -> Command:
    path = shard(ground, ("../../up.mp4", b"x"), ("../../up.json", b'{"a": 1}'), ("/etc/x.mp4", b"x"))
    return caption(ground, path, "--with-videos", output="out.tar")


def links_in_shard(ground: Ground) -> Command:
    with tarfile.open(ground.data / "in.tar", "w") as tar:
        for name, kind in (("a.mp4", tarfile.SYMTYPE), ("b.mp4", tarfile.LNKTYPE), ("c.mp4", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(ground.secret)
            tar.addfile(info)
        info = tarfile.TarInfo("d.mp4")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return caption(ground, ground.data / "in.tar", "--with-videos", output="out.tar")


def bytes_as_path(ground: Ground) -> Command:
    table = pa.table({"video": pa.array([{"path": str(ground.secret).encode()}], pa.struct({"path": pa.binary()}))})
    pq.write_table(table, ground.data / "in.parquet")
    return caption(ground, ground.data / "in.parquet")


def text_that_is_none(ground: Ground) -> Command:
    bad = pa.array([b"\xff.mp4", b"b.mp4"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"video": bad, "n": [1, 2]}), ground.data / "in.parquet")
    return caption(ground, ground.data / "in.parquet", output="out.parquet")


def address_with_secret(ground: Ground) -> Command:
    secrets = [f"https://u:{SECRET}@127.0.0.1:9/a.mp4", f"s3://K:{SECRET}@bucket/a.mp4",
               f"https://127.0.0.1:9/a.mp4?token={SECRET}"]  # fmt: skip
    return caption(ground, lines(ground, *({"id": n, "video": url} for n, url in enumerate(secrets))))


def not_kept(ground: Ground) -> None:
    for path in ground.data.rglob("*"):
        if path.is_file() and path.name not in ("in.jsonl", "out.jsonl"):
            assert SECRET.encode() not in path.read_bytes(), path


# folders


def planted(name: str) -> Callable[[Ground], Command]:
    def make(ground: Ground) -> Command:
        clips(ground)
        link(ground.data / name, ground.secret)
        return videofolder(ground)

    return make


def planted_run(ground: Ground) -> Command:
    clips(ground)
    link(ground.data / ".cache/huggingface/reelscribe", ground.home)
    return videofolder(ground)


def card_of_the_user(ground: Ground) -> Command:
    clips(ground)
    link(ground.data / "README.md", ground.home / "notes.md")
    return videofolder(ground)


def pipe_in_run_folder(name: str) -> Callable[[Ground], Command]:
    def make(ground: Ground) -> Command:
        folder = finished(ground)
        ground.out().unlink()
        fifo(folder / name)
        return of_rows({"video": "b.mp4"})(ground)

    return make


def hard_link_in_run_folder(ground: Ground) -> Command:
    folder = finished(ground)
    in_journal(folder, "DELETE FROM facts WHERE name = 'finished'")
    os.link(ground.home / "notes.md", folder / "errors.log")
    return of_rows({"video": "b.mp4"})(ground)


def pipe_in_folder(ground: Ground) -> Command:
    clips(ground, "b.mp4")
    for name in ("a.mp4", "c.mod", "README.md"):
        fifo(ground.data / name)
    return caption(ground, ground.data, output="out.jsonl")


def pipe_for_output(ground: Ground) -> Command:
    finished(ground)
    fifo(ground.out())
    return of_rows({"video": "b.mp4"})(ground)


def text_elsewhere(target: str) -> Callable[[Ground], Command]:
    """A journal whose texts of a videofolder lie elsewhere."""

    def make(ground: Ground) -> Command:
        clips(ground)
        ground.run(*videofolder(ground))
        place = fifo(ground.data / "pipe") if target == "pipe" else Path(target)
        folder = run_folder(ground.data / "metadata.jsonl")
        in_journal(folder, f"UPDATE written SET text = '{place}', said = x'00'",
                   kept_fact("made", '{"state": 0, "ns": 0}'))  # fmt: skip
        return videofolder(ground)

    return make


def view_in_journal(ground: Ground) -> Command:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'a' AS name, i AS value FROM n"
    return journal_attack("DROP TABLE facts", f"CREATE VIEW facts AS {endless}")(ground)


def view_that_is_listed(ground: Ground) -> Command:
    view_in_journal(ground)
    return ["runs", ground.data]


def trigger_in_journal(ground: Ground) -> Command:
    trigger = (
        "CREATE TRIGGER t AFTER INSERT ON facts BEGIN DELETE FROM results; "
        "INSERT INTO parts SELECT i, '' FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i FROM n); END"
    )
    return journal_attack(trigger, finish=False)(ground)


def computed_in_journal(ground: Ground) -> Command:
    table = (
        "CREATE TABLE results (row INTEGER, video INTEGER, digest BLOB, kind TEXT, "
        "payload TEXT GENERATED ALWAYS AS (hex(zeroblob(900000000))), PRIMARY KEY (row, video))"
    )
    return journal_attack("DROP TABLE results", table, finish=False)(ground)


def grown_from_a_text(ground: Ground) -> Command:
    command = journal_attack(kept_fact("input_bytes", '"x"'))(ground)
    lines(ground, {"video": "good.mp4"}, {"video": "b.mp4"}, {"video": "c.mp4"})
    return command


def run_that_is_none(ground: Ground) -> Command:
    folder = ground.data / ".photos.run"
    folder.mkdir()
    (folder / DATABASE).write_bytes(b"no database")
    link(folder / "album", ground.home)
    return ["runs", ground.data, "--clean", "--unfinished", "--yes"]


def notes_elsewhere(ground: Ground) -> Command:
    return note(ground, json.dumps({"folder": "HOME", "output": "x"}), "--clean", "--unfinished", "--yes")


# settings


def planted_failures(ground: Ground) -> Command:
    clips(ground)
    link(ground.out("out.jsonl.failures.jsonl"), ground.secret)
    return caption(ground, lines(ground, {"video": 5}, {"video": "a.mp4"}))


def output_through_link(ground: Ground) -> Command:
    link(ground.data / "shards", ground.home)
    return caption(ground, lines(ground, {"video": "a.mp4"}), "--format", "webdataset", output="shards")


def escapes(ground: Ground) -> Command:
    name = "\x1b]0;owned\x07\x1b[2J\u202e.jsonl"
    return caption(ground, lines(ground, "{", name=name))


def of_recipe(source: str) -> Callable[[Ground], Command]:
    text = f"dataset_path: {source}\nexport_path: DATA/out.jsonl\nprocess: [video_captioning_from_vlm_mapper]\n"
    return lambda ground: recipe(ground, text)


ATTACKS = [
    # what rows name
    Attack("odd values of a video", odd_values, 3, rows=28, reads=True),
    Attack("a video that is nested", of_rows('{"video": ' + deep(3000) + "}"), 3, "bad_sample", rows=2),
    Attack("a number of 5,000 digits", of_rows('{"video": "a.mp4", "start_seconds": ' + "9" * 5000 + "}"), 3, rows=2),
    Attack("a time without an end", of_rows('{"video": "a.mp4", "start_seconds": 1e999}'), 3, rows=2, reads=True),
    Attack("a field twice", of_rows('{"video": "a.mp4", "video": "b.mp4"}'), 3, "bad_sample", rows=2),
    Attack("captions of the row's own", of_rows({"video": "a.mp4", "captions": ["mine"]}), 3, rows=2),
    Attack("a line that is no JSON", of_rows("{"), 1, "error: .*in.jsonl"),
    Attack("a line that is no object", of_rows("[]"), 1, "error: .*in.jsonl"),
    Attack("a path that is bytes", bytes_as_path, 1, "error: "),
    Attack("a text that is not UTF-8", text_that_is_none, 3, rows=2),
    Attack("credentials in addresses of rows", address_with_secret, 3, check=not_kept, rows=3, reads=True),
    Attack("escape sequences in a file's name", escapes, 1, "error: "),
    # what is copied and cut
    Attack("a link to a secret, into a shard", secret_link_to_shard, 3, "not_allowed", 5, no_secret_in_shards, True),
    Attack("a link to a secret, into a saved data set", secret_link_to_saved, 3, "not_allowed", None, no_secret_copies,
           True),
    Attack("a link to a secret, copied beside captions", secret_link_to_folder, 3, "not_allowed", None,
           no_secret_copies, True),
    Attack("a link to a secret, cut", secret_link_cut, 3, "not_allowed", None, no_secret_copies, True),
    # shards
    Attack("keys that are no names", hostile_keys, 0, rows=11, check=safe_members),
    Attack("keys that are no names, in an edited shard", hostile_keys_and_edits, 0, rows=11, check=safe_members),
    Attack("members that lead out", hostile_member_names, 0, rows=2, check=safe_members),
    Attack("links and devices in a shard", links_in_shard, 0, rows=1, check=no_secret_in_shards),
    # links, pipes and other files that wait in a folder
    Attack("a link for the table", planted("metadata.jsonl"), 1, "is a link"),
    Attack("a link for a caption", planted("a.txt"), 1, "is a link"),
    Attack("a link for the failures", planted_failures, 1, "is a link"),
    Attack("a link for the folder of runs", planted_run, 1, "is a link"),
    Attack("a link for the card", card_of_the_user, 0),
    Attack("a link for a folder of shards", output_through_link, 1, "error: "),
    Attack("pipes among videos", pipe_in_folder, 3, "unreadable|not_found|regular", 3, reads=True),
    Attack("a pipe for the output of a run", pipe_for_output, 1, "error: "),
    *(Attack(f"a pipe for the run's {name}", pipe_in_run_folder(name), 1, "error: ")
      for name in (DATABASE, f"{DATABASE}-wal", "owner.json", "errors.log", f"{PARTS}/000000.jsonl")),
    Attack("a second name for the run's log", hard_link_in_run_folder, 1, "second name", 2),
    # journals of others
    Attack("a journal whose texts are a device", text_elsewhere("/dev/zero"), 1, "damaged"),
    Attack("a journal whose texts are a pipe", text_elsewhere("pipe"), 1, "damaged"),
    Attack("a journal with an endless view", view_in_journal, 1, "damaged", 2),
    Attack("a journal with an endless view, listed", view_that_is_listed, 0, "unreadable", 2),
    Attack("a journal with a trigger", trigger_in_journal, 1, "damaged", 2),
    Attack("a journal with a computed column", computed_in_journal, 1, "damaged", 2),
    *(Attack(f"a journal where {name} is {value}", journal_attack(kept_fact(name, value)), 1, "damaged", 2)
      for name, value in (("made", "5"), ("made", '{"state": 1}'), ("made", '{"state": 1, "ns": "x"}'),
                          ("texts_kept", '"x"'), ("finished", deep(3000)))),
    Attack("a journal of a run whose input is a number",
           journal_attack("UPDATE facts SET value = json_set(value, '$.rows.input', 5) WHERE name = 'identity'"), 1,
           "damaged", 2),
    Attack("a journal whose input has grown from a text", grown_from_a_text, 1, "damaged", 2),
    *(Attack(f"a journal with answers that are {value[:9]}",
             journal_attack(f"UPDATE results SET payload = '{value}'", again=("--recheck",)), 0, rows=2)
      for value in ("5", "[]", "{", deep(3000))),
    Attack("a journal with edits that are no JSON",
           journal_attack("INSERT INTO edits VALUES (x'00', 0, 0, '{')", again=("--update",), finish=False), 1,
           "damaged", 2),
    Attack("a journal with edits of other types",
           journal_attack("INSERT INTO edits SELECT key, 0, 0, '[[5]]' FROM written", again=("--update",),
                finish=False), 1,
           "damaged", 2),
    *(Attack(f"retry of a run whose {' and '.join(changes)} is {changes}"[:90], retry_attack(**changes), 1, "error: ",
             2)
      for changes in ({"format": []}, {"format": {}}, {"cut": []}, {"max_row_bytes": "x"}, {"failures": "a\0"},
                      {"failures": "\ud800"},
                      {"input": "a\0"}, {"input": "/dev/zero"}, {"limit": -1}, {"parameters": {"hf_model": {}}},
                      {"parameters": {"model_params": 5}}, {"parameters": {"no": 1}})),
    Attack("retry of another's run, which sends a key of the environment to its server",
           somebody_elses(retry_attack(parameters={"engine": "server", "model_params":
               {"base_url": SERVER, "api_key_env": "USERS_KEY"}})), 1, "this user", 2),
    Attack("retry of another's run, which trusts code",
           somebody_elses(retry_attack(parameters={"hf_model": "./evil", "model_params": {"trust_remote_code": True}})),
           1, "this user", 2),
    Attack("retry of another's run, which replaces a file of the user's",
           somebody_elses(retry_attack(failures="HOME/rows.jsonl")), 1, "this user", 2),
    # runs
    Attack("a folder that is called as a run is", run_that_is_none, 0, "link"),
    Attack("a note that names another folder", notes_elsewhere, 0, "no run"),
    *(Attack(f"a note that is {text[:30]}", lambda ground, text=text: note(ground, text), 0)
      for text in (deep(3000), "[]", '{"folder": "a\\u0000.run", "output": "x"}', '{"folder": 5, "output": "x"}')),
    Attack("a model whose name no hub has", of_rows(options=("--model", "a b")), 1, "did you mean a-b"),
    # recipes
    *(Attack(f"a recipe that reads {source}", of_recipe(source), 1, "error: ")
      for source in ('"\\0"', '"\\ud800.jsonl"', "/dev/zero", "DATA/recipe.yaml", "[a]")),
]  # fmt: skip
