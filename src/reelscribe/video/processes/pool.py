"""Processes that read videos: started once, lent to one stream after another, stopped with this process.

A process is started with a plain command, so it works from scripts without a main guard, notebooks, and processes that
may have no children of `multiprocessing`.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ...errors import ReelscribeError, SettingsError
from ...types import Clip, Failure
from ..frames.library_rules import Answer, FrameRule
from ..limits import DEFAULT_LIMITS, ReadLimits
from .child import CLIP, ERROR, QUESTION
from .jobs import Doubt
from .transport import receive_clip

MAX_WORKERS = 32
"""Default limit on the number of processes."""
FIRST_WORKERS = 2
"""Processes a stream starts with, if there are as many cores; more are added while the model waits for clips."""
READER = "reelscribe.video.reader:attempt_shared"
START_SECONDS = 120.0
"""Time within which a process must report that it is ready."""
LONGEST_WAIT_SECONDS = 1e6
"""Longest single wait that the system supports, even if the limit is larger."""
MESSAGE_SECONDS = 30.0
"""Time for a message between a process and this one, once it has started."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_END_SECONDS = 1.0


class LostError(Exception):
    """A process returned no clip and must not be reused; never leaves the package.

    Args:
        failure: what to report for the video it was reading, if another try ends no better.
        seconds: time it spent on that video.
    """

    def __init__(self, failure: Failure, seconds: float) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.seconds = seconds


class Worker:
    """One reading process, seen from the parent.

    Args:
        reader: `module:function` that reads a video.
    """

    def __init__(self, reader: str = READER) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(MESSAGE_SECONDS), 0))
                self._process = _start(reader, theirs)
            except BaseException:
                ours.close()
                raise
        self._connection = Connection(ours.detach())
        self._ready = False
        self._stopped = False
        self._asked = 0
        self._since = 0.0

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def send(self, video: Any, settings: dict[str, Any]) -> None:
        """Request a video; several may be requested, and are answered in order.

        Raises:
            LostError: the process is gone.
            ReelscribeError: it never started.
        """
        if isinstance(video, bytes):  # may be more than fits into the socket
            self._begin()
        if not self._asked:
            self._since = time.monotonic()
        self._asked += 1
        try:
            self._connection.send((video, settings))
        except OSError as exc:
            self._begin()
            raise self._lost() from exc

    def receive(
        self, *, limits: ReadLimits = DEFAULT_LIMITS, rule: FrameRule | None = None
    ) -> tuple[Clip | Failure | Doubt, float]:
        """Wait for the next answer, and the seconds it took; the process has `max_read_seconds` from when it started
        the video.

        Args:
            limits: how long it may take.
            rule: answers questions of the process meanwhile.

        Raises:
            LostError: the process is gone, or was killed because it took too long.
            ReelscribeError: it never started.
            Exception: what reading raised, which is a bug.
        """
        self._begin()
        kind, seconds, outcome = self._message(limits)
        while kind == QUESTION and rule is not None:
            self._reply(Answer(list(rule.choose(outcome))))
            kind, seconds, outcome = self._message(limits)
        if kind == ERROR:
            raise outcome
        if seconds > limits.max_read_seconds:  # time was up before this thread looked
            self.end()
            raise LostError(_too_slow(limits), seconds)
        self._asked -= 1
        self._since = time.monotonic()
        return outcome, seconds

    def _message(self, limits: ReadLimits) -> tuple[str, float, Any]:
        """The next message of the process, its type first."""
        left = self._since + limits.max_read_seconds - time.monotonic()
        if not self._connection.poll(min(max(left, 0), LONGEST_WAIT_SECONDS)):
            self.end()
            raise LostError(_too_slow(limits), self._seconds())
        try:
            kind, seconds, outcome = self._connection.recv()
            if kind == CLIP:
                outcome = receive_clip(self._connection)
        except Exception as exc:  # it is gone, or its memory was overwritten: the message may be anything
            raise self._lost() from exc
        return kind, seconds, outcome

    def _reply(self, answer: Answer) -> None:
        try:
            self._connection.send((None, answer))
        except OSError as exc:
            raise self._lost() from exc

    def _begin(self) -> None:
        """Wait until the process has loaded what it needs."""
        if self._ready:
            return
        try:
            said_something = self._connection.poll(START_SECONDS)
            if said_something:
                self._connection.recv()
        except (EOFError, OSError) as exc:
            if self._stopped:
                raise self._lost() from exc
            code = self._process.wait(_END_SECONDS)
            raise ReelscribeError(
                f"a process that reads videos failed to start (exit code {code}); its output is above"
            ) from exc
        if not said_something:
            self.end()
            raise ReelscribeError(
                f"a process that reads videos failed to start: no sign of life for {START_SECONDS:g} seconds; "
                "is the machine, or the disk with the Python packages, overloaded?"
            )
        self._ready = True
        self._since = time.monotonic()

    def _lost(self) -> LostError:
        """What happened to the process: it is gone, or sends invalid messages."""
        seconds = self._seconds()
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            return LostError(Failure("crashed", "the process that read the video stopped responding"), seconds)
        return LostError(_death(code), seconds)

    def _seconds(self) -> float:
        return time.monotonic() - self._since

    def stop(self) -> None:
        """Kill it, whatever it is doing; a thread that waits for its answer sees the socket close."""
        self._stopped = True
        self._process.kill()

    def end(self) -> None:
        """Kill it, and wait until it is gone, unless the kernel blocks it, as with an unreachable file server."""
        self.stop()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def hang_up(self) -> None:
        """Close the socket; only for the thread that sends and receives, after its last use."""
        self._connection.close()


def _start(reader: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """The process, with its end of the socket."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "reelscribe.video.processes.child", str(theirs.fileno()), reader],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        process_group=0,  # Ctrl-C is for the parent, which ends its workers itself
    )


def _too_slow(limits: ReadLimits) -> Failure:
    return Failure(
        "timeout", f"reading the video takes longer than the limit of {limits.max_read_seconds:g} s (max_read_seconds)"
    )


def _death(code: int) -> Failure:
    """The failure for an exit code: a SIGKILL that we did not send means that the system is short of memory."""
    if code == -signal.SIGKILL:
        return Failure("out_of_memory", "the system ran short of memory and killed the process that read the video")
    try:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        how = f"signal {-code}"
    return Failure("crashed", f"the process that read the video died ({how})")


class WorkerPool:
    """Processes that are lent to streams.

    Args:
        workers: how many; None: as many as there are cores, at most `MAX_WORKERS`, added as needed.
        prefetch_bytes: bound of each stream on its pixels, in bytes; None: depends on the number of processes.
        reader: `module:function` that reads a video.

    Raises:
        SettingsError: `workers` or `prefetch_bytes` is below 1.
    """

    def __init__(self, workers: int | None = None, *, prefetch_bytes: int | None = None, reader: str = READER) -> None:
        if workers is not None and workers < 1:
            raise SettingsError(f"workers must be at least 1; got {workers}: raise it, or leave it out")
        if prefetch_bytes is not None and prefetch_bytes < 1:
            raise SettingsError(f"prefetch_bytes must be at least 1; got {prefetch_bytes}: raise it")
        self.prefetch_bytes = prefetch_bytes
        """Bound of each stream on its pixels, in bytes."""
        if not hasattr(socket, "send_fds"):
            raise SettingsError("videos are read in separate processes, which requires Linux or macOS (or WSL)")
        self.most = workers or min(usable_processors(), MAX_WORKERS)
        """Most processes."""
        self.first = self.most if workers else min(FIRST_WORKERS, self.most)
        """Processes a stream starts with."""
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
        """The current processes."""
        return list(self._all)

    def start(self) -> None:
        """Start the first processes, so that they load in the background."""
        with self._lock:
            self._check_process()
            while len(self._all) < self.first:
                self._free.append(self._new())

    def lend(self) -> Worker | None:
        """A free process, or a new one; None if the limit is reached."""
        with self._lock:
            self._check_process()
            if self._free:
                return self._free.popleft()
            return self._new() if len(self._all) < self.most else None

    def take_back(self, worker: Worker) -> None:
        """Return a process that has answered everything."""
        with self._lock:
            if worker in self._all:
                self._free.append(worker)

    def drop(self, worker: Worker) -> None:
        """Drop a process that must not be reused; another may be started in its place."""
        with self._lock:
            if worker in self._all:
                self._all.remove(worker)
                worker.end()
                worker.hang_up()

    def replace(self, worker: Worker) -> Worker | None:
        """Stop one process and start another in its place; None if the pool was closed."""
        with self._lock:
            if worker not in self._all:
                return None
            self._all.remove(worker)
            worker.end()
            worker.hang_up()
            return self._new()

    def close(self) -> None:
        """Stop all processes; the pool may be used again."""
        with self._lock:
            self._end()
            self._reset()

    def _new(self) -> Worker:
        worker = Worker(self._reader)
        self._all.append(worker)
        return worker

    def _check_process(self) -> None:
        """In a fork of the process that started them, forget the workers: they belong to the parent."""
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
