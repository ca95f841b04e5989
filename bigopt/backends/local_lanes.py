"""Rounds of short gradient sums of networks, whose slots need neither to be woken nor the interpreter.

A step of a small network takes a few milliseconds. Where every slot's thread must be woken for it, has Python of its
own to run, and wakes the driver at the end, a fifth of them is lost to waking and to the interpreter's lock. But all
that a slot does for such an order, between its rows and its sums, is one compiled call (`bigopt.models.fused_dense`).
So the driver prepares the calls of all slots, posts those of the others to threads that stand by
(`bigopt.core.standby`), and makes the first slot's himself. While he makes his step the others gather the next rows.

What is computed is what `bigopt.work.execute` computes, by the same kernels on the same rows, added along the same
tree. A round that has other orders, or rows that are not decoded yet, goes to the slots' own threads.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from bigopt.core import compiled, fused_rows, tree
from bigopt.core.buffers import LARGE, Ahead, Buffers, Casts
from bigopt.core.errors import BigoptError
from bigopt.core.standby import Call, Standby, words
from bigopt.core.sums import Sums, merging
from bigopt.data.cache import BlockCache
from bigopt.data.meter import decode_later
from bigopt.models import fused_dense
from bigopt.models.fused import has_layers, network_call
from bigopt.models.mlp import MLP
from bigopt.work import GradientSum, Order, Stats
from bigopt.work_rows import unit_rows

_MOST: Final = 2
"""Units of an order: a lane that goes on in its next partition has two."""


class _Leaf(NamedTuple):
    grad: Any
    sums: Any
    rows: int


class _Lane:
    """What is kept for a slot: where its rows and its sums lie, and the calls that it makes."""

    def __init__(self, casts: Casts) -> None:
        self.ahead = Ahead()
        self.leaves: list[_Leaf] = []
        self.calls: list[Call] = []
        self.open = 0  # partitions that the order leaves open
        self._kept: list[Call | None] = [None] * _MOST
        self._gathering: Call | None = None
        self._rooms = [Buffers() for _ in range(_MOST)]
        for room in self._rooms:
            room.ahead, room.casts = self.ahead, casts

    def prepare(self, order: Order, blocks: BlockCache, pinned: contextlib.ExitStack) -> int:
        """Find rows and calls of an order's units, up to one that has no kernel; return the bytes that were read."""
        work = order.work
        assert isinstance(work, GradientSum)
        assert isinstance(work.model, MLP)
        self.leaves, self.calls = [], []
        (params,) = work.prepare(order.inputs, self._rooms[0])
        bytes_read = self.open = 0
        blocks.expect(order.slot, work.view, order.ahead)
        for k, unit in enumerate(order.units):
            entry, read = pinned.enter_context(blocks.block(work.view, int(unit[0])))
            bytes_read += read
            X, y, weight = unit_rows(entry, work.seed, unit, self._rooms[k])
            self.open += entry.open
            network = network_call(work.model, params, X, y, weight, self._rooms[k]) if y.ndim == 1 else None
            if network is None:
                break
            kept = self._kept[k]
            if kept is None or kept.kernel is not network.kernel or not network.like(kept.values):
                self._kept[k] = kept = Call(network.kernel, network.values)
            else:
                kept.renew(network.values)
            self.leaves.append(_Leaf(network.grad, network.sums, len(X)))
            self.calls.append(kept)
        return bytes_read

    def gathering(self) -> list[Call]:
        """Return the call that gathers the next rows, if they are known."""
        following = self.ahead.begin()
        if following is None:
            return []
        kept, kernel = self._gathering, _gatherer(compiled.name_of(following[0].dtype))
        if kept is None or kept.kernel is not kernel or kept.values[0].shape[1] != following[0].shape[1]:
            self._gathering = kept = Call(kernel, following)
        else:
            kept.renew(following)
        return [kept]

    def nodes(self, order: Order) -> dict[tree.Node, Any]:
        """Return the nodes of an order whose calls are made."""
        assert isinstance(order.work, GradientSum)
        values = [Sums(leaf.grad, float(leaf.sums[0]), float(leaf.sums[1]), leaf.rows) for leaf in self.leaves]
        self.leaves = []
        return tree.fold(values, order.leaves, merging(self._rooms[0]), start=order.start, keep=order.work.exact)


class Lanes:
    """The slots of a session, as far as they need no threads of their own.

    Parameters
    ----------
    slots : int
    blocks : BlockCache
    casts : Casts
        Of the session.
    """

    def __init__(self, slots: int, blocks: BlockCache, casts: Casts) -> None:
        able = 1 < slots <= _cores() and not compiled.missing() and hasattr(time, "clock_gettime")
        self._blocks = blocks
        self._lanes = [_Lane(casts) for _ in range(slots if able else 0)]
        self._standbys: list[Standby] = []
        self._orders: list[tuple[int, Order]] = []  # under way
        self._pinned = contextlib.ExitStack()
        self._begin, self._bytes_read = 0.0, 0
        self._took: tuple[Any, bool] = None, False
        self._decodes = False  # whether partitions of this round's view are decoded again and again

    @property
    def busy(self) -> bool:
        """Whether orders are under way."""
        return bool(self._orders)

    def begin(self, orders: list[Order]) -> bool:
        """Begin a round of one order a slot, the first slot's first; or do nothing and return False.

        All but the first slot's are under way then; that one is computed by the first call of `end`.
        """
        slots = len(self._lanes)
        if (
            self._orders
            or len(orders) < 2
            or len(orders) > slots
            or any(order.slot % slots != k for k, order in enumerate(orders))
        ):
            return False
        if not all(self._takes(order) for order in orders):
            return False
        for standby in self._standbys:
            standby.settle()
        self._begin, self._bytes_read = time.perf_counter(), 0
        try:
            for lane, order in zip(self._lanes, orders, strict=False):
                self._bytes_read += lane.prepare(order, self._blocks, self._pinned)
                if len(lane.calls) < len(order.units):
                    self._pinned.close()
                    return False
        except BigoptError:  # the slots' own threads will meet it again, and hand it on
            self._pinned.close()
            return False
        self._orders = list(enumerate(orders))
        self._decodes = orders[0].work.view.all_bytes > self._blocks.budget
        self._post(len(orders))
        return True

    def end(self) -> tuple[Order, dict[tree.Node, Any], Stats]:
        """Return the next order, its nodes and what it cost; it is computed here or waited for."""
        slot, order = self._orders.pop(0)
        lane = self._lanes[slot]
        if slot == 0:
            for one in lane.calls:
                one.make()
        else:
            self._standbys[slot - 1].wait(len(order.units))
        if self._decodes:
            decode_later(self._blocks, order.work.view, order.ahead, lane.open)
        rows = sum(leaf.rows for leaf in lane.leaves)
        nodes = lane.nodes(order)
        if not self._orders:
            self._pinned.close()
        read, self._bytes_read = self._bytes_read, 0
        return order, nodes, Stats(time.perf_counter() - self._begin, read, rows)

    def close(self) -> None:
        """End the threads."""
        for standby in self._standbys:
            standby.close()
        self._pinned.close()

    def _takes(self, order: Order) -> bool:
        work, units = order.work, order.units.tolist()
        if work is not self._took[0]:
            self._took = work, self._able(work)
        if not self._took[1]:
            return False
        assert isinstance(work, GradientSum)
        most = min(work.block_rows, LARGE // (work.model.features * np.dtype(work.view.dtype).itemsize))
        if any(epoch < 0 or stop - start > most for _, epoch, start, stop in units):
            return False
        if len(units) > 1 and (len(units) > _MOST or units[1][2] != 0):  # not a lane that goes on
            return False
        return all(self._blocks.has(work.view, unit[0]) for unit in units)  # to decode is for the slots, side by side

    def _able(self, work: Any) -> bool:
        """Return whether gradient sums of this kind are one compiled call a unit."""
        return (
            type(work) is GradientSum
            and work.device == "cpu"
            and work.kernels != compiled.NUMPY
            and isinstance(work.model, MLP)
            and has_layers(work.model, work.view.dtype)
            and np.dtype(work.dtype).itemsize >= np.dtype(work.view.dtype).itemsize
        )

    def _post(self, count: int) -> None:
        """Post what the slots compute, and what they gather then: their own next rows, and the first slot's."""
        while len(self._standbys) < count - 1:
            kinds = fused_dense.signature("float32"), fused_rows.signature("float32")
            name = f"bigopt-standby-{len(self._standbys) + 1}"
            self._standbys.append(Standby(name, tuple(words(kind) for kind in kinds)))
        for k, standby in enumerate(self._standbys[: count - 1], 1):
            lane = self._lanes[k]
            calls = lane.calls + lane.gathering() + (self._lanes[0].gathering() if k == 1 else [])
            standby.post(calls, crowded=self._decodes)


@cache
def _gatherer(dtype: str) -> compiled.Kernel:
    return compiled.kernel(fused_rows.make_gather, (dtype,), fused_rows.signature(dtype))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
