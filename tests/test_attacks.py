"""Every entry of `attacks.py` through the command, and what must hold for all of them."""

from __future__ import annotations

import re
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from attacks import ATTACKS, SECRET, WORDS, Attack, Ground
from reelscribe import ScriptedCaptioner, cli
from reelscribe.video.frames.moments import FramePolicy

SECONDS = 60
"""What waits so long waits for ever."""


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Nothing waits for what never comes."""

    def give_up(*_: Any) -> None:
        raise AssertionError(f"it hangs: nothing has happened for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """A user's files, and an empty data set."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("USERS_KEY", SECRET)
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    data.mkdir()
    (home / "secret.mp4").write_bytes(f"{SECRET} in a file".encode() * 50)
    (home / "notes.md").write_text("notes")
    (home / "rows.jsonl").write_text('{"row": 1}\n')
    return Ground(home, data, lambda *arguments: run(*arguments))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, Any]:
    """All that is in a folder; of links where they lead."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def rows_in(folder: Path) -> int | None:
    """Rows of the output, whatever its format; None: there is none."""
    for path in filter(Path.is_file, (folder / "out.tar", folder / "out.parquet", folder / "out.jsonl")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                return sum(name.endswith(".json") for name in tar.getnames())
        if path.suffix == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        return len(path.read_bytes().splitlines())
    return None


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attack(attack: Attack, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FramePolicy() if attack.reads else None
    monkeypatch.setattr(
        "reelscribe.operator.load_captioner", lambda spec: ScriptedCaptioner(lambda request, i: WORDS, policy=policy)
    )
    command = attack.make(ground)
    before = files(ground.home)
    result = run(*command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == attack.code, result.output
    assert "Traceback" not in result.output
    assert all(line.isprintable() for line in result.output.split("\n")), result.output
    assert SECRET not in result.output
    assert re.search(attack.said, result.output), result.output
    assert files(ground.home) == before
    assert rows_in(ground.data) == attack.rows
    if attack.check is not None:
        attack.check(ground)


def test_entries_have_names_of_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
