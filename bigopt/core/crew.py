"""Threads that wait to share the work on a long vector.

A vector of 10^6 entries is updated in a millisecond or two: to start a thread for half of that is a waste. A
`Crew` keeps its threads, which sleep between two calls; whoever calls `share` does the first part himself and hands the
others out. Parts are cut by the caller's count alone and do not see each other, so the number of threads decides
nothing but the time.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable

Work = Callable[[int, int], None]
_Orders = queue.SimpleQueue[tuple[Work, int, int, queue.SimpleQueue[BaseException | None]] | None]


class Crew:
    """Threads that are started when they are first needed and end with this object."""

    def __init__(self) -> None:
        self._orders: list[_Orders] = []

    def share(self, work: Work, count: int, parts: int) -> None:
        """Do ``work(start, stop)`` over ``0..count`` in `parts` parts at a time; return when all are done.

        Raises
        ------
        BaseException
            What a part raised; the others are done.
        """
        if parts <= 1:
            work(0, count)
            return
        while len(self._orders) < parts - 1:
            self._orders.append(_recruit(self))
        cuts = [count * k // parts for k in range(parts + 1)]
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for orders, start, stop in zip(self._orders, cuts[1:-1], cuts[2:], strict=False):
            orders.put((work, start, stop, done))
        failed: BaseException | None = None
        try:
            work(cuts[0], cuts[1])
        finally:
            for _ in range(parts - 1):
                failed = done.get() or failed
        if failed is not None:
            raise failed


def _recruit(crew: Crew) -> _Orders:
    orders: _Orders = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(orders,), name="bigopt-crew", daemon=True).start()
    weakref.finalize(crew, orders.put, None)
    return orders


def _serve(orders: _Orders) -> None:
    while (order := orders.get()) is not None:
        work, start, stop, done = order
        failed: BaseException | None = None
        try:
            work(start, stop)
        except BaseException as error:  # raised where the work was handed out
            failed = error
        del work, order
        done.put(failed)
