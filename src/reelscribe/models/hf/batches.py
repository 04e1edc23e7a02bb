"""Form and prepare batches in a separate thread while earlier ones run.

Knows who waits for whom; what an item is and how it is prepared is defined by functions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Generic, Self, TypeVar

from ..puller import Background, Puller, join_briefly
from .waiting import Item, Waiting

Pulled = TypeVar("Pulled")
Prepared = TypeVar("Prepared")


class Batch(Generic[Item, Prepared]):
    """Items that run together, and their prepared inputs.

    Args:
        items: what runs.
        prepare: makes the inputs of the items; its exception belongs to them.
        later: returns the items that are known to run in other batches.
        alone: keeps everyone else from running and preparing.
    """

    def __init__(
        self,
        items: Sequence[Item],
        prepare: Callable[[Sequence[Item]], Prepared],
        *,
        later: Callable[[], Sequence[Item]] = tuple,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.items = items
        """The items."""
        self.later = later
        """What is known to run later, or elsewhere, by now."""
        self.alone = alone
        """A context in which nothing else runs, is prepared, or is held prepared."""
        self.has_neighbours = alone is not nullcontext
        """Whether others may run, or be prepared and held, at the same time."""
        self._prepare = prepare
        self._prepared: Prepared | None = None
        self._error: Exception | None = None

    def prepare(self) -> None:
        """Prepare now; an exception is raised by `prepared`."""
        try:
            self._prepared = self._prepare(self.items)
        except Exception as exc:  # raised in the owner of the batch
            self._error = exc

    def release(self) -> None:
        """Release the prepared inputs; `prepared` makes them again."""
        self._prepared = self._error = None

    def prepared(self) -> Prepared:
        """The inputs of the items, made now if not made ahead; they are handed over, not kept.

        Raises:
            Exception: what preparing raised.
        """
        made, error = self._prepared, self._error
        self.release()
        if error is not None:
            raise error
        return self._prepare(self.items) if made is None else made

    def of(self, items: Sequence[Item]) -> Batch[Item, Prepared]:
        """The same batch with other, unprepared items."""
        return Batch(items, self._prepare, later=self.later, alone=self.alone)

    def parts(self, size: int) -> Iterator[Batch[Item, Prepared]]:
        """Unprepared batches of `size` items, to be run one after the other inside `alone`."""
        later = self.later()
        for start in range(0, len(self.items), size):
            rest = [*self.items[start + size :], *later]
            yield Batch(self.items[start : start + size], self._prepare, later=partial(list, rest))


class PreparedBatches(Background, Generic[Pulled, Item, Prepared]):
    """An iterator over batches; the next one is formed and prepared while its owners are busy with theirs.

    One thread pulls, another forms and prepares; at most one formed batch waits. While all owners are busy the next
    batch keeps filling. Owners iterate, each in its own thread if there are several, and work on their batch until they
    ask for the next. An exception of `stream` is raised in each, before any further batch.

    Args:
        stream: source of the items; advanced, and finally closed, in its own thread.
        item_of: makes an item from what is pulled; its exception is raised here.
        waiting: chooses what makes a batch.
        prepare: makes the inputs of a batch; its exception is raised by the batch.
        ahead: whether batches are prepared in the other thread; otherwise by their owner, when they run.
        owners: how many iterate.
        begin: called first in the preparing thread.
        now: seconds on the clock that `waiting` uses.
    """

    def __init__(
        self,
        stream: Iterable[Pulled],
        *,
        item_of: Callable[[Pulled], Item],
        waiting: Waiting[Item],
        prepare: Callable[[Sequence[Item]], Prepared],
        ahead: bool = True,
        owners: int = 1,
        begin: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("prepare-batches")
        self._item_of = item_of
        self._waiting = waiting
        self._prepare = prepare
        self._ahead = ahead
        self._owners = owners
        self._begin = begin
        self._now = now
        self._preparing = threading.Lock()
        self._next: Batch[Item, Prepared] | None = None
        self._running: dict[int, Batch[Item, Prepared]] = {}  # by owner
        self._idle_owners = 0
        self._want_to_be_alone: set[int] = set()
        self._puller = Puller(stream, notify=self._notify)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch[Item, Prepared]:
        owner = self._owner()
        with self._changed:
            self._running.pop(owner, None)
            self._idle_owners += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(self._can_answer)
            finally:
                self._idle_owners -= 1
            if self._error is not None:
                raise self._error
            if self._next is None:
                raise StopIteration
            batch, self._next = self._next, None
            self._running[owner] = batch
            self._changed.notify_all()
            return batch

    def _owner(self) -> int:
        """The calling owner: a single owner may change threads."""
        return threading.get_ident() if self._owners > 1 else 0

    @property
    def closing(self) -> bool:
        """Whether the running batches are no longer needed."""
        return self._closing

    def _can_answer(self) -> bool:
        if self._next is None or self._error is not None:
            return self._over or self._closing
        return self._want_to_be_alone <= {self._owner()}

    @property
    def is_last(self) -> bool:
        """Whether only the calling owner's batch is running, and nothing will come after it."""
        with self._changed:
            return self._over and self._next is None and not self._others()

    def _others(self) -> list[Batch[Item, Prepared]]:
        owner = self._owner()
        return [batch for other, batch in self._running.items() if other != owner]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In an owner: while the body runs no other batch runs, nothing is prepared, and inputs prepared ahead are
        released."""
        owner = self._owner()
        with self._changed:
            batch = self._running.pop(owner, None)  # others who want to be alone need not wait for this one
            self._want_to_be_alone.add(owner)
            self._changed.notify_all()
        try:
            with self._preparing:
                with self._changed:
                    self._changed.wait_for(lambda: not self._running or self._closing)
                    if self._next is not None:
                        self._next.release()
                yield
        finally:
            with self._changed:
                self._want_to_be_alone.discard(owner)
                if batch is not None:
                    self._running.setdefault(owner, batch)
                self._changed.notify_all()

    def _later(self) -> list[Item]:
        """Known items of batches other than the calling owner's."""
        with self._changed:
            batches = [*self._others(), *([self._next] if self._next is not None else [])]
            return [*(item for batch in batches for item in batch.items), *self._waiting.items]

    def close(self) -> None:
        """Stop taking and preparing; both threads end after their current step."""
        with self._changed:
            self._closing = True
            self._next = None
            self._changed.notify_all()
        self._puller.close()
        join_briefly(self._thread)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # the preparing thread

    def _work(self) -> None:
        self._begin()
        while self._prepare_next():
            pass

    def _prepare_next(self) -> bool:
        """Form a batch, prepare it and offer it; False when there are no more."""
        batch = self._form()
        if batch is None:
            return False
        with self._preparing:
            if self._ahead:
                batch.prepare()
            with self._changed:
                self._next = None if self._closing else batch
                self._changed.notify_all()
        return True

    def _form(self) -> Batch[Item, Prepared] | None:
        """Wait for the next batch; None when there are no more."""
        with self._changed:
            while not self._closing:
                self._collect()
                items = self._choose() if self._next is None else []
                if items:
                    alone = self.alone if self._ahead or self._owners > 1 else nullcontext
                    return Batch(items, self._prepare, later=self._later, alone=alone)
                if self._puller.ended and not self._waiting.items:
                    return None
                self._changed.wait(self._seconds_to_wait())
        return None

    def _collect(self) -> None:
        """Take what is ready, as far as there is room."""
        while self._waiting.has_room and (pulled := self._puller.take()) is not None:
            self._waiting.add(self._item_of(pulled), self._now())

    def _choose(self) -> list[Item]:
        return self._waiting.next_batch(self._now(), idle=self._idle_owners > 0, ended=self._puller.ended)

    def _seconds_to_wait(self) -> float | None:
        """Time after which the next batch may go out although nothing has come; None: not by waiting alone."""
        return self._waiting.seconds_left(self._now()) if self._idle_owners and self._next is None else None
