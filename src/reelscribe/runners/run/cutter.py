"""Cuts out the parts of videos that captions are about, in killable processes that run alongside the captioner.

A part that cannot be cut is a failure of its row, like a video that cannot be read.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from ...data import Target
from ...data.pieces import Piece
from ...data.videofolder import piece_of
from ...types import Failure, Sample
from ...video.limits import ReadLimits
from ...video.processes.jobs import MAX_ATTEMPTS, Doubt
from ...video.processes.pool import LostError, WorkerPool, usable_processors

MAX_CUTTERS = 8
"""Most processes that cut."""
CUTTING = "reelscribe.video.cutting:attempt"


class Cutter:
    """Cuts out the parts that rows are about; processes start with the first one.

    Args:
        target: the output; determines where parts go and how they are cut.
        limits: limits of reading; those on time and memory apply to cutting too.
    """

    def __init__(self, target: Target, limits: ReadLimits) -> None:
        self._target = target
        self._limits = limits
        self._lock = threading.Lock()
        self._closed = False
        self._begun = dict[int, Future[Failure | None]]()
        workers = min(usable_processors(), MAX_CUTTERS)
        self._pool = WorkerPool(workers, reader=CUTTING)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="cut-video")

    def begin(self, number: int, row: Sample) -> None:
        """Start cutting the part for a row, if there is one; returns at once."""
        with self._lock:
            if number not in self._begun:
                self._begun[number] = self._threads.submit(self._cut_for, row)

    def end(self, number: int, row: Sample) -> Failure | None:
        """Wait for the part of a row; returns why it failed, if it did."""
        self.begin(number, row)
        with self._lock:
            waiting = self._begun.pop(number)
        return waiting.result()

    def forget(self, number: int) -> None:
        """Cancel the part for a row."""
        with self._lock:
            waiting = self._begun.pop(number, None)
        if waiting is not None:
            waiting.cancel()

    def close(self) -> None:
        """Stop the processes; incomplete parts are dropped."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def _cut_for(self, row: Sample) -> Failure | None:
        piece = piece_of(row, self._target.path.parent, self._target.layout)
        if piece is None or piece.is_there:
            return None
        piece.waiting.parent.mkdir(exist_ok=True)
        return self._cut(piece)

    def _cut(self, piece: Piece) -> Failure | None:
        """Cut; after a crash or timeout try once more in a new process, in the most conservative way."""
        began = time.monotonic()
        failure: Failure | None = None
        for attempt in range(MAX_ATTEMPTS):
            outcome = self._try(piece, plain=attempt > 0)
            if not isinstance(outcome, Doubt):
                failure = outcome
                break
            failure = outcome.failure
        if failure is None:
            return None
        return replace(failure, attempts=attempt + 1, seconds=time.monotonic() - began)

    def _try(self, piece: Piece, *, plain: bool) -> Failure | Doubt | None:
        if self._closed:
            raise RuntimeError("the cutting processes were stopped")
        worker = self._pool.lend()
        assert worker is not None, "there are as many processes as threads"
        settings = {
            "window": piece.window,
            "limits": self._limits,
            "target": piece.waiting,
            "cut": piece.cut,
            "plain": plain,
        }
        try:
            worker.send(str(piece.source), settings)
            outcome, _ = worker.receive(limits=self._limits)
        except LostError as lost:
            self._pool.drop(worker)
            return Doubt(lost.failure)
        except BaseException:
            self._pool.drop(worker)
            raise
        if isinstance(outcome, Doubt):
            self._pool.drop(worker)
            return outcome
        self._pool.take_back(worker)
        return outcome if isinstance(outcome, Failure) else None
