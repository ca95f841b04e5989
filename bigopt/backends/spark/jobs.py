"""Spark without the channel: one job a round, one task a slot, for executors that cannot connect to the driver.

Spark itself moves the bytes, by broadcast where they are many. A job that Spark gives up (``local[k]`` never retries)
has lost all its orders; the ledger orders them again.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from bigopt.backends.slices import answer_bytes
from bigopt.backends.spark.context import Started, first_line
from bigopt.backends.tasks import Packer, Parcel, Setting, run
from bigopt.core.errors import ClusterError, ConfError
from bigopt.work import Arrival, Order

_RESULTS: Final = "spark.driver.maxResultSize"
_CLOSURE: Final = 100_000
"""Bytes of inputs above which they are broadcast."""


class SparkJobSession:
    """Orders as jobs of Spark (see `bigopt.backends.base.Session`).

    Parameters
    ----------
    started : Started
        The context; stopped by `close` where it was made for this session.
    slots : int
        Tasks of a job.
    memory : int
        Bytes for decoded rows in each Python worker.
    bits : str
        ``run.bits``.
    run : str
        What Spark's pages call the run.
    notes : tuple of str
        Why there is no channel.
    """

    def __init__(
        self, started: Started, slots: int, *, memory: int, bits: str, run: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.slots = slots
        self._notes = (*started.notes, *notes)
        self._started = started
        self._sc = started.sc
        self._name = f"bigopt {run}"
        self._text = ""
        self._setting = Setting(run, memory, os.getcwd())
        self._packer = Packer(bits)
        self._rdd = self._sc.parallelize(range(slots), slots)
        self._limit = int(self._sc._jsc.sc().conf().getSizeAsBytes(_RESULTS, "1g"))  # 0 is none
        self._orders: list[tuple[Order, Parcel]] = []
        self._arrivals: deque[Arrival] = deque()
        self._closed = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Addresses, why there is no channel, and warnings about workers."""
        return (*self._notes, *(f"warning: {text}" for text in self._packer.warnings))

    def note(self, text: str) -> None:
        """Add a note."""
        self._notes += (text,)

    def submit(self, order: Order) -> None:
        """Keep an order for the next job."""
        self._orders.append((order, self._packer.pack(order)))

    def wait(self) -> Arrival:
        """Run what was ordered as one job, and return what came of it one by one."""
        if not self._arrivals:
            orders, self._orders = self._orders, []
            self._arrivals.extend(self._job(orders))
        return self._arrivals.popleft()

    def _job(self, orders: list[tuple[Order, Parcel]]) -> list[Arrival]:
        refuse_large([order for order, _ in orders], self._limit)
        tasks: list[list[int]] = [[] for _ in range(self.slots)]
        for index, (order, _) in enumerate(orders):
            tasks[order.slot % self.slots].append(index)
        shared = list({id(parcel.inputs): parcel.inputs for _, parcel in orders}.values())
        numbers = {id(data): k for k, data in enumerate(shared)}
        parcels = [(numbers[id(parcel.inputs)], parcel._replace(inputs=b"")) for _, parcel in orders]
        large = sum(map(len, shared)) > _CLOSURE
        values: Any = self._sc.broadcast(shared) if large else shared
        self._sc.setJobGroup(self._name, f"{self._name}: {self._text}", interruptOnCancel=True)
        try:
            body = functools.partial(_run_slot, self._setting, values, parcels, tasks)
            replies = dict(self._sc.runJob(self._rdd, body, [slot for slot, some in enumerate(tasks) if some]))
        except Exception as error:  # whatever Py4J, PySpark or a socket to the JVM raises
            if not self._started.alive:
                text = f"Spark is gone: {first_line(error)}"
                raise ClusterError(text, where="spark", hint="resume goes on from the last checkpoint") from error
            return [Arrival(order, lost=first_line(error)) for order, _ in orders]
        finally:
            if large:
                with contextlib.suppress(Exception):
                    values.destroy()
        return [self._packer.arrival(order, parcel, replies[k]) for k, (order, parcel) in enumerate(orders)]

    def report(self, text: str, record: dict[str, Any]) -> None:
        """Describe the jobs that come on Spark's pages."""
        self._text = text

    def close(self) -> None:
        """Stop a context of our own."""
        if not self._closed and self._started.owned:
            with contextlib.suppress(Exception):  # a JVM that is gone has nothing left to stop
                self._sc.stop()
        self._closed = True


def refuse_large(orders: list[Order], limit: int) -> None:
    """Refuse what Spark would end in the middle: results of a job of more bytes than the driver takes (0: any)."""
    size = sum(map(answer_bytes, orders))
    if limit and size > limit:
        raise ConfError(
            f"the sums of a round are {size / 1e6:,.0f} MB in {len(orders)} tasks, and the driver takes "
            f"{_RESULTS} = {limit / 1e6:,.0f} MB of a job",
            where="backend.channel",
            hint=f"backend.channel=auto where workers can connect, more {_RESULTS}, or fewer backend.workers",
        )


def _run_slot(
    setting: Setting, inputs: Any, parcels: list[tuple[int, Parcel]], tasks: list[list[int]], slots: Iterable[int]
) -> list[tuple[int, bytes]]:
    """Compute the orders of one slot: what a Spark task runs."""
    values = inputs if isinstance(inputs, list) else inputs.value
    mine = [k for slot in slots for k in tasks[slot]]
    return [(k, run(setting, parcels[k][1]._replace(inputs=values[parcels[k][0]]))) for k in mine]
