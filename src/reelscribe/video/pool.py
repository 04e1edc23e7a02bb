"""Processes that read videos: started once, lent to one stream after another, ended with this process.

A process is started with a plain command, so it works from scripts without a main guard, notebooks, and processes that
may have no children of `multiprocessing`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ReelscribeError, SettingsError
from ..record import Clip, Failure
from .transport import receive_clip
from .worker import CLIP, ERROR

MAX_WORKERS = 32
"""Most processes that are started unless told otherwise."""
FIRST_WORKERS = 2
"""Processes a stream begins with, where there are as many cores; more are added where the model waits for clips."""
READER = "reelscribe.video.reader:read_clip"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_END_SECONDS = 1.0


class WorkerDiedError(Exception):
    """The process ended without an answer; never leaves the package."""


class Worker:
    """One process, seen from here.

    Args:
        reader: `module:function` that reads a video.
    """

    def __init__(self, reader: str = READER) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "reelscribe.video.worker", str(theirs.fileno()), reader],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C is for the parent, which ends its workers itself
            )
        self._connection = Connection(ours.detach())
        self._ready = False

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def send(self, video: Any, settings: dict[str, Any]) -> None:
        """Ask for a video; several may be asked for, and are answered in order.

        Raises:
            WorkerDiedError: the process is gone.
            ReelscribeError: it never began to work.
        """
        try:
            self._connection.send((video, settings))
        except OSError as exc:
            self._begin()
            raise WorkerDiedError from exc

    def receive(self) -> tuple[Clip | Failure, float]:
        """Wait for the next answer, and the seconds it took.

        Raises:
            WorkerDiedError: the process is gone.
            ReelscribeError: it never began to work.
            Exception: what reading raised, which is a bug.
        """
        try:
            self._begin()
            kind, seconds, outcome = self._connection.recv()
            if kind == ERROR:
                raise outcome
            return receive_clip(self._connection) if kind == CLIP else outcome, seconds
        except (EOFError, OSError) as exc:
            raise WorkerDiedError from exc

    def _begin(self) -> None:
        """Wait until the process has loaded what it needs."""
        if self._ready:
            return
        try:
            self._connection.recv()
        except (EOFError, ConnectionError) as exc:
            code = self._process.wait(_END_SECONDS)
            raise ReelscribeError(
                f"a process that reads videos does not start (exit code {code}); what it said is above"
            ) from exc
        self._ready = True

    def stop(self) -> None:
        """Tell it to end, whatever it is doing; who waits for its answer sees its end of the socket close."""
        self._process.terminate()

    def end(self) -> None:
        """Stop it and wait until it is gone."""
        self.stop()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WorkerPool:
    """Processes that are lent to streams.

    Args:
        workers: how many; None: as many as there are cores, at most `MAX_WORKERS`, added as they are needed.
        reader: `module:function` that reads a video.

    Raises:
        SettingsError: where `workers` is below 1.
    """

    def __init__(self, workers: int | None = None, *, reader: str = READER) -> None:
        if workers is not None and workers < 1:
            raise SettingsError(f"workers must be at least 1; got {workers}: raise it, or leave it out")
        if not hasattr(socket, "send_fds"):
            raise SettingsError("videos are read in processes of their own, which needs Linux or macOS (or WSL)")
        self.most = workers or min(usable_processors(), MAX_WORKERS)
        """Processes there may be."""
        self.first = self.most if workers else min(FIRST_WORKERS, self.most)
        """Processes a stream begins with."""
        self._reader = reader
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._free: deque[Worker] = deque()
        self._all: list[Worker] = []
        self._end = weakref.finalize(self, _end_all, self._all, self._pid)

    @property
    def workers(self) -> list[Worker]:
        """The processes there are."""
        return list(self._all)

    def start(self) -> None:
        """Start the first processes, so that they load while something else is done."""
        with self._lock:
            self._check_process()
            while len(self._all) < self.first:
                self._free.append(self._new())

    def lend(self) -> Worker | None:
        """A process that is free, or a new one; None where there are as many as there may be."""
        with self._lock:
            self._check_process()
            if self._free:
                return self._free.popleft()
            return self._new() if len(self._all) < self.most else None

    def take_back(self, worker: Worker) -> None:
        """The process has answered everything."""
        with self._lock:
            if worker in self._all:
                self._free.append(worker)

    def replace(self, worker: Worker) -> Worker | None:
        """End one process and start another in its place; None where the pool was closed."""
        with self._lock:
            if worker not in self._all:
                return None
            self._all.remove(worker)
            worker.end()
            return self._new()

    def close(self) -> None:
        """End all processes; the pool may be used again."""
        with self._lock:
            self._end()
            self._reset()

    def _new(self) -> Worker:
        worker = Worker(self._reader)
        self._all.append(worker)
        return worker

    def _check_process(self) -> None:
        """In a fork of the process that started them, the workers belong to someone else."""
        if self._pid != os.getpid():
            self._end.detach()
            self._reset()


def _end_all(workers: list[Worker], pid: int) -> None:
    if os.getpid() != pid:
        return
    for worker in workers:
        worker.stop()
    while workers:
        workers.pop().end()


def usable_processors() -> int:
    """Processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
