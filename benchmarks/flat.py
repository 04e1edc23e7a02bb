"""The flat file of all figures, and the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

FLAT = Path("benchmarks/results.json")


def merge(figures: Mapping[str, float]) -> None:
    """Put figures into the file in place of those of the same name; others, of parts that were not run, stay."""
    known = json.loads(FLAT.read_text("utf-8")) if FLAT.exists() else {}
    known.update({name: round(value, 4) for name, value in figures.items()})
    FLAT.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n", "utf-8")


def machine() -> str:
    """Processor, cores and memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({name}) and {memory:.0f} GiB of memory"
