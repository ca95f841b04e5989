"""backup: sync with spare copies, so that a slow worker does not hold up a round.

The units of a round are cut into groups; each group has more than one holder, and the first result of a group counts.
Late copies are dropped by the ledger, so that no row is lost or counted twice, and the root is that of sync to the bit:
the tree depends on the units, not on who summed them. A worker that is still busy with a late copy gets no new one, as
long as another holder is free (Chen et al. 2016, "Revisiting distributed synchronous SGD").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bigopt.data.plan import Ints, Plan
from bigopt.strategies.base import Setting
from bigopt.strategies.sync import Sync, SyncState
from bigopt.work import Order


class Spares:
    """Where the copies of a round's orders go.

    Parameters
    ----------
    groups : int or None
        Pieces a round is cut into; None for the workers less the spares.
    spares : int
        Holders of a group beside the first.
    """

    def __init__(self, groups: int | None, spares: int) -> None:
        self._groups = groups
        self._spares = spares
        self._load: Counter[int] = Counter()

    def _cut(self, slots: int) -> int:
        return self._groups or max(1, slots - self._spares)

    def holders(self, group: int, slots: int) -> list[int]:
        """Return the slots that hold a group: group, group + groups, ... around the workers."""
        step = self._cut(slots)
        found = dict.fromkeys((group + k * step) % slots for k in range(slots))
        found.update(dict.fromkeys(range(slots)))
        return list(found)[: self._spares + 1]

    def homes(self, plan: Plan, units: Ints, slots: int) -> Ints:
        """Return the group of each unit."""
        return plan.homes(units, self._cut(slots))

    def copies(self, orders: list[Order], slots: int) -> list[Order]:
        """Return the orders of a round, one a group, with their copies: each group once before any twice."""
        busy = {slot for slot, load in self._load.items() if load > 0}
        free = {order.slot: [s for s in self.holders(order.slot, slots) if s not in busy] for order in orders}
        taken: set[int] = set()
        first: list[Order] = []
        second: list[Order] = []
        for order in sorted(orders, key=lambda o: len(free[o.slot])):
            group = order.slot
            mine = [s for s in free[group] if s not in taken]
            chosen = mine[0] if mine else min(self.holders(group, slots), key=lambda s: (self._load[s], s in taken))
            taken.add(chosen)
            first.append(replace(order, slot=chosen))
            second += [replace(order, slot=s) for s in free[group] if s != chosen]
        for order in (*first, *second):
            self._load[order.slot] += 1
        return [*first, *second]

    def landed(self, order: Order) -> None:
        """Note that a slot is done with an order."""
        self._load[order.slot] -= 1

    def sent(self, orders: list[Order]) -> None:
        """Note orders that are repeated."""
        for order in orders:
            self._load[order.slot] += 1


def machine(setting: Setting, state: SyncState) -> Sync:
    """Return a synchronous machine whose orders have copies."""
    options = setting.options
    return Sync(setting, state, Spares(options.get("replicas"), options["spares"]))
