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


def needed(extra):
    """What an extra requires, with what the extras that it names require."""
    own = list(map(Requirement, PROJECT["optional-dependencies"][extra]))
    named = [other for one in own if one.name == PROJECT["name"] for other in one.extras]
    return [one for one in own if one.name != PROJECT["name"]] + [one for other in named for one in needed(other)]


@pytest.mark.parametrize("extra", [None, "hf", "datasets", "lora", "vllm"])
def test_the_versions_tested_together_are_ones_the_package_allows(extra):
    pinned = pins("constraints.txt") | (pins("constraints-vllm.txt") if extra == "vllm" else {})
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *(needed(extra) if extra else [])]:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_beside_data_juicer_the_same_transformers_and_torch_are_tested():
    beside, alone = pins("requirements-data-juicer.txt"), pins("constraints.txt")
    for name in ("transformers", "torch", "torchvision"):
        assert beside[name] == alone[name]
