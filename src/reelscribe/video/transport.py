"""A clip from one process to another: its pixels in memory that both see, the rest as a message.

The memory has no name, so nothing of it can stay behind, however a process ends; and it is not bound by the size of
`/dev/shm`, which containers keep small.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np

from ..record import Clip

COPIED_BYTES = 4 << 20
"""Clips up to this size are copied out of the memory that both see: a mapping keeps a descriptor open, and a process
may have a thousand of them at most places."""
_PLAIN = tuple(field.name for field in fields(Clip) if field.name != "frames")


def send_clip(connection: Connection, clip: Clip, *, to_pid: int) -> None:
    """Hand a clip over a Unix socket; `receive_clip` takes it at the other end."""
    plain = {name: getattr(clip, name) for name in _PLAIN}
    connection.send((plain, clip.frames.shape))
    descriptor = _memory(clip.nbytes)
    try:
        with mmap.mmap(descriptor, clip.nbytes) as shared:
            np.copyto(np.ndarray(clip.frames.shape, np.uint8, buffer=shared), clip.frames)
        send_handle(connection, descriptor, to_pid)
    finally:
        os.close(descriptor)


def receive_clip(connection: Connection) -> Clip:
    """Take a clip; the memory is given back when its frames are no longer used."""
    plain: dict[str, Any]
    plain, shape = connection.recv()
    descriptor = recv_handle(connection)
    try:
        shared = mmap.mmap(descriptor, int(np.prod(shape)))
    finally:
        os.close(descriptor)
    frames = np.ndarray(shape, np.uint8, buffer=shared)
    return Clip(frames=frames.copy() if frames.nbytes <= COPIED_BYTES else frames, **plain)


def _memory(size: int) -> int:
    """A descriptor of `size` bytes of memory without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("reelscribe-frames")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
