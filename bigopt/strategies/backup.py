"""backup: sync with spare copies, so that a slow worker does not hold up a round.

The units of a round are cut into groups; each group has more than one holder, and the first result of a group counts.
Late copies are dropped by the ledger, so that no row is lost or counted twice, and the root is that of sync to the bit:
the tree depends on the units, not on who summed them. A copy is sent only to a worker that is idle, at the start of a
round or when it is done with its own group before others are; so a slow worker, still busy with a late copy, is left
alone as long as another holder is free (Chen et al. 2016, "Revisiting distributed synchronous SGD").

Compressed gradients without error feedback go the same way. With it an order can only be answered where the residual of
its group is, and `bigopt.strategies.mirrors` says who gets it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bigopt.data.plan import Ints, Plan
from bigopt.strategies.base import Setting
from bigopt.strategies.compressed import Compressed
from bigopt.strategies.decoding import CompressedState
from bigopt.strategies.mirrors import Mirrors
from bigopt.strategies.rounds import SyncState
from bigopt.strategies.sync import Sync
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
        self._slots = 1
        self._open: list[Order] = []
        self._copies: dict[int, set[int]] = {}

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

    def first(self, orders: list[Order], slots: int) -> list[Order]:
        """Return the orders of a round, one a group, with copies for the workers that would be idle.

        Every group goes to a free holder, the one with the fewest first; only where none is free it waits for the least
        loaded one.
        """
        self._slots = slots
        self._open, self._copies = orders, {order.slot: set() for order in orders}
        free = {order.slot: [s for s in self.holders(order.slot, slots) if not self._load[s]] for order in orders}
        sent: list[Order] = []
        for order in sorted(orders, key=lambda o: len(free[o.slot])):
            idle = [s for s in free[order.slot] if not self._load[s]]
            slot = idle[0] if idle else min(self.holders(order.slot, slots), key=lambda s: self._load[s])
            sent.append(self._send(order, slot))
        return sent + self._help(orders)

    def more(self, wanted: list[Order]) -> list[Order]:
        """Return copies of the groups still wanted, for workers that have become idle."""
        return self._help(wanted)

    def _help(self, wanted: list[Order]) -> list[Order]:
        sent: list[Order] = []
        for order in sorted(wanted, key=lambda o: len(self._copies[o.slot])):
            for slot in self.holders(order.slot, self._slots):
                if len(self._copies[order.slot]) > self._spares:
                    break
                if not self._load[slot] and slot not in self._copies[order.slot]:
                    sent.append(self._send(order, slot))
        return sent

    def _send(self, order: Order, slot: int) -> Order:
        self._load[slot] += 1
        self._copies[order.slot].add(slot)
        return replace(order, slot=slot)

    def landed(self, order: Order) -> None:
        """Note that a slot is done with an order, of whatever round."""
        self._load[order.slot] -= 1

    def again(self, orders: list[Order]) -> None:
        """Note orders that are repeated."""
        for order in orders:
            self._load[order.slot] += 1

    @property
    def groups(self) -> list[Order]:
        """The orders of the round, as the plan has them."""
        return self._open


def machine(setting: Setting, state: SyncState) -> Sync:
    """Return a synchronous machine whose orders have copies."""
    options = setting.options
    return Sync(setting, state, Spares(options.get("replicas"), options["spares"]))


def compressed_machine(setting: Setting, state: CompressedState) -> Compressed:
    """Return a synchronous machine that is sent codes, and whose orders have copies."""
    assert setting.compressed is not None
    work, spares = setting.compressed(state.replicas), setting.options["spares"]
    if not work.feedback:
        return Compressed(setting, state, work, placement=Spares(state.replicas, spares))
    if setting.slots < state.replicas * (spares + 1):
        setting.tell(
            f"warning: {state.replicas} groups with {spares} spares each need {state.replicas * (spares + 1)} workers, "
            f"with error feedback; of {setting.slots} some have fewer spares"
        )
    fresh = state.committed == 0 and not state.log
    return Compressed(setting, state, work, mirrors=Mirrors(state.replicas, spares, fresh=fresh))
