"""backup with error feedback: a spare holder of a group mirrors its residual, by computing the group's every step.

Without feedback a copy of an order may go to whoever is idle (`bigopt.strategies.backup`). With it only a worker can
answer that has the residual of the group, and the only way to have it without sending vectors up is to have gone
through all of the group's steps. So a **holder** is sent each order of its group and no other; the same residual,
params and rows give every holder of a group the same code and the same next residual, whoever answers first. The first
answer counts, the others are dropped, and the bits are those of `sync` with as many replicas. g groups with s spares
each need g (s + 1) workers; where there are fewer, some groups have fewer spares.

A holder is **current** as long as it was sent every step. One that falls behind by several orders is sent no more of
them, so that a slow worker delays nobody; neither is one that died. It is current again when it is sent the residual
too: with the step after a commit, when the driver has it, or where no current holder is left and the group is caught up
(`bigopt.strategies.compressed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy.typing as npt

from bigopt.data.kept import Missing
from bigopt.work import Arrival, Order

Array = npt.NDArray[Any]

_BEHIND: Final = 8
"""Orders that a current holder may have to do."""


def groups(slots: int, spares: int, *, feedback: bool) -> int:
    """Return into how many groups a batch is cut where no conf says; with feedback each has spares of its own."""
    return max(1, slots // (spares + 1) if feedback else slots - spares)


def _group(order: Order) -> int:
    return int(order.units[0, 0])


class Mirrors:
    """Where the orders of groups go that have residuals.

    Parameters
    ----------
    number : int
        Of groups.
    spares : int
        Holders of a group beside the first.
    fresh : bool
        Whether the run begins: residuals are zero, and every holder has them.
    """

    def __init__(self, number: int, spares: int, *, fresh: bool) -> None:
        self._number = number
        self._spares = spares
        self._fresh = set(range(number)) if fresh else set[int]()
        self._current: dict[int, set[int]] = {g: set() for g in range(number)}
        self._load: Counter[int] = Counter()
        self._out: dict[tuple[int, int], Counter[int]] = {}  # (ticket, group): who has orders of it

    def holders(self, group: int, slots: int) -> list[int]:
        """Return the slots that hold a group: of their own where there are enough, else a shared one."""
        if slots < self._number:
            return [group * slots // self._number]
        return list(range(group, slots, self._number))[: self._spares + 1]

    def knows(self, group: int, slots: int) -> bool:
        """Return whether some holder is current."""
        return group in self._fresh or bool(self._current[group] & set(self.holders(group, slots)))

    def steps(self, orders: list[Order], slots: int, residuals: Mapping[int, Array]) -> list[Order]:
        """Return the orders of a step for all current holders, and for idle ones that `residuals` makes current."""
        sent: list[tuple[int, Order, int]] = []
        for order in orders:
            group, holders = _group(order), self.holders(_group(order), slots)
            current = [s for s in holders if group in self._fresh or s in self._current[group]]
            self._fresh.discard(group)
            able = [s for s in current if self._load[s] < _BEHIND] or [min(current, key=lambda s: self._load[s])]
            joining = [s for s in holders if s not in able and not self._load[s] and group in residuals]
            self._current[group] = {*able, *joining}
            sent += [(number, order, slot) for number, slot in enumerate(able)]
            more = [replace(order, inputs=(*order.inputs, residuals[group])) for _ in joining]
            sent += [(len(able), other, slot) for other, slot in zip(more, joining, strict=True)]
        return [self._sent(order, slot) for _, order, slot in sorted(sent, key=lambda entry: entry[0])]

    def whole(self, order: Order, slots: int) -> list[Order]:
        """Return copies of an order that brings the residual, for the idle holders, or for the one with least to do."""
        group, holders = _group(order), self.holders(_group(order), slots)
        idle = [s for s in holders if not self._load[s]] or [min(holders, key=lambda s: self._load[s])]
        self._fresh.discard(group)
        self._current[group] = set(idle)
        return [self._sent(order, slot) for slot in idle]

    def _sent(self, order: Order, slot: int) -> Order:
        self._load[slot] += 1
        self._out.setdefault((order.ticket, _group(order)), Counter())[slot] += 1
        return replace(order, slot=slot)

    def again(self, orders: list[Order]) -> list[Order]:
        """Note orders that are repeated where they were; return them."""
        return [self._sent(order, order.slot) for order in orders]

    def landed(self, arrival: Arrival) -> bool:
        """Note an arrival; return whether it says nothing, for others are still at the same order."""
        order, group = arrival.order, _group(arrival.order)
        slot, place = order.slot, (order.ticket, group)
        out = self._out.get(place, Counter[int]())
        if out[slot]:
            self._load[slot] -= 1
            out = out - Counter([slot])
            self._out[place] = out
        if not out:
            self._out.pop(place, None)
        parts = [part for value in (arrival.nodes or {}).values() for part in value.parts]
        if arrival.error is not None or (parts and not any(isinstance(part, Missing) for part in parts)):
            return False
        self._current[group].discard(slot)
        return bool(out) and bool(parts)
