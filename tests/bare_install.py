"""What an install without extras must do; run in one by `make check-install`, and by `test_bare_install.py` where what
the extras bring is hidden.

Needs nothing that such an install does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from chat_server import ChatServer, running
from clips import render_video

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
"""Served; its own rule for frames needs transformers."""
PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "vllm", "ray", "lance", "peft")
"""What the extras bring."""


@dataclass(frozen=True)
class Install:
    """An install, a folder with two videos, and a server that captions them."""

    folder: Path
    """Where commands run."""
    server: ChatServer
    """What was asked of it is in `asked`."""
    url: str
    """Its address."""
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    """Of the commands."""

    def run(self, command: str, *, code: int = 0) -> str:
        """What a command prints, which must end with this code; blanks part its words."""
        words = [sys.executable, "-m", "reelscribe", *command.replace("URL", self.url).split()]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        printed = done.stdout + done.stderr
        assert done.returncode == code, f"{command}: {done.returncode}, not {code}\n{printed}"
        assert "Traceback" not in printed, f"{command}:\n{printed}"
        return printed

    def rows(self, name: str) -> list[dict[str, object]]:
        """The rows of a JSONL file."""
        return [json.loads(line) for line in (self.folder / name).read_text("utf-8").splitlines()]


@contextmanager
def installed(folder: Path, **environment: str) -> Iterator[Install]:
    """An install to try, which writes to a folder."""
    (folder / "videos").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        render_video(folder / "videos" / name)
    server = ChatServer()
    server.models = [{"id": MODEL, "object": "model"}]
    state = {"XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "200", **environment}
    with running(server) as url:
        yield Install(folder, server, url, {**os.environ, **state})


def helps(install: Install) -> None:
    """What needs no model is there."""
    for command in ("--help", "caption --help", "process --help", "bench --help", "--version", "models", "runs"):
        install.run(command)


def captions_behind_a_server(install: Install) -> None:
    """A server's model captions, by a general rule for frames, which one line says."""
    printed = install.run("caption videos -o out.jsonl --server URL")
    assert len([line for line in printed.splitlines() if "reelscribe[hf]" in line]) == 1, printed
    assert "by a general rule" in printed, printed
    assert [len(row["captions"]) for row in install.rows("out.jsonl")] == [1, 1]  # type: ignore[arg-type]
    assert len(install.server.asked) == 2
    install.run("caption videos -o out.jsonl --server URL")
    assert len(install.server.asked) == 2, "what was answered is not asked again"


def frames_are_those_that_are_asked_for(install: Install) -> None:
    """Options for frames hold."""
    install.run("caption videos -o out.jsonl --server URL --num-frames 6")
    for body in install.server.asked:
        [content] = [message["content"] for message in body["messages"]]
        [video] = [part["video_url"]["url"] for part in content if part["type"] == "video_url"]
        assert video.count(",") == 6, video.count(",")  # one behind the form, two between frames


def writes_every_format(install: Install) -> None:
    """Formats that are no extra are read and written."""
    source = "videos"
    for number, name in enumerate(("a.parquet", "b.csv", "c.tar", "d.jsonl.gz", "e.jsonl")):
        install.run(f"caption {source} -o {name} --server URL --limit 1 --caption-key captions{number}")
        source = name
    [row] = install.rows("e.jsonl")
    assert all(row[f"captions{number}"] for number in range(5))
    install.run("caption videos -o videos --format videofolder --server URL")
    assert (install.folder / "videos" / "a.txt").read_text("utf-8")


def serves_python(install: Install) -> None:
    """The operator works in Python with a captioner of the caller's own."""
    script = "from reelscribe import ScriptedCaptioner, VideoCaptioningFromVLMMapper as Mapper\n"
    script += "batch = {'text': ['<__dj__video>'], 'videos': [['videos/a.mp4']]}\n"
    script += "print(Mapper(captioner=ScriptedCaptioner(lambda request, i: 'a cat')).process_batched(batch)['text'])\n"
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, cwd=install.folder, env=install.environment, capture_output=True, check=True)
    assert b"a cat" in printed.stdout


def runs_a_recipe(install: Install) -> None:
    """A recipe with a server is run, and checked."""
    row = {"text": "<__dj__video>", "videos": ["videos/a.mp4"]}
    (install.folder / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    step = {"video_captioning_from_vlm_mapper": {"model_params": {"base_url": install.url}}}
    recipe = {"dataset_path": "rows.jsonl", "export_path": "out.jsonl", "process": [step]}
    (install.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    install.run("process --config recipe.yaml")
    assert len(install.rows("out.jsonl")) == 2
    (install.folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "process": [{"other": {}}]}), "utf-8")
    assert "other" in install.run("process --config recipe.yaml", code=1)


def measures_a_server(install: Install) -> None:
    """`bench` measures reading, and the model behind a server."""
    assert "decode" in install.run("bench videos --server URL --clips 2")


MISSING = {
    "caption videos -o out.jsonl --model reelscribe/shapes": "hf",
    "caption videos -o out.jsonl": "hf",
    f"caption videos -o out.jsonl --server URL --model-param processor={MODEL}": "hf",
    "bench videos --model reelscribe/shapes": "hf",
    "demo": "hf",
    "models reelscribe/shapes": "hf",
    "caption videos -o out.jsonl --model reelscribe/shapes --vllm": "vllm",
    "caption videos -o out.jsonl --server URL --ray": "ray",
    "caption videos -o saved --format datasets --server URL": "datasets",
    "caption hf://datasets/user/name -o out.jsonl --server URL": "datasets",
    "caption saved -o out.jsonl --server URL": "datasets",
    "caption videos -o out.lance --server URL": "lance",
    "caption s3://bucket/rows.jsonl -o out.jsonl --server URL": "stores",
}
"""Command to the extra that it needs."""


def names_what_is_missing(install: Install) -> None:
    """Every other command names the extra that it needs, in one line, and asks nothing and leaves nothing."""
    saved = install.folder / "saved"
    saved.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (saved / name).write_text("{}", "utf-8")
    before = _outputs(install)
    for command, extra in MISSING.items():
        printed = install.run(command, code=1)
        [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert f"pip install 'reelscribe[{extra}]'" in line, f"{command}:\n{printed}"
        assert _outputs(install) == before, command
    assert install.server.asked == []


def _outputs(install: Install) -> list[str]:
    return sorted(path.name for path in install.folder.iterdir() if path.name != "state")


CHECKS: tuple[Callable[[Install], None], ...] = (
    helps,
    captions_behind_a_server,
    frames_are_those_that_are_asked_for,
    writes_every_format,
    serves_python,
    runs_a_recipe,
    measures_a_server,
    names_what_is_missing,
)


def main() -> None:
    """Try everything with the Python that runs this."""
    for check in CHECKS:
        with tempfile.TemporaryDirectory() as folder, installed(Path(folder) / "work") as install:
            check(install)
        print(f"{check.__name__}: {(check.__doc__ or '').strip()}")


if __name__ == "__main__":
    main()
