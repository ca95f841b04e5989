"""Dask without the channel: one ordinary task a slot and round, for workers that cannot connect to the driver.

Dask itself moves the bytes, runs a task again where its worker has died and gives up after a few deaths; what it gives
up is lost and ordered again by the ledger. A slot is a worker by preference only.
"""

from __future__ import annotations

import contextlib
import queue
from typing import Any

from bigopt.backends.tasks import Packer, Parcel, Setting, run
from bigopt.core.errors import ClusterError
from bigopt.work import Arrival, Order


class DaskTaskSession:
    """Orders as tasks of Dask (see `bigopt.backends.base.Session`).

    Parameters
    ----------
    client : distributed.Client
    most : int or None
        Most workers to use; None for all.
    memory : int
        Bytes of decoded rows a worker process.
    bits : {"strict", "any"}
    run : str
        Name of the run, in keys.
    notes : tuple of str
        Why there is no channel.
    stack : contextlib.ExitStack
        What to close at the end.
    """

    def __init__(
        self,
        client: Any,
        most: int | None,
        *,
        memory: int,
        bits: str,
        run: str,
        notes: tuple[str, ...],
        stack: contextlib.ExitStack,
    ) -> None:
        self._client = client
        self._most = most
        self._setting = Setting(run, memory, "")
        self._packer = Packer(bits)
        self._notes = notes
        self._stack = stack
        self._open: dict[str, tuple[Any, Order, Parcel]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._count = 0
        self._addresses: list[str] = []
        self._look()
        self.slots = len(self._addresses)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why there is no channel, and warnings about workers."""
        return (*self._notes, *(f"warning: {text}" for text in self._packer.warnings))

    def _look(self) -> None:
        self._addresses = sorted(self._client.scheduler_info(n_workers=-1)["workers"])[: self._most]
        if not self._addresses:
            raise ClusterError("the Dask cluster has no workers", where="backend.address")

    def submit(self, order: Order) -> None:
        """Make a task of an order."""
        import dask

        parcel = self._packer.pack(order)
        self._count += 1
        key = f"bigopt-{self._setting.session}-{self._count}"
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):  # params are what we send
            future = self._client.submit(
                run,
                self._setting,
                parcel,
                key=key,
                workers=[self._addresses[order.slot % len(self._addresses)]],
                allow_other_workers=True,
                pure=False,
                retries=0,
            )
        self._open[key] = future, order, parcel
        future.add_done_callback(lambda ended: self._ended.put(ended.key))

    def wait(self) -> Arrival:
        """Return what came of the task that ended first."""
        while True:
            try:
                key = self._ended.get(timeout=1.0)
            except queue.Empty:
                self._raise_if_closed()
                continue
            future, order, parcel = self._open.pop(key)
            try:
                return self._packer.arrival(order, parcel, future.result(timeout=60))
            except Exception as error:  # a worker that died, a result that died with its worker, a module not found
                self._raise_if_closed()
                with contextlib.suppress(Exception):
                    self._look()
                return Arrival(order, lost=f"{type(error).__name__}: {error}")

    def _raise_if_closed(self) -> None:
        if self._client.status == "closed":
            raise ClusterError("the Dask scheduler is gone", where="backend.address", hint="resume when it is back")

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Dask's own pages show the tasks."""

    def close(self) -> None:
        """Give up what runs, end the client and our own cluster; safe to call twice."""
        with contextlib.suppress(Exception):
            self._client.cancel([future for future, _, _ in self._open.values()], force=True)
        self._open.clear()
        self._stack.close()
