"""The embedded backend: one thread a slot in this process, no engine, no copies, NumPy alone."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

from bigopt.backends.base import Watched, one_blas_thread
from bigopt.core.buffers import Ahead
from bigopt.core.errors import BigoptError
from bigopt.data.cache import BlockCache
from bigopt.work import Arrival, Order, execute, on_card


class LocalSession:
    """Threads of this process.

    Parameters
    ----------
    slots : int
        Number of threads.
    memory : int
        Bytes for decoded rows, shared by all threads.
    """

    def __init__(self, slots: int, memory: int) -> None:
        self.slots = slots
        self.notes: tuple[str, ...] = ()
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(one_blas_thread())
        self._blocks = BlockCache(memory, slots)
        self._orders: list[queue.SimpleQueue[Order | None]] = [queue.SimpleQueue() for _ in range(slots)]
        self._arrivals: queue.SimpleQueue[Arrival | BaseException] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(orders,), name=f"bigopt-slot-{i}", daemon=True)
            for i, orders in enumerate(self._orders)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, orders: queue.SimpleQueue[Order | None]) -> None:
        watched, ahead = Watched(), Ahead()
        self._blocks.buffers.ahead = ahead
        while (order := orders.get()) is not None:
            try:
                if on_card(order.work):
                    self._blocks.use_card(order.slot)
                nodes, stats = execute(
                    self._blocks, order.work, order.inputs, order.leaves, order.start, order.units, order.ahead
                )
                self._arrivals.put(Arrival(order, nodes, stats._replace(rss=watched.rss())))
                if len(order.units) == 1:  # while the driver makes its step
                    ahead.gather()
                else:
                    ahead.forget()
            except BigoptError as error:
                self._arrivals.put(Arrival(order, error=error))
            except BaseException as error:  # handed to the driver's thread, which raises it
                self._arrivals.put(error)

    def submit(self, order: Order) -> None:
        """Queue an order at its slot."""
        self._orders[order.slot % self.slots].put(order)

    def wait(self) -> Arrival:
        """Return the next arrival; an unexpected error of a thread is raised here."""
        arrival = self._arrivals.get()
        if isinstance(arrival, BaseException):
            raise arrival
        return arrival

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Nobody watches an embedded engine but the caller."""

    def close(self) -> None:
        """End the threads; the decoded blocks go with the session."""
        for orders in self._orders:
            orders.put(None)
        for thread in self._threads:
            thread.join()
        self._exit.close()
