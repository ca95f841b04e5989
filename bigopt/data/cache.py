"""Decoded blocks kept within a byte budget: each slot's process has one cache, and whoever owns it passes it on.

A process decodes a partition once and keeps it as long as the budget allows. Full passes are cyclic, where "least
recently used" would evict exactly what is needed next; so the most recently used block goes first, except blocks that a
lane is still walking through (*open*), which go last. Losing an entry is never an error: caches are not state.

Decoding overlaps with computing: while somebody computes on a block, the one that its order needs next is decoded by a
thread of its own (`prefetch`), one at a time in a process, where that fits the budget without taking away what is in
use; the chunks of a block are decoded side by side, in memory that is used again (`bigopt.data.loading`). It changes no
bits.

Where a pass wants every row of a partition once, in order, and there is no room to keep it, it is not kept at all:
`stream` gives its chunks as they are decoded.

With ``data.scratch`` a block that is decoded is written to a file of the node and mapped (`bigopt.data.scratch`): then
it counts for next to nothing here, and other workers need not decode it.

Beside the blocks lie *notes*: what a round computed from the rows of a unit and another may ask for again (the margins
of a line search). They are charged like blocks, take half of the budget at most, and are valid for one digest of what
they were computed from.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigopt.core import arrays
from bigopt.core.buffers import Buffers
from bigopt.core.errors import ConfError
from bigopt.core.staging import Stage
from bigopt.data.card import CardBlocks
from bigopt.data.entry import Entry
from bigopt.data.kept import Kept
from bigopt.data.loading import Loader
from bigopt.data.plan import Ints
from bigopt.data.scratch import NodeScratch, is_mapped
from bigopt.data.streaming import stream, stream_bytes
from bigopt.data.view import Block, DataView

Key = tuple[str, int]
NoteKey = tuple[str, tuple[int, ...]]

_NOTHING: Final = Block(np.empty((0, 0)), None, None, 0, 0)


@dataclass
class Note:
    """Parts computed from a unit's rows; whoever opened it fills it and says when it is `complete`."""

    digest: bytes
    charge: int
    parts: list[Any] = field(default_factory=list)
    complete: bool = False


class BlockCache:
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
    given_card : int or None
        The GPU that an engine gave this process.
    """

    def __init__(self, budget: int, threads: int = 1) -> None:
        self.budget = budget
        self.loader = Loader(threads)
        self.kept = Kept()
        self.given_card: int | None = None
        self._entries: dict[Key, Entry] = {}
        self._loading: set[Key] = set()
        self._notes: dict[NoteKey, Note] = {}
        self._held = 0
        self._clock = 0
        self._changed = threading.Condition()
        self._decoding_ahead = False
        self._threads = threading.local()
        self._nodes: dict[tuple[str, int], NodeScratch] = {}
        self._cards: dict[int, CardBlocks] = {}

    @property
    def buffers(self) -> Buffers:
        """The working memory of the calling thread."""
        kept: Buffers | None = getattr(self._threads, "buffers", None)
        if kept is None:
            kept = self._threads.buffers = Buffers()
        return kept

    def use_card(self, slot: int) -> None:
        """Let the calling thread compute on its card: the one that the engine gave this process, else by its slot."""
        arrays.use_card(slot if self.given_card is None else self.given_card)

    @property
    def stage(self) -> Stage:
        """The calling thread's way to its card, for what does not lie there."""
        kept: Stage | None = getattr(self._threads, "stage", None)
        if kept is None:
            kept = self._threads.stage = arrays.stage()
        return kept

    @property
    def card(self) -> CardBlocks:
        """What lies on the calling thread's card: half of what was free there at the first use, at most."""
        number = arrays.card_number()
        with self._changed:
            if number not in self._cards:
                self._cards[number] = CardBlocks(arrays.free_card_memory() // 2, arrays.send)
            return self._cards[number]

    @property
    def held(self) -> int:
        """Bytes charged now."""
        return self._held

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
    def stream(self, view: DataView, index: int, step: int) -> Iterator[Iterator[Block] | None]:
        """Go through a partition that cannot stay here in blocks of rows, for the length of a with statement.

        Parameters
        ----------
        view : DataView
        index : int
            Partition number.
        step : int
            What the rows of a block, but for the last, are a multiple of.

        Yields
        ------
        iterator of Block or None
            See `bigopt.data.streaming`; None where the partition is here, can stay, or cannot be gone through so.
        """
        room = self._streamed(view, index, step)
        if room is None:
            yield None
            return
        try:
            with contextlib.closing(stream(view, index, step, self.loader)) as blocks:
                yield blocks
        finally:
            with self._changed:
                self._held -= room
                self.loader.memory.keep(self.budget - self._held)
                self._changed.notify_all()

    def _streamed(self, view: DataView, index: int, step: int) -> int | None:
        """Take the room of a stream, where a partition is to be gone through so."""
        room = None if self._node(view) is not None else stream_bytes(view, index, step, self.loader)
        whole = view.decoded_bytes(index)
        if room is None or room >= whole:
            return None
        whole += view.loading_bytes(index, self.loader)
        with self._changed:
            key, raw = (view.key, index), (view.raw.key, index)
            streams = 0 if view.all_bytes <= self.budget else self.loader.threads * room  # those of the other slots
            if self._held + whole + streams <= self.budget or room > self.budget:
                return None
            if key in self._entries or key in self._loading or raw in self._entries:
                return None
            while self._held + room > self.budget:
                if not self._evict():
                    self._changed.wait()
            self._held += room
        return room

    def recall(self, view: DataView, unit: Ints, digest: bytes) -> list[Any] | None:
        """Return the parts of a unit's note, or None where there is none of this digest."""
        with self._changed:
            note = self._notes.get(_note_key(view, unit))
        return note.parts if note is not None and note.complete and note.digest == digest else None

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
        key = _note_key(view, unit)
        with self._changed:
            self._drop_note(key)
            if size + sum(note.charge for note in self._notes.values()) > self.budget // 2:
                return None
            while self._held + size > self.budget:
                if not self._evict_block():
                    return None
            self._held += size
            self.loader.memory.keep(self.budget - self._held)
            self._notes[key] = Note(digest, size)
            return self._notes[key]

    def _drop_note(self, key: NoteKey) -> None:
        note = self._notes.pop(key, None)
        if note is not None:
            self._held -= note.charge
            self._changed.notify_all()

    def _pin(self, key: Key, view: DataView, index: int) -> tuple[Entry, int]:
        size = view.held_bytes(index)
        with self._changed:
            while key in self._loading:
                self._changed.wait()
            self._clock += 1
            found = self._entries.get(key)
            if found is not None:
                found.pins += 1
                found.last_use = self._clock
                bytes_read, found.unpaid, found.awaited = found.unpaid, 0, False
                return found, bytes_read
            mapped = self._mapped(key, view, index)
            if mapped is not None:
                return mapped, 0
            raw = self._take_raw((view.raw.key, index)) if view.raw.key != view.key else None
            room = size if raw is not None else size + view.loading_bytes(index, self.loader)
            if room > self.budget:
                raise ConfError(
                    f"partition {index} needs {room / 1e6:.1f} MB while it is decoded, data.memory allows "
                    f"{self.budget / 1e6:.1f} MB",
                    where="data.memory",
                    hint="raise data.memory, or write the data again with a smaller ingest.partition_rows",
                )
            while self._held + room > self.budget:
                if not self._evict():
                    self._changed.wait()
            self._held += room
            self._loading.add(key)
        entry = self._load(key, view, index, room, raw, Entry(_NOTHING, 0, pins=1, last_use=self._clock))
        bytes_read, entry.unpaid = entry.unpaid, 0
        return entry, bytes_read

    def _load(self, key: Key, view: DataView, index: int, room: int, raw: Entry | None, entry: Entry) -> Entry:
        """Fill an entry whose room is taken and whose key is being loaded, and put it among the others."""
        try:
            block = view.prepare(raw.block) if raw is not None else view.load(index, self.loader)
            bytes_read = 0 if raw is not None else block.bytes_read
            node = self._node(view)
            if node is not None:
                block = node.put(view.key, index, block)
        except BaseException:
            with self._changed:
                self._held -= room
                self._loading.discard(key)
                self._changed.notify_all()
            raise
        with self._changed:
            entry.block, entry.charge, entry.unpaid = block, _charge(view, index, block), bytes_read
            self._held += entry.charge - room
            self.loader.memory.keep(self.budget - self._held)
            self._loading.discard(key)
            self._entries[key] = entry
            self._changed.notify_all()
        return entry

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
        entry = Entry(block, _charge(view, index, block), pins=1, last_use=self._clock)
        self._entries[key] = entry
        self._held += entry.charge
        return entry

    def prefetch(self, view: DataView, index: int) -> bool:
        """Decode a partition in the background, where there is room beside what is in use; False where it is there."""
        key, node = (view.key, index), self._node(view)
        room = view.held_bytes(index) + view.loading_bytes(index, self.loader)
        if node is not None and node.has(*key):
            return False
        with self._changed:
            if key in self._entries or key in self._loading or (view.raw.key, index) in self._entries:
                return False
            free = sum(e.charge for e in self._entries.values() if not (e.pins or e.awaited or e.open))
            if self._decoding_ahead or self._held - free + room > self.budget:
                return True
            while self._held + room > self.budget:
                self._evict_block()
            self._held += room
            self._loading.add(key)
            self._decoding_ahead = True
            entry = Entry(_NOTHING, 0, awaited=True, last_use=self._clock)
        threading.Thread(
            target=self._load_ahead, args=(key, view, index, room, entry), name="bigopt-prefetch", daemon=False
        ).start()
        return True

    def _load_ahead(self, key: Key, view: DataView, index: int, room: int, entry: Entry) -> None:
        # What is wrong with it is said to whoever asks for it and meets it again.
        try:
            with contextlib.suppress(Exception), np.errstate(over="ignore", invalid="ignore"):
                self._load(key, view, index, room, None, entry)
        finally:
            self._decoding_ahead = False

    def _take_raw(self, key: Key) -> Entry | None:
        """Give up an unpinned raw block so that it can be scaled in place."""
        entry = self._entries.get(key)
        if entry is None or entry.pins:
            return None
        self._held -= entry.charge
        return self._entries.pop(key)

    def _evict(self) -> bool:
        """Give up a block, or where none is free a note: a pinned block must not wait for one."""
        if self._evict_block():
            return True
        if self._notes:
            self._drop_note(next(iter(self._notes)))
            return True
        return False

    def _evict_block(self) -> bool:
        free = [(key, e) for key, e in self._entries.items() if not e.pins]
        if not free:
            return False
        key, entry = min(free, key=lambda item: (item[1].open or item[1].awaited, -item[1].last_use))
        self._held -= entry.charge
        del self._entries[key]
        return True


def _charge(view: DataView, index: int, block: Block) -> int:
    """Bytes an entry counts for: of a mapped block only the permutation, for its pages are the system's."""
    if view.lent:
        return view.held_bytes(index)
    return 8 * len(block.X) if is_mapped(block) else max(view.decoded_bytes(index), block.nbytes)


def _note_key(view: DataView, unit: Ints) -> NoteKey:
    return view.key, tuple(int(v) for v in unit)
