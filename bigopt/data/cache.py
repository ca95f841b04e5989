"""Decoded blocks kept within a byte budget: each slot's process has one cache, and whoever owns it passes it on.

A process decodes a partition once and keeps it as long as the budget allows; which block goes first is said in
`bigopt.data.eviction`. Losing an entry is never an error: caches are not state.

Decoding overlaps with computing: while somebody computes on a block, the one that its order needs next is decoded by a
helper (`prefetch`), one at a time in a process, where that fits the budget without taking away what is in use; the
chunks of a block are decoded side by side, in memory that is used again (`bigopt.data.loading`).

Where a pass wants every row of a partition once, in order, and there is no room to keep it, it is not kept at all:
`stream` gives its chunks as they are decoded. Where not all partitions can stay, the labels of all do, as far as there
is room (`bigopt.data.labels`).

With ``data.scratch`` a block that is decoded is written to a file of the node and mapped (`bigopt.data.scratch`): then
it counts for next to nothing here, and other workers need not decode it.

Beside the blocks lie *notes* (`bigopt.data.notes`): what a round computed from the rows of a unit and another may ask
for again. They are charged like blocks and take half of the budget at most.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigopt.data.charges import beside, charge, loading_room
from bigopt.data.entry import Entry
from bigopt.data.eviction import Expected
from bigopt.data.kept import Kept
from bigopt.data.labels import SHARE, Labels
from bigopt.data.loading import Loader
from bigopt.data.notes import Note, Notes
from bigopt.data.plan import Ints
from bigopt.data.scratch import NodeScratch
from bigopt.data.slots import Slots
from bigopt.data.streaming import Stream, stream_bytes
from bigopt.data.view import NO_FEATURES, Block, DataView

Key = tuple[str, int]
_NOTHING: Final = Block(NO_FEATURES, None, None, 0, 0)


class BlockCache(Slots):
    """Blocks by (view, partition) within `budget` bytes, and notes by (view, unit); safe for threads.

    Parameters
    ----------
    budget : int
        Bytes of decoded rows, read buffers and temporaries that this process may hold.
    threads : int
        Threads that may decode at a time.

    Attributes
    ----------
    loader : Loader
        Memory of the blocks, and who helps to decode them.
    kept : Kept
        What a run keeps here between two orders; not charged.
    held : int
        Bytes charged now.
    """

    def __init__(self, budget: int, threads: int = 1) -> None:
        super().__init__()
        self.budget = budget
        self.loader = Loader(threads)
        self.kept = Kept()
        self._entries: dict[Key, Entry] = {}
        self._loading: set[Key] = set()
        self._finite: set[Key] = set()
        self._expected = Expected()
        self._notes = Notes()
        self._labels = Labels(budget // SHARE)
        self.held = 0
        self._clock = 0
        self._changed = threading.Condition()
        self._decoding_ahead = False
        self._nodes: dict[tuple[str, int], NodeScratch] = {}

    @contextlib.contextmanager
    def block(self, view: DataView, index: int) -> Iterator[tuple[Entry, int]]:
        """Pin a partition's block for the length of a with statement.

        Parameters
        ----------
        view : DataView
        index : int
            Partition number.

        Yields
        ------
        entry : Entry
        bytes_read : int
            What had to be read from the store for it; 0 where the block was kept.

        Raises
        ------
        ConfError
            Where the partition cannot fit the budget even alone.
        """
        entry, bytes_read = self._pin((view.key, index), view, index)
        try:
            yield entry, bytes_read
        finally:
            with self._changed:
                entry.pins -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def blocks(self, view: DataView, indices: Sequence[int]) -> Iterator[tuple[list[Entry], int] | None]:
        """Pin the blocks of several partitions at once, as `block`; None where some are not here."""
        with self._changed:
            found = [entry for index in indices if (entry := self._entries.get((view.key, index))) is not None]
            here = len(found) == len(indices)
            bytes_read = sum(self._use(entry) for entry in found) if here else 0
        try:
            yield (found, bytes_read) if here else None
        finally:
            if here:
                with self._changed:
                    for entry in found:
                        entry.pins -= 1
                    self._changed.notify_all()

    def _use(self, entry: Entry) -> int:
        """Pin a block that is here; return what was read for it when it was decoded ahead."""
        self._clock += 1
        entry.pins += 1
        entry.last_use = self._clock
        bytes_read, entry.unpaid, entry.awaited = entry.unpaid, 0, False
        return bytes_read

    def has(self, view: DataView, index: int) -> bool:
        """Return whether a partition's block is here."""
        with self._changed:
            return (view.key, index) in self._entries

    @contextlib.contextmanager
    def stream(self, view: DataView, index: int, step: int, *, checked: bool = True) -> Iterator[Stream | None]:
        """Go through a partition that cannot stay here in blocks of rows, for the length of a with statement.

        Parameters
        ----------
        view : DataView
        index : int
            Partition number.
        step : int
            What the rows of a block, but for the last, are a multiple of.
        checked : bool
            Whether features are looked at for values that are not finite.

        Yields
        ------
        Stream or None
            See `bigopt.data.streaming`; None where the partition is here, can stay, or cannot be gone through so.
        """
        room = self._streamed(view, index, step)
        if room is None:
            yield None
            return
        try:
            blocks = Stream(view, index, step, self.loader, self._labels_of(view, index), checked=checked)
            with contextlib.closing(blocks):
                yield blocks
        finally:
            with self._changed:
                self._give_back(room)

    def _labels_of(self, view: DataView, index: int) -> Block:
        """Return a partition's prepared labels and weights; kept from now on where there is room for them."""
        with self._changed:
            kept = self._labels.get(view, index)
        if kept is not None:
            return kept
        found = view.labels(index)
        with self._changed:
            if self._labels.takes(view, found):
                self._give_back(self._labels.make_room(view, found))
                while self.held + found.nbytes > self.budget and self._evict_block():
                    pass
                if self.held + found.nbytes <= self.budget:
                    self.held += self._labels.put(view, index, found._replace(bytes_read=0))
        return found

    def _streamed(self, view: DataView, index: int, step: int) -> int | None:
        """Take the room of a stream, where a partition is to be gone through so."""
        room = None if self._node(view) is not None else stream_bytes(view, index, step, self.loader)
        whole = view.decoded_bytes(index)
        if room is None or room >= whole:
            return None
        key, raw = (view.key, index), (view.raw.key, index)
        with self._changed:
            left = self.budget - self.held - whole
            if room > self.budget:
                return None
            if left >= 0 and left >= beside(view, index, room, self.budget, self.loader, self._labels):
                return None
            if key in self._entries or key in self._loading or raw in self._entries:
                return None
            self._take(room)
        return room

    def recall(self, view: DataView, unit: Ints, digest: bytes) -> list[Any] | None:
        """Return the parts of a unit's note, or None where there is none of this digest."""
        with self._changed:
            return self._notes.get(view, unit, digest)

    def note(self, view: DataView, unit: Ints, digest: bytes, size: int) -> Note | None:
        """Open a note to be filled, in place of the unit's last one; None where there is no room for it.

        Parameters
        ----------
        view : DataView
        unit : ndarray, shape (4,)
        digest : bytes
            Of everything besides the rows that the parts are computed from.
        size : int
            Bytes that the parts will hold.
        """
        with self._changed:
            self._give_back(self._notes.drop(view, unit))
            if size + self._notes.held > self.budget // 2:
                return None
            while self.held + size > self.budget:
                if not self._evict_block():
                    return None
            self.held += size
            self.loader.memory.keep(self.budget - self.held)
            return self._notes.open(view, unit, digest, size)

    def _take(self, room: int) -> None:
        """Wait for room and take it."""
        while self.held + room > self.budget:
            if not self._evict():
                self._changed.wait()
        self.held += room

    def _give_back(self, size: int) -> None:
        self.held -= size
        self.loader.memory.keep(self.budget - self.held)
        self._changed.notify_all()

    def _pin(self, key: Key, view: DataView, index: int) -> tuple[Entry, int]:
        with self._changed:
            while key in self._loading:
                self._changed.wait()
            found = self._entries.get(key)
            if found is not None:
                return found, self._use(found)
            self._clock += 1
            mapped = self._mapped(key, view, index)
            if mapped is not None:
                return mapped, 0
            raw = self._take_raw((view.raw.key, index)) if view.raw.key != view.key else None
            room = loading_room(view, index, self.budget, self.loader, decoded=raw is not None)
            self._take(room)
            self._loading.add(key)
        entry = self._load(key, view, index, room, raw, Entry(_NOTHING, 0, pins=1, last_use=self._clock))
        bytes_read, entry.unpaid = entry.unpaid, 0
        return entry, bytes_read

    def _load(self, key: Key, view: DataView, index: int, room: int, raw: Entry | None, entry: Entry) -> Entry:
        """Fill an entry whose room is taken and whose key is being loaded, and put it among the others."""
        try:
            block = view.prepare(raw.block) if raw is not None else self._decoded(view, index)
            bytes_read = 0 if raw is not None else block.bytes_read
            node = self._node(view)
            if node is not None:
                block = node.put(view.key, index, block)
        except BaseException:
            with self._changed:
                self._loading.discard(key)
                self._give_back(room)
            raise
        with self._changed:
            entry.block, entry.charge, entry.unpaid = block, charge(view, index, block), bytes_read
            self.held += entry.charge - room
            self.loader.memory.keep(self.budget - self.held)
            self._loading.discard(key)
            self._entries[key] = entry
            self._changed.notify_all()
        return entry

    def _decoded(self, view: DataView, index: int) -> Block:
        """Load a partition; where not all can stay, its labels do, and its rows were finite when they come again."""
        if view.targets is None or view.all_bytes <= self.budget or not view.fills(index, self.loader):
            return view.load(index, self.loader)
        key = view.key, index
        block = view.load(index, self.loader, self._labels_of(view, index), checked=key not in self._finite)
        self._finite.add(key)
        return block

    def _node(self, view: DataView) -> NodeScratch | None:
        """Return the node's folder for a view's blocks; raw ones have none, for they are prepared in place."""
        if view.scratch is None or view.targets is None:
            return None
        if view.scratch not in self._nodes:
            folder, size = view.scratch
            self._nodes[view.scratch] = NodeScratch(Path(folder), size)
        return self._nodes[view.scratch]

    def _mapped(self, key: Key, view: DataView, index: int) -> Entry | None:
        """Put a block that lies in a scratch file among the others, pinned; None where there is none."""
        node = self._node(view)
        block = None if node is None else node.get(*key)
        if block is None:
            return None
        entry = Entry(block, charge(view, index, block), pins=1, last_use=self._clock)
        self._entries[key] = entry
        self.held += entry.charge
        return entry

    def prefetch(self, view: DataView, index: int, *, early: bool = False) -> bool:
        """Decode a partition in the background, where there is room beside what is in use; False where it is there.

        What others will be needed before (`early`) has at most half of the budget, together with what is in use.
        """
        key, node = (view.key, index), self._node(view)
        if node is not None and node.has(*key):
            return False
        with self._changed:
            if key in self._entries or key in self._loading or (view.raw.key, index) in self._entries:
                return False
            if self._decoding_ahead:
                return True
            room = view.held_bytes(index) + view.loading_bytes(index, self.loader)
            free = sum(e.charge for e in self._entries.values() if not (e.pins or e.awaited or e.open))
            if self.held - free + room > (self.budget // 2 if early else self.budget):
                return True
            while self.held + room > self.budget:
                self._evict_block()
            self.held += room
            self._loading.add(key)
            self._decoding_ahead = True
            entry = Entry(_NOTHING, 0, awaited=True, last_use=self._clock)
        self.loader.later(partial(self._load_ahead, key, view, index, room, entry))
        return True

    def _load_ahead(self, key: Key, view: DataView, index: int, room: int, entry: Entry) -> None:
        # What is wrong with it is said to whoever asks for it and meets it again.
        try:
            with contextlib.suppress(Exception), np.errstate(over="ignore", invalid="ignore"):
                self._load(key, view, index, room, None, entry)
        finally:
            self._decoding_ahead = False

    def expect(self, slot: int, view: DataView, ahead: tuple[int, ...]) -> None:
        """Note which partitions of a view a slot will ask for, the next one first; see `Expected.say`."""
        with self._changed:
            self._expected.say(slot, view.key, ahead)

    def _take_raw(self, key: Key) -> Entry | None:
        """Give up an unpinned raw block so that it can be scaled in place."""
        entry = self._entries.get(key)
        if entry is None or entry.pins:
            return None
        self.held -= entry.charge
        return self._entries.pop(key)

    def _evict(self) -> bool:
        """Give up a block, or where none is free a note or labels: a pinned block must not wait for them."""
        if self._evict_block():
            return True
        size = self._notes.drop_oldest() or self._labels.drop()
        self._give_back(size)
        return size > 0

    def _evict_block(self) -> bool:
        key = self._expected.first(self._entries)
        if key is None:
            return False
        self.held -= self._entries.pop(key).charge
        return True
