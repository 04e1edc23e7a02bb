"""Versions that are tested together lie within what the package says it runs with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    """Versions of a file, by package."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([^,]+).*", line).groups() for line in lines if "==" in line]
    assert len(dict(found)) == len(found)
    return {package.lower().replace("_", "-"): version for package, version in found}


@pytest.mark.parametrize("extra", [None, "vllm"])
def test_the_versions_tested_together_are_ones_the_package_allows(extra):
    pinned = pins("constraints.txt") | (pins("constraints-vllm.txt") if extra else {})
    needed = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else [])]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_beside_data_juicer_the_same_transformers_and_torch_are_tested():
    beside, alone = pins("requirements-data-juicer.txt"), pins("constraints.txt")
    for name in ("transformers", "torch", "torchvision"):
        assert beside[name] == alone[name]
