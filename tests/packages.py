"""Small packages as an installer leaves them: modules, and a dist-info folder that names entry points."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from reelscribe import entry_points


def write_package(
    folder: Path,
    name: str,
    *,
    modules: Mapping[str, str],
    points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> Path:
    """Write a package into a folder of installed packages, and give that folder back.

    Args:
        folder: to be put on `sys.path` or in `PYTHONPATH`.
        name: of the distribution.
        modules: name of a module to its source.
        points: group of entry points to their names and objects.
        version: of the distribution.
    """
    folder.mkdir(exist_ok=True)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source), "utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    lines = [
        f"[{group}]\n" + "".join(f"{one} = {place}\n" for one, place in names.items())
        for group, names in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")
    return folder


def on_path(monkeypatch, folder: Path) -> None:
    """Install the packages of a folder in this process; `forget` removes what is remembered of them."""
    monkeypatch.syspath_prepend(str(folder))
    entry_points._entry_points.cache_clear()
    importlib.invalidate_caches()
    for path in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)


def forget() -> None:
    """Let the next table look for entry points again."""
    entry_points._entry_points.cache_clear()
    entry_points._warn.cache_clear()


def reelscribe(*arguments: str | Path, site: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the packages of a folder installed."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "reelscribe", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    return done
