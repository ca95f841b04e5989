"""The ledger: each unit of a round is accepted exactly once, whatever an engine repeats, loses or delivers twice.

A `Round` holds one Map-Reduce: it makes the orders, accepts arrivals into the tree, drops whole what overlaps with what
is accepted already, and orders lost units again under a new attempt number until the retries are used up.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigopt.backends.base import Session
from bigopt.core import tree
from bigopt.core.buffers import Buffers
from bigopt.core.errors import ClusterError
from bigopt.core.sums import merge, merging
from bigopt.data.plan import Ints
from bigopt.work import Arrival, Order, Work

if TYPE_CHECKING:
    from bigopt.backends.peers_round import Peers
    from bigopt.backends.slices import Slicer


@dataclass
class Ledger:
    """Counters of a whole run.

    Parameters
    ----------
    rounds : int
        Map-Reduces finished.
    planned, accepted : int
        Units ordered by the plan, and units accepted; equal at the end of every round.
    executed : int
        Units of all arrivals that were done: more than `accepted` where work was repeated.
    duplicates : int
        Units dropped because they were accepted before.
    lost : int
        Units ordered again.
    messages : int
        Arrivals that carried values.
    bytes_sent, bytes_received : int
        Bytes of vectors and descriptors, driver to workers and back.
    bytes_read : int
        Bytes read from the store.
    rows : int
        Rows summed.
    bytes_codes, bytes_uncoded : int
        Bytes of compressed gradients that were used, and what they would have been uncompressed.
    """

    rounds: int = 0
    planned: int = 0
    accepted: int = 0
    executed: int = 0
    duplicates: int = 0
    lost: int = 0
    messages: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_read: int = 0
    rows: int = 0
    bytes_codes: int = 0
    bytes_uncoded: int = 0


class Round:
    """One Map and Reduce.

    Parameters
    ----------
    ticket : int
        Number of the round, unique in a session.
    work : Work
    inputs : tuple of ndarray
    units : ndarray, shape (k, 4)
        The leaves, in the plan's order; at least one.
    homes : ndarray, shape (k,)
        Ascending slots.
    retries : int
        How often lost units are ordered again.
    ledger : Ledger
        Counters to add to.
    where : str
        What the round is, for messages ("step 12").
    merge : callable
        What the tree is folded with.
    slicer : Slicer or None
        Cuts gradients that are large (`bigopt.backends.slices`).
    """

    def __init__(
        self,
        ticket: int,
        work: Work,
        inputs: tuple[Any, ...],
        units: Ints,
        homes: Ints,
        *,
        retries: int,
        ledger: Ledger,
        where: str,
        merge: Callable[[Any, Any], Any] = merge,
        slicer: Slicer | None = None,
    ) -> None:
        if len(units) == 0:
            raise ValueError("a round without units")
        self.ticket = ticket
        self.work = work
        self.units = units
        self.seconds_map = 0.0
        self.rss = 0
        self.where = where
        self._inputs = inputs
        self._homes = homes
        self._retries = retries
        self._ledger = ledger
        self._accepted = np.zeros(len(units), dtype=np.bool_)
        self._missed = len(units)  # how many are not accepted yet
        self._merge = merge
        self._fold: tree.Fold[Any] = tree.Fold(len(units), merge)
        self._cut = None if slicer is None else slicer.cut(work)
        ledger.planned += len(units)

    @property
    def done(self) -> bool:
        """Whether every unit is accepted, in all slices."""
        return self._missed == 0 and (self._cut is None or self._cut.last)

    def wants(self, order: Order) -> bool:
        """Return whether some units of an order are not accepted yet."""
        return not bool(self._accepted[order.start : order.stop].all())

    @property
    def value(self) -> Any:
        """The root of the tree; a partial sum is never given out."""
        if not self.done:
            raise RuntimeError(f"round {self.ticket} is not complete")
        return self._fold.root if self._cut is None else self._cut.take(self._fold.root)

    def orders(self) -> list[Order]:
        """Return one order for each slot that has units."""
        homes, start, stop = self._homes.tolist(), 0, 0
        orders = []
        for slot, run in itertools.groupby(homes):
            start, stop = stop, stop + len(list(run))
            orders.append(self._order(start, stop, 0, slot))
        return orders

    def _order(self, start: int, stop: int, attempt: int, slot: int) -> Order:
        work, inputs = self.work, self._inputs
        if self._cut is not None:
            work = self._cut.work
            kept = self._retries > 0 and attempt == 0 and not self._cut.first  # by its slot
            inputs = () if kept else inputs
        return Order(self.ticket, attempt, slot, work, inputs, len(self.units), start, self.units[start:stop])

    def accept(self, arrival: Arrival) -> list[Order]:
        """Take an arrival into the tree.

        Returns
        -------
        list of Order
            Units to order again.

        Raises
        ------
        ClusterError
            Where units were lost more often than ``backend.retries`` allows: named, with their partitions.
        BigoptError
            What a worker found wrong with data or conf.
        """
        order, ledger = arrival.order, self._ledger
        size = order.stop - order.start
        if arrival.error is not None:
            raise arrival.error
        if order.ticket != self.ticket or self._late(order):
            ledger.duplicates += size
            return []
        if arrival.lost:
            return self._again(order, arrival.lost)
        ledger.messages += 1
        once = self._cut is None or self._cut.first
        ledger.executed += size * once
        ledger.bytes_sent += arrival.sent
        ledger.bytes_received += arrival.received
        ledger.bytes_read += arrival.stats.bytes_read
        expected = tree.cover(order.start, order.stop, len(self.units))
        if arrival.nodes is None or tuple(arrival.nodes) != expected:
            return self._again(order, "a result that is not what was ordered")
        if self._missed < len(self.units) and self._accepted[order.start : order.stop].any():
            ledger.duplicates += size
            return self._missing(order)
        self._accepted[order.start : order.stop] = True
        self._missed -= size
        if once:
            ledger.accepted += size
            ledger.rows += arrival.stats.rows
        self.seconds_map = max(self.seconds_map, arrival.stats.seconds)
        self.rss = max(self.rss, arrival.stats.rss)
        for node, value in arrival.nodes.items():
            self._fold.add(node, value)
        if self.done:
            ledger.rounds += 1
        elif self._cut is not None and self._missed == 0:
            self._cut.next(self._fold.root)
            self._fold = tree.Fold(len(self.units), self._merge)
            self._accepted[:], self._missed = False, len(self.units)
            return self.orders()
        return []

    def _late(self, order: Order) -> bool:
        """Whether an order asked for a slice that is complete."""
        return self._cut is not None and order.work is not self._cut.work

    def _again(self, order: Order, reason: str) -> list[Order]:
        if self._accepted[order.start : order.stop].all():
            return []
        if order.attempt >= self._retries:
            first, last = int(order.units[0][0]), int(order.units[-1][0])
            raise ClusterError(
                f"partitions {first}..{last} of round {self.ticket} were lost {order.attempt + 1} times: {reason}",
                where=self.where,
                hint="a partition that kills its worker? raise backend.retries or the workers' memory, then resume",
            )
        return self._missing(order)

    def _missing(self, order: Order) -> list[Order]:
        """Order again, one attempt later, the ranges of an order that are not accepted."""
        open_ = np.flatnonzero(~self._accepted[order.start : order.stop]) + order.start
        if len(open_) == 0:
            return []
        self._ledger.lost += len(open_)
        cuts = np.flatnonzero(np.diff(open_) > 1) + 1
        return [self._order(int(r[0]), int(r[-1]) + 1, order.attempt + 1, order.slot) for r in np.split(open_, cuts)]


class Rounds:
    """Makes the rounds of a run, with ticket numbers that are never used twice.

    Several may be under way at once: `run` keeps arrivals of other rounds for whoever calls `wait` next.

    Parameters
    ----------
    ledger : Ledger
    retries : int
        ``backend.retries``.

    Attributes
    ----------
    slicer : Slicer or None
        Cuts large gradients; None where nothing travels.
    peers : Peers or None
        Says which rounds are added by workers (`bigopt.backends.peers_round`); None for no round.
    buffers : Buffers
        Lend the sums.
    """

    def __init__(self, ledger: Ledger, retries: int) -> None:
        self.ledger = ledger
        self.retries = retries
        self.slicer: Slicer | None = None
        self.peers: Peers | None = None
        self._ticket = 0
        self.buffers = Buffers()
        self._merge = merging(self.buffers, lazy=True)
        self._kept: deque[Arrival] = deque()

    def new(self, work: Work, inputs: tuple[Any, ...], units: Ints, homes: Ints, *, where: str) -> Round:
        """Return the next round; see `Round`."""
        self._ticket += 1
        kind = Round if self.peers is None else self.peers.kind(work, inputs, homes)
        return kind(
            self._ticket,
            work,
            inputs,
            units,
            homes,
            retries=self.retries,
            ledger=self.ledger,
            where=where,
            merge=self._merge,
            slicer=self.slicer,
        )

    def run(
        self,
        session: Session,
        work: Work,
        inputs: tuple[Any, ...],
        units: Ints,
        homes: Callable[[int], Ints],
        where: str,
    ) -> Any:
        """Run one round by itself and return the root of its tree.

        Parameters
        ----------
        homes : callable
            ``homes(slots)`` gives the slot of each unit.
        """
        round_ = self.new(work, inputs, units, homes(session.slots), where=where)
        orders = round_.orders()
        while not round_.done:
            for order in orders:
                session.submit(order)
            orders = []
            arrival = session.wait()
            if arrival.order.ticket == round_.ticket:
                orders = round_.accept(arrival)
            else:
                self._kept.append(arrival)
        return round_.value

    def wait(self, session: Session) -> Arrival:
        """Return the next arrival: one that was kept, else the session's."""
        return self._kept.popleft() if self._kept else session.wait()

    def late(self, arrival: Arrival) -> None:
        """Count an arrival that nobody waits for: its units are dropped.

        Raises
        ------
        BigoptError
            What a worker found wrong with data or conf.
        """
        if arrival.error is not None:
            raise arrival.error
        self.ledger.duplicates += arrival.order.stop - arrival.order.start
