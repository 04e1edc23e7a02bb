"""Functions that stand for reading a video in tests of the processes that read: what is asked of them is in the name.

A video is a path; `first.second` of its name says what happens and how.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from reelscribe.record import Clip, Failure

SIDE = 32


def clip(frames: int = 2, *, value: int = 0) -> Clip:
    """A small clip whose pixels all have one value."""
    pixels = np.full((frames, SIDE, SIDE, 3), value, np.uint8)
    return Clip(pixels, np.arange(frames, dtype=float), frames, 1.0, SIDE, SIDE)


def _log(path: Path, line: object) -> None:
    with path.with_name("log").open("a") as file:
        file.write(f"{line}\n")


def read(video: Any, **_settings: Any) -> Clip | Failure:
    """Do what the name says."""
    path = Path(video)
    _log(path, path.name)
    what = path.name.partition(".")[0]
    return ACTIONS.get(what, lambda _path: clip(value=os.nice(0)))(path)


def _wait(path: Path) -> Clip:
    """Until a file of this name, with `.open` behind it, is there."""
    until = time.monotonic() + 60
    while not path.with_name(f"{path.name}.open").exists():
        assert time.monotonic() < until
        time.sleep(0.005)
    return clip()


def _crash(path: Path) -> Clip:
    os.kill(os.getpid(), signal.SIGSEGV)
    return clip()


def _crash_once(path: Path) -> Clip:
    marker = path.with_name(f"{path.name}.crashed")
    if marker.exists():
        return clip()
    marker.touch()
    return _crash(path)


def _bug(path: Path) -> Clip:
    raise ZeroDivisionError(path.name)


def _fail(path: Path) -> Failure:
    return Failure("unreadable", path.name)


def _pid(path: Path) -> Failure:
    return Failure("unreadable", str(os.getpid()))


def _slow(path: Path) -> Clip:
    time.sleep(0.4)
    return clip()


ACTIONS = {
    "wait": _wait,
    "crash": _crash,
    "crash_once": _crash_once,
    "bug": _bug,
    "fail": _fail,
    "pid": _pid,
    "slow": _slow,
}
