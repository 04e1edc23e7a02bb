"""Data sets of the hub by their names, streamed from a server on loopback, in processes that know no other hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import REVISION, serving

ROWS = {"train": [{"video": "clips/a.mp4", "n": 1}, {"video": "clips/b.mp4", "n": 2}], "test": [{"video": "x", "n": 3}]}
LISTING = """
import json, sys
from reelscribe import DataError
from reelscribe.data import open_source
found = []
for address in sys.argv[1:]:
    try:
        source = open_source(address)
        found.append({"rows": list(source), "fields": source.fields(), "folder": source.folder.url})
    except DataError as exc:
        found.append(str(exc))
print(json.dumps(found))
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, video: Callable[[str], Path]) -> Iterator[dict[str, str]]:
    """The environment of a process that knows only a hub of ours."""
    data = video("h264.mp4").read_bytes()
    tables = {f"data/{split}.jsonl": lines(rows) for split, rows in ROWS.items()}
    metadata = lines([{"file_name": "a.mp4", "text": "Bär"}, {"file_name": "b.mp4", "text": "熊"}])
    repositories = {
        "me/rows": {**tables, "clips/a.mp4": data, "clips/b.mp4": data},
        "me/films": {"train/a.mp4": data, "train/b.mp4": data, "train/metadata.jsonl": metadata},
    }
    with serving(repositories) as address:
        home = str(tmp_path_factory.mktemp("hub"))
        yield {**os.environ, "HF_ENDPOINT": address, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}


def listed(hub: dict[str, str], *addresses: str) -> list[Any]:
    command = [sys.executable, "-c", LISTING, *addresses]
    done = subprocess.run(command, env=hub, check=True, capture_output=True, timeout=120)
    return list(json.loads(done.stdout))


def test_rows_of_a_split_are_streamed(hub: dict[str, str]) -> None:
    train, films, folder = listed(
        hub, "hf://datasets/me/rows?split=train", "hf://datasets/me/films", "hf://datasets/me/rows/clips"
    )
    assert train["rows"] == ROWS["train"]
    assert train["fields"] == ["video", "n"]
    pinned = f"hf://datasets/me/films@{REVISION}"
    assert films["folder"] == pinned
    assert films["rows"] == [
        {"video": {"bytes": None, "path": f"{pinned}/train/a.mp4"}, "text": "Bär"},
        {"video": {"bytes": None, "path": f"{pinned}/train/b.mp4"}, "text": "熊"},
    ]
    assert [row["video"] for row in folder["rows"]] == [f"hf://datasets/me/rows/clips/{name}.mp4" for name in "ab"]


def test_what_cannot_be_streamed_is_said(hub: dict[str, str]) -> None:
    several, unknown, gone, wrong = listed(
        hub,
        "hf://datasets/me/rows",
        "hf://datasets/me/rows?split=valid",
        "hf://datasets/me/none",
        "hf://datasets/me/rows?splits=train",
    )
    assert "has several splits; name one with ?split=…: train, test" in several
    assert "has no split 'valid'" in unknown
    assert "cannot read 'hf://datasets/me/none' from the hub" in gone
    assert "got splits" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("address", ["hf://datasets/me/films", "hf://datasets/me/rows?split=train"])
def test_a_data_set_of_the_hub_is_captioned(hub: dict[str, str], tmp_path: Path, address: str) -> None:
    output = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "reelscribe", "caption", address, "-o", str(output), "--allow-remote"]
    command += ["--model", "reelscribe/shapes", "--workers", "1"]
    done = subprocess.run(command, env=hub, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(rows) == 2
    assert all(row["captions"][0] for row in rows)
    again = subprocess.run(command, env=hub, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
