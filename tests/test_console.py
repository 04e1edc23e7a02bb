"""Output first, words second: what is printed never decides how a run ends; and inputs that are no files."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reelscribe import cli
from reelscribe.console import words_come_second
from rows import jsonl, load

SCRIPT = """
import sys
from reelscribe import ScriptedCaptioner, cli, operator
words = lambda request, i: "" if "broken" in request.video else "words"
operator.load_captioner = lambda spec: ScriptedCaptioner(words)
cli.main(sys.argv[1:])
"""


def run(*arguments: Any, **streams: Any) -> int:
    """The exit code of the command line in a process of its own, with other standard streams."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    process = subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams})
    return process.wait(300)


def gone() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_stream_that_cannot_be_written_changes_nothing(tmp_path: Path, kind: str, stream: str) -> None:
    if kind == "full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}, {"video": "broken.mp4"}])
    names = ("stdout", "stderr") if stream == "both" else (stream,)
    places = {name: os.open("/dev/full", os.O_WRONLY) if kind == "full" else gone() for name in names}
    code = run("caption", source, "-o", tmp_path / "out.jsonl", **places)
    for place in places.values():
        os.close(place)
    assert code == 3
    assert [row["captions"] for row in load(tmp_path / "out.jsonl")] == [["words"], None]


def test_closed_streams_get_nothing_and_no_file_gets_what_is_printed(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"video": f"{i}.mp4"} for i in range(50)])
    command = '"$0" -c "$1" caption "$2" -o "$3" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, SCRIPT, source, tmp_path / "out.jsonl"], check=False)
    assert done.returncode == 0
    assert [row["captions"] for row in load(tmp_path / "out.jsonl")] == [["words"]] * 50


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["no-such-command"], 2), (["caption", "gone.jsonl", "-o", "o.jsonl"], 1)],
)
def test_help_and_errors_keep_their_exit_codes(tmp_path: Path, arguments: list[str], code: int) -> None:
    place = gone()
    assert run(*arguments, stdout=place, stderr=place, cwd=tmp_path) == code
    os.close(place)


class Broken(io.StringIO):
    """A stream that raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), BlockingIOError(), ValueError("closed")])
def test_streams_that_raise_are_no_errors(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with words_come_second():
        print("words")
        sys.stdout.writelines(["more", "words"])
        sys.stdout.flush()
    assert isinstance(sys.stdout, Broken)
    with pytest.raises(type(error)):
        print("words")


def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with words_come_second():
        print("Bär \udcff")
    assert raw.getvalue() == b"B\\xe4r \\udcff\n"


# inputs that are no files


def odd_input(kind: str, path: Path) -> Any:
    if kind == "pipe":
        os.mkfifo(path)
        return None
    if kind == "device":
        path.symlink_to("/dev/zero")
        return None
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet", ".tar", ".mp4"])
def test_an_input_that_is_no_file_is_one_line(
    tmp_path: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    held = odd_input(kind, Path(f"in{suffix}"))
    result = CliRunner().invoke(cli.main, ["caption", f"in{suffix}", "-o", "out.jsonl"])
    assert result.exit_code == 1, result.output
    assert f"{kind}; name a regular file" in result.stderr
    if held is not None:
        held.close()


def test_a_pipe_in_a_folder_or_a_pattern_is_one_line(tmp_path: Path) -> None:
    for suffix in (".parquet", ".tar"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        os.mkfifo(folder / f"in{suffix}")
        for source in (folder, folder / f"*{suffix}"):
            result = CliRunner().invoke(cli.main, ["caption", str(source), "-o", str(tmp_path / "out.jsonl")])
            assert result.exit_code == 1, result.output
            assert "is a named pipe" in result.stderr


def test_a_recipe_or_an_output_that_is_a_pipe_is_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert "is a named pipe" in CliRunner().invoke(cli.main, ["process", "--config", str(pipe)]).stderr
    source = jsonl(tmp_path / "in.jsonl", [{"video": "a.mp4"}])
    for options in (["-o", str(pipe), "--overwrite"], ["-o", str(tmp_path / "out.jsonl"), "--failures", str(pipe)]):
        result = CliRunner().invoke(cli.main, ["caption", str(source), *options])
        assert result.exit_code == 1
        assert "is a named pipe" in result.stderr
    assert pipe.is_fifo(), "it is not replaced"
