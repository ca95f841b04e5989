"""The embedded backend: one thread a slot in this process, no engine, no copies, NumPy alone.

Whoever waits for gradient sums computes those of the first slot himself: with as many threads as slots nobody has to be
woken for them, nor takes a core from the others. He does so only where nothing else could be done meanwhile, when all
that is under way belongs to one round. The second slot's thread, which is idle while the driver makes its step, gathers
the driver's next rows after its own. In rounds of small networks nobody is woken (`bigopt.backends.local_lanes`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter, deque
from typing import Any

from bigopt.backends.base import Watched, one_blas_thread
from bigopt.backends.local_lanes import Lanes
from bigopt.core.buffers import Ahead, Casts
from bigopt.core.errors import BigoptError
from bigopt.data.cache import BlockCache
from bigopt.work import Arrival, GradientSum, Order, execute, on_card


class LocalSession:
    """Threads of this process.

    Parameters
    ----------
    slots : int
        Number of threads.
    memory : int
        Bytes for decoded rows, shared by all threads.
    joins : bool
        Whether the thread that waits may compute; it must not where a slow slot is to be overtaken.

    Attributes
    ----------
    casts : Casts
        Params in the dtype of the blocks: who makes new ones may leave them there.
    """

    def __init__(self, slots: int, memory: int, *, joins: bool = True) -> None:
        self.slots = slots
        self.notes: tuple[str, ...] = ()
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(one_blas_thread())
        self._blocks = BlockCache(memory, slots)
        self._joins = joins
        self._mine: deque[Order] = deque()
        self._watched, self._ahead = Watched(), Ahead()  # of the thread that waits
        self.casts = Casts()
        self._lanes = Lanes(slots, self._blocks, self.casts)
        self._others: list[Order] = []  # of the other slots, beside one of `_mine`
        self._under_way: Counter[int] = Counter()  # orders by round
        self._orders: list[queue.SimpleQueue[Order | None]] = [queue.SimpleQueue() for _ in range(slots)]
        self._arrivals: queue.SimpleQueue[Arrival | BaseException] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"bigopt-slot-{slot}", daemon=True)
            for slot in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, slot: int) -> None:
        orders, watched, ahead = self._orders[slot], Watched(), Ahead()
        while (order := orders.get()) is not None:
            try:
                self._arrivals.put(self._done(order, watched, ahead))
                ahead.gather()  # while the driver makes its step
                if slot == 1:
                    self._ahead.gather()
            except BaseException as error:  # handed to the driver's thread, which raises it
                self._arrivals.put(error)

    def _done(self, order: Order, watched: Watched, ahead: Ahead) -> Arrival:
        """Compute an order in the calling thread."""
        buffers = self._blocks.buffers
        buffers.ahead, buffers.casts = ahead, self.casts
        try:
            if on_card(order.work):
                self._blocks.use_card(order.slot)
            where = order.leaves, order.start, order.units, order.ahead
            nodes, stats = execute(self._blocks, order.work, order.inputs, *where, order.slot)
        except BigoptError as error:
            return Arrival(order, error=error)
        finally:
            if len(order.units) > 1:
                ahead.forget()
        return Arrival(order, nodes, stats._replace(rss=watched.rss()))

    def submit(self, order: Order) -> None:
        """Queue an order at its slot."""
        self._under_way[order.ticket] += 1
        slot, work = order.slot % self.slots, order.work
        if self._joins and slot == 0 and isinstance(work, GradientSum) and not on_card(work):
            self._mine.append(order)
        elif self._mine:  # a round that the driver takes part in
            self._others.append(order)
        else:
            self._orders[slot].put(order)

    def wait(self) -> Arrival:
        """Return the next arrival; an unexpected error of a thread is raised here."""
        if self._mine:
            self._hand_out()
        arrival: Arrival | BaseException
        if self._lanes.busy:
            order, nodes, stats = self._lanes.end()
            arrival = Arrival(order, nodes, stats._replace(rss=self._watched.rss()))
        elif self._mine:
            arrival = self._done(self._mine.popleft(), self._watched, self._ahead)
        else:
            arrival = self._arrivals.get()
        if isinstance(arrival, BaseException):
            raise arrival
        self._under_way[arrival.order.ticket] -= 1
        if not self._under_way[arrival.order.ticket]:
            del self._under_way[arrival.order.ticket]
        return arrival

    def _hand_out(self) -> None:
        """Begin a round in the lanes where they take it, else give the slots' threads what the driver leaves them."""
        alone, mine, others = len(self._under_way) == 1, self._mine, self._others
        if others and alone and len(mine) == 1 and self._lanes.begin([*mine, *others]):
            mine.clear()
        else:
            for order in others:
                self._orders[order.slot % self.slots].put(order)
        others.clear()
        while mine and not alone:
            self._orders[0].put(mine.popleft())

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Nobody watches an embedded engine but the caller."""

    def close(self) -> None:
        """End the threads; the decoded blocks go with the session."""
        self._lanes.close()
        for orders in self._orders:
            orders.put(None)
        for thread in self._threads:
            thread.join()
        self._exit.close()
