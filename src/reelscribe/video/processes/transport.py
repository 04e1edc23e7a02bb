"""Send a clip from one process to another: its pixels in shared memory, the rest as a message.

The memory is anonymous, so nothing can be left behind, however a process ends; and it is not limited by the size of
`/dev/shm`, which is small in containers.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...types import Clip
from ..process_memory import has_room

COPIED_BYTES = 1 << 22
"""Clips up to this size are copied on arrival."""
_PLAIN = tuple(field.name for field in fields(Clip) if field.name != "frames")


class _SharedMemory(mmap.mmap):
    """Anonymous memory that can be passed to another process."""

    descriptor: int

    @classmethod
    def of(cls, size: int) -> _SharedMemory:
        """So many bytes of it."""
        descriptor = _memory(size)
        try:
            shared = cls(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        shared.descriptor = descriptor
        weakref.finalize(shared, os.close, descriptor)
        return shared


def shared_frames(shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """An array for frames that `send_clip` passes on without a copy.

    Raises:
        MemoryError: it does not fit; the bound on private memory does not count shared memory.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not has_room(size):
        raise MemoryError
    return np.ndarray(shape, dtype, buffer=_SharedMemory.of(size))


def send_clip(connection: Connection, clip: Clip, *, to_pid: int) -> None:
    """Send a clip over a Unix socket; `receive_clip` takes it at the other end."""
    plain = {name: getattr(clip, name) for name in _PLAIN}
    connection.send((plain, clip.frames.shape))
    frames = clip.frames
    if not isinstance(frames.base, _SharedMemory):
        frames = shared_frames(frames.shape)
        np.copyto(frames, clip.frames)
    assert isinstance(frames.base, _SharedMemory)
    send_handle(connection, frames.base.descriptor, to_pid)


def receive_clip(connection: Connection) -> Clip:
    """Receive a clip; the memory is released when its frames are no longer used.

    Shared memory holds a file descriptor for as long as it is used, and a process has few: small clips, of which there
    are many, are copied.
    """
    plain: dict[str, Any]
    plain, shape = connection.recv()
    size = int(np.prod(shape))
    descriptor = recv_handle(connection)
    try:
        pixels = _copied(descriptor, size) if size <= COPIED_BYTES else mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
    return Clip(frames=np.ndarray(shape, np.uint8, buffer=pixels), **plain)


def _copied(descriptor: int, size: int) -> bytearray:
    pixels = bytearray(size)
    view, done = memoryview(pixels), 0
    while done < size:
        done += os.preadv(descriptor, [view[done:]], done)
    return pixels


def _memory(size: int) -> int:
    """A descriptor of `size` bytes of anonymous memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("reelscribe-frames")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
