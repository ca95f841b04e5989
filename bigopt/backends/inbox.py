"""What the driver waits for: arrivals of all workers, read by whoever waits.

A thread for each connection that reads, hands over to the thread that waits and wakes it, takes two wakings and the
interpreter's lock twice, a tenth of a millisecond each time, and Linux wakes it once more for nothing whenever the
worker has read an order. So connections of this machine, whose messages are short, are *watched* instead: whoever waits
looks at all of them and reads what has come. While nobody waits a caretaker does so now and then, so that a worker that
is gone is noticed and no pipe stays full. What comes by other ways is put in from any thread.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.25
"""Between two looks of the caretaker."""


class Inbox(Generic[T]):
    """A queue, and descriptors that are looked at while somebody waits for it.

    Attributes
    ----------
    watches : bool
        Whether this system can `watch`.
    """

    def __init__(self) -> None:
        self.watches = hasattr(select, "epoll") and hasattr(os, "eventfd")
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._watched: dict[int, tuple[Callable[[], bool], Callable[[], None]]] = {}
        self._reading, self._ringing = threading.Lock(), threading.Lock()
        self._waits = False
        self._closed = threading.Event()
        self._caretaker: threading.Thread | None = None
        if self.watches:
            self._poll = select.epoll()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poll.register(self._bell, select.EPOLLIN)

    def put(self, value: T) -> None:
        """Add something, from any thread."""
        self._queue.put(value)
        with self._ringing:
            if self._waits:
                os.eventfd_write(self._bell, 1)

    def watch(self, fd: int, ready: Callable[[], bool], ended: Callable[[], None]) -> None:
        """Look at a descriptor.

        Parameters
        ----------
        fd : int
        ready : callable
            Called whenever there is something to read, by one thread at a time; puts in what it has read. Where it
            returns False it is not called again.
        ended : callable
            Called when nobody looks at the descriptor any more: it may be closed.
        """
        with self._ringing:
            if not self.watches:
                ended()
                return
            self._watched[fd] = ready, ended
            self._poll.register(fd, select.EPOLLIN)
            if self._caretaker is None:
                self._caretaker = threading.Thread(target=self._care, name="bigopt-caretaker", daemon=True)
                self._caretaker.start()

    def get(self, seconds: float) -> T:
        """Return what comes next.

        Raises
        ------
        queue.Empty
            Where nothing comes within some seconds, or what came was nothing to put in.
        """
        if not self._watched:
            return self._queue.get(timeout=min(seconds, _LOOK_SECONDS) if self.watches else seconds)
        with self._reading:
            self._waits = True
            try:
                if self._queue.empty():
                    self._look(seconds)
            finally:
                self._waits = False
        return self._queue.get_nowait()

    def get_nowait(self) -> T:
        """Return what has come; raise `queue.Empty` where nothing has."""
        return self._queue.get_nowait()

    def _look(self, seconds: float) -> None:
        found = self._poll.poll(seconds)
        self._waits = False  # what is put in from here on needs no bell
        for fd, _ in found:
            if fd == self._bell:
                os.eventfd_read(fd)
            elif fd in self._watched and not self._watched[fd][0]():
                self._poll.unregister(fd)
                self._watched.pop(fd)[1]()

    def _care(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            if self._reading.acquire(blocking=False):
                try:
                    self._look(0.0)
                finally:
                    self._reading.release()

    def close(self) -> None:
        """Look at nothing any more, when whoever looks has looked; safe to call twice."""
        self._closed.set()
        with self._ringing:  # never between its making and its start
            caretaker = self._caretaker
        if caretaker is not None:
            caretaker.join()
        with self._reading, self._ringing:
            if self.watches:
                self.watches = False
                self._poll.close()
                os.close(self._bell)
            while self._watched:
                self._watched.popitem()[1][1]()
