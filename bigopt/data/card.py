"""Prepared blocks that stay on a card: a full pass then reads the card's memory, not the host's.

A process keeps what comes first, as long as the budget allows, and sends the rest anew whenever it is used
(`bigopt.core.staging`). Passes are cyclic: to give up one block for another would only exchange which of them is sent.
Blocks of another view (a run that is over, raw rows of its profile) make room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bigopt.data.entry import Entry


@dataclass
class CardBlocks:
    """Blocks by (view, partition) on one card; safe for threads.

    Parameters
    ----------
    budget : int
        Bytes of the card's memory.
    send : callable
        ``send(array)`` copies a host array to the card.
    """

    budget: int
    send: Callable[[Any], Any]
    _kept: dict[tuple[str, int], Entry] = field(default_factory=dict, init=False)
    _held: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def held(self) -> int:
        """Bytes that lie on the card."""
        return self._held

    def get(self, view: str, index: int) -> Entry | None:
        """Return a partition's block, with arrays on the card, or None where it is not there."""
        return self._kept.get((view, index))

    def put(self, view: str, index: int, entry: Entry) -> Entry:
        """Keep a host block's copy on the card and return it; the host block itself where there is no room."""
        block = entry.block
        size = block.nbytes
        with self._lock:
            found = self._kept.get((view, index))
            if found is not None:
                return found
            if self._held + size > self.budget:
                for key in [key for key in self._kept if key[0] != view]:
                    self._held -= self._kept.pop(key).charge
            if self._held + size > self.budget:
                return entry
            X, y, weight = (None if a is None else self.send(a) for a in (block.X, block.y, block.weight))
            self._held += size
            self._kept[view, index] = Entry(block._replace(X=X, y=y, weight=weight), size)
            return self._kept[view, index]
