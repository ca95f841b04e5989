"""What one order sees of the block cache: its blocks, what they cost, and what is decoded meanwhile.

Two things are decoded ahead by a helper. What the order itself needs next, while it computes on what it has. And what
later orders need, when its last block has been computed on: then the core is idle until the other slots are done and
the driver has made its step, while a helper beside all slots would take one of them its core, and all would wait for
that one. So that this is early enough, and spread over the steps though lanes come to the ends of their partitions
together, one more is decoded ahead than lanes are open, where the memory is ample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigopt.core import arrays
from bigopt.core.buffers import Buffers
from bigopt.core.extents import Stored
from bigopt.core.staging import Stage
from bigopt.data.cache import BlockCache
from bigopt.data.entry import Entry
from bigopt.data.plan import Ints
from bigopt.data.streaming import Stream, stream_bytes
from bigopt.data.view import DataView

Part = tuple[Any, Any, Any]
Found = tuple[Any, float, float, int]
"""Gradient, loss and weight of some rows, and how many they are."""


class Parts:
    """A unit's rows in parts, X, y and weight, as they are decoded, and counted.

    Parameters
    ----------
    meter : Meter
        Counts.
    blocks : Stream
        The parts.
    """

    def __init__(self, meter: Meter, blocks: Stream) -> None:
        self._meter, self._blocks = meter, blocks

    def __iter__(self) -> Parts:
        return self

    def __next__(self) -> Part:
        block = next(self._blocks)
        self._meter.bytes_read += block.bytes_read
        self._meter.rows += len(block.X)
        return block[:3]

    def read(self, add: Callable[[Stored], tuple[Found, int] | None]) -> Found | None:
        """Let `add` read all rows where they lie, as `Stream.read`; it returns what it found and the bytes it read."""
        got = self._blocks.read(add)
        if got is None:
            return None
        found, size = got
        self._meter.bytes_read += size + self._blocks.labels.bytes_read
        self._meter.rows += found[3]
        return found


@dataclass
class Meter:
    """What one order may use and has used.

    Parameters
    ----------
    blocks : BlockCache
    bytes_read : int
        Bytes read from the store.
    rows : int
        Rows that entered a sum.
    buffers : Buffers or None
        Where rows and sums of a unit may lie until the next unit; None: they are fresh arrays.
    order : tuple of int
        Partitions in the order in which they will be asked for: while one is used, the next one is decoded.
    ahead : tuple of int
        Partitions that later orders will ask for, the next one first: of so many as the order leaves open, and one
        more, the first that is not there is decoded after the last one of this order was used.
    """

    blocks: BlockCache
    bytes_read: int = 0
    rows: int = 0
    order: tuple[int, ...] = ()
    ahead: tuple[int, ...] = ()
    buffers: Buffers | None = None
    _at: int = field(default=0, repr=False)
    _open: int = field(default=0, repr=False)
    _streams: bool = field(default=False, repr=False)

    @property
    def stage(self) -> Stage:
        """The calling thread's way to its card."""
        return self.blocks.stage

    @contextlib.contextmanager
    def stream(self, view: DataView, unit: Ints, step: int, *, checked: bool = True) -> Iterator[Parts | None]:
        """Go through a unit's rows, X, y and weight, as `BlockCache.stream`, and count them.

        None also where the unit is a part of a partition. Whoever takes features unchecked asks for `check` where
        what it made of them is not finite.
        """
        index, start, stop = int(unit[0]), int(unit[2]), int(unit[3])
        if start or stop < view.partition(index).rows:
            yield None
            return
        loader, budget = self.blocks.loader, self.blocks.budget
        self._streams = view.all_bytes > budget and stream_bytes(view, index, step, loader) is not None
        with self.blocks.stream(view, index, step, checked=checked) as blocks:
            yield None if blocks is None else Parts(self, blocks)

    def check(self, view: DataView, unit: Ints, step: int) -> None:
        """Read a partition's rows once more, and refuse the first that is not finite."""
        with self.blocks.stream(view, int(unit[0]), step) as blocks:
            for _ in blocks or ():
                pass
        if blocks is None:
            with self.blocks.block(view, int(unit[0])):
                pass

    @contextlib.contextmanager
    def block(self, view: DataView, index: int, device: arrays.Device = "cpu") -> Iterator[Entry]:
        """Pin a partition's block for the length of a with statement, and count what it read.

        For a GPU it is the block that lies on the card, where there is room for it.
        """
        card = self.blocks.card if device == "gpu" else None
        kept = None if card is None else card.get(view.key, index)
        if kept is not None:
            yield kept
            return
        with self.blocks.block(view, index) as (entry, bytes_read):
            self.bytes_read += bytes_read
            following = () if self._streams else self._following(index)  # it may be gone through without a block
            for after in following:
                self.blocks.prefetch(view, after)
            yield entry if card is None else card.put(view.key, index, entry)
        self._open += entry.open
        if not following and not self._streams:
            decode_later(self.blocks, view, self.ahead, self._open)

    @contextlib.contextmanager
    def blocks_here(self, view: DataView, indices: Sequence[int]) -> Iterator[list[Entry] | None]:
        """Pin the blocks of several partitions of a view that stays here as a whole; None where some are not here."""
        if view.all_bytes > self.blocks.budget:
            yield None
            return
        with self.blocks.blocks(view, indices) as found:
            if found is not None:
                self.bytes_read += found[1]
            yield None if found is None else found[0]

    def _following(self, index: int) -> tuple[int, ...]:
        """Return the partition that the order needs after the one that it needs now, if there is one."""
        order, at = self.order, self._at
        while at < len(order) and order[at] != index:
            at += 1
        while at < len(order) and order[at] == index:
            at += 1
        self._at = at
        return order[at : at + 1]


def decode_later(blocks: BlockCache, view: DataView, ahead: tuple[int, ...], lanes: int) -> None:
    """Decode a partition that later orders will ask for, when an order has used its last one.

    Parameters
    ----------
    blocks : BlockCache
    view : DataView
    ahead : tuple of int
        See `Meter`.
    lanes : int
        Partitions that the order leaves open.
    """
    lanes = max(1, lanes)
    for k, later in enumerate(ahead[: lanes + 1]):
        if blocks.prefetch(view, later, early=k == lanes):
            return
