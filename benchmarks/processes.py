"""A measurement in a process of its own: it prints one marked line of JSON, which is read here."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

MARK = "measured: "
TIMEOUT_SECONDS = 3600


def tell(figures: dict[str, Any]) -> None:
    """Print the figures of this process."""
    print(MARK + json.dumps(figures), flush=True)


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command and take the figures it tells; libraries may print other lines."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(lines[-1].removeprefix(MARK)))


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])
