"""What works where only the package itself is installed: what its extras bring is hidden from commands and from the
processes that they start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bare_install import CHECKS, PACKAGES, Install, installed

HIDING = f"""
import sys
from importlib.abc import MetaPathFinder

HIDDEN = {(*PACKAGES, "aiohttp", "s3fs", "gcsfs", "pandas", "tokenizers", "safetensors")!r}

class Hiding(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hiding())
"""


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_install_without_extras(check: Callable[[Install], None], tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDING, "utf-8")
    with installed(
        tmp_path / "work", PYTHONPATH=os.pathsep.join([str(hiding), *filter(None, [os.environ.get("PYTHONPATH")])])
    ) as install:
        check(install)
