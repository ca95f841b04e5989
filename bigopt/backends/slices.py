"""Large gradients leave their workers in slices, so that the driver never holds a vector for each of them.

A round whose gradient has more than `SLICE_BYTES` is asked for slice by slice. The first order computes:
its worker keeps the tree's nodes that cover its units and answers with their first slice. The driver adds slice k of
all workers along the round's tree, writes it into the result and asks for slice k + 1. Adding vectors is elementwise,
so slices change no bit. Messages, and what Spark calls the result of a task, are bounded by slices too::

    driver     one vector + slots x nodes x slice     instead of     slots x nodes x vector
    worker     its nodes, until the last slice has left

What a worker keeps is a cache. Orders for later slices carry no inputs; a worker that does not have the nodes, because
it is new or was given another's units, answers `Lost`, and the ledger orders those units again, this time with inputs:
they are computed again, with the same bits.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.buffers import Buffers
from bigopt.core.codec import wire
from bigopt.core.sums import Sums
from bigopt.core.tree import Node, cover
from bigopt.core.vectors import Narrow, dense
from bigopt.data.cache import BlockCache
from bigopt.data.meter import Meter
from bigopt.data.plan import Ints
from bigopt.data.view import DataView
from bigopt.work import GradientSum, Order, Stats, Work, execute

SLICE_BYTES: Final = 16_000_000
"""Bytes of a slice on engines: a message of so many takes ten milliseconds and more, asking for it less than one."""


def cut(value: Sums, part: slice) -> Sums:
    """Return sums with some entries of their dense gradient, in the encoding that it has."""
    if isinstance(value.grad, Narrow):
        return value._replace(grad=value.grad._replace(values=value.grad.values[part]))
    return value._replace(grad=dense(value.grad)[part])


@wire
@dataclass(frozen=True)
class Slice:
    """A slice of what a gradient sum gives.

    Parameters
    ----------
    work : GradientSum
    run : str
        Drawn anew by every run: its tickets, and no other's, say which round a kept value belongs to.
    index, count : int
        Which slice of how many.
    """

    work: GradientSum
    run: str
    index: int
    count: int

    @property
    def view(self) -> DataView:
        """The rows it works on."""
        return self.work.view

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.work.device

    def prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the inputs as the whole work does."""
        return self.work.prepare(inputs)

    def __call__(self, inputs: tuple[Any, ...], unit: Ints, meter: Meter) -> Sums:
        """Return the slice of one unit's sums, where nobody keeps the whole."""
        return self.of(self.work(inputs, unit, meter))

    def bounds(self, size: int) -> slice:
        """Return which elements of a vector of `size` these are."""
        return slice(size * self.index // self.count, size * (self.index + 1) // self.count)

    def of(self, value: Sums) -> Sums:
        """Cut sums: their gradient; loss, weight and rows go with every slice."""
        grad = value.grad
        return cut(value, self.bounds(len(grad.values if isinstance(grad, Narrow) else dense(grad))))


def answer_bytes(order: Order) -> int:
    """Return the bytes of the gradients that answer an order at most; 0 for work that returns none, or sparse ones."""
    work, parts = (order.work.work, order.work.count) if isinstance(order.work, Slice) else (order.work, 1)
    if not isinstance(work, GradientSum) or work.view.source.sparse:
        return 0
    nodes = len(cover(order.start, order.stop, order.leaves))
    return nodes * math.ceil(work.model.layout.size / parts) * np.dtype(work.dtype).itemsize


class Keeper:
    """A worker's nodes of the round that it is asked for now."""

    def __init__(self) -> None:
        self._round: tuple[str, int] = ("", 0)
        self._nodes: dict[tuple[int, int], dict[Node, Any]] = {}

    def execute(
        self,
        blocks: BlockCache,
        work: Slice,
        ticket: int,
        inputs: tuple[Any, ...],
        leaves: int,
        start: int,
        units: Ints,
        ahead: tuple[int, ...],
    ) -> tuple[dict[Node, Any], Stats] | None:
        """Return a slice of the nodes and what they cost; None where they are neither kept nor can be computed."""
        if self._round != (work.run, ticket):
            self._round, self._nodes = (work.run, ticket), {}
        key, stats = (start, start + len(units)), Stats()
        nodes = self._nodes.get(key)
        if nodes is None:
            if not inputs:
                return None
            nodes, stats = execute(blocks, work.work, inputs, leaves, start, units, ahead)
            self._nodes[key] = nodes
        if work.index == work.count - 1:
            del self._nodes[key]
        return {node: work.of(value) for node, value in nodes.items()}, stats


class Cut:
    """The slices of one round, one after another.

    Parameters
    ----------
    works : tuple of Slice
    whole : ndarray, shape (p,)
        Where the roots of all slices are written.
    """

    def __init__(self, works: tuple[Slice, ...], whole: npt.NDArray[Any]) -> None:
        self._works = works
        self._whole = whole
        self._index = 0

    @property
    def work(self) -> Slice:
        """What is asked for now."""
        return self._works[self._index]

    @property
    def first(self) -> bool:
        """Whether workers compute for this slice; later ones they keep."""
        return self._index == 0

    @property
    def last(self) -> bool:
        """Whether no slice comes after this one."""
        return self._index + 1 == len(self._works)

    def take(self, root: Sums) -> Sums:
        """Write the root of this slice; return the sums so far."""
        self._whole[self.work.bounds(len(self._whole))] = dense(root.grad)
        return root._replace(grad=self._whole)

    def next(self, root: Sums) -> None:
        """Go on to the next slice."""
        self.take(root)
        self._index += 1


class Slicer:
    """Says for each work of a run whether its sums are sliced, and lends the driver the vector that they add up to.

    Parameters
    ----------
    slice_bytes : int
    """

    def __init__(self, slice_bytes: int) -> None:
        self._bytes = slice_bytes
        self._run = secrets.token_hex(8)
        self._made: dict[int, tuple[Work, tuple[Slice, ...]]] = {}
        self._buffers = Buffers()

    def cut(self, work: Work) -> Cut | None:
        """Return the slices of a round; None where values of this work are small, or no dense gradients."""
        if not isinstance(work, GradientSum) or work.view.source.sparse:
            return None
        size = work.model.layout.size
        count = math.ceil(size * np.dtype(work.dtype).itemsize / self._bytes)
        if count < 2:
            return None
        if id(work) not in self._made:  # the same ones in every round: workers are sent each of them once
            self._made[id(work)] = work, tuple(Slice(work, self._run, index, count) for index in range(count))
        return Cut(self._made[id(work)][1], self._buffers.lend(size, work.dtype))
