"""Functions that stand for reading a video in tests of the processes that read: what is asked of them is in the name.

A video is a path; the first word of its name, up to a dot, says what happens; with `_once` behind it only at the first
try.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from reelscribe.types import Clip, Failure
from reelscribe.video.processes.jobs import Doubt

SIDE = 32


def clip(frames: int = 2, *, value: int = 0) -> Clip:
    """A small clip whose pixels all have one value."""
    pixels = np.full((frames, SIDE, SIDE, 3), value, np.uint8)
    return Clip(pixels, np.arange(frames, dtype=float), frames, 1.0, SIDE, SIDE)


def _log(path: Path, line: object) -> None:
    with path.with_name("log").open("a") as file:
        file.write(f"{line}\n")


def read(video: Any, *, plain: bool = False, **_settings: Any) -> Clip | Failure | Doubt:
    """Do what the name says."""
    path = Path(video)
    _log(path, path.name)
    with path.with_name("tries").open("a") as file:
        file.write(f"{path.name} {os.getpid()} {plain}\n")
    what = path.name.partition(".")[0]
    if what.endswith("_once"):
        marker = path.with_name(f"{path.name}.tried")
        what = "" if marker.exists() else what.removesuffix("_once")
        marker.touch()
    return ACTIONS.get(what, lambda _path: clip(value=os.nice(0)))(path)


def _wait(path: Path) -> Clip:
    """Until a file of this name, with `.open` behind it, is there."""
    until = time.monotonic() + 60
    while not path.with_name(f"{path.name}.open").exists():
        assert time.monotonic() < until
        time.sleep(0.005)
    return clip()


def _crash(_path: Path) -> Clip:
    ctypes.string_at(0)
    return clip()


def _hang(_path: Path) -> Clip:
    """In C, deaf to signals, and without letting another thread of Python run."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).pause()
    return clip()


def _hog(_path: Path) -> Clip:
    kept = [bytearray(1 << 20)]
    while len(kept) < 4096:
        kept.append(bytearray(1 << 20))
    return clip()


def _killed(_path: Path) -> Clip:
    """As the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return clip()


def _nonsense(_path: Path) -> Clip:
    """Memory was overwritten: what is said makes no sense, and then nothing is said."""
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, b"\x00\x00\x00\x04spam")
        except OSError:
            continue
    time.sleep(60)
    return clip()


def _doubt(path: Path) -> Doubt:
    return Doubt(Failure("no_frames", path.name))


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
    "hang": _hang,
    "hog": _hog,
    "killed": _killed,
    "nonsense": _nonsense,
    "doubt": _doubt,
    "bug": _bug,
    "fail": _fail,
    "pid": _pid,
    "slow": _slow,
}
