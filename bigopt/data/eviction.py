"""Which decoded block goes first when there is no room for another one.

Where it is known which partitions will be asked for, and in which order, the block that is needed last goes first: no
rule decodes fewer partitions (Belady, IBM Systems Journal 5, 1966). The epochs of lanes are known before they begin
(`bigopt.data.lanes`); each slot is told what it will be asked for with its orders, and says so here.

What nobody is known to ask for goes before that, and there the most recently used block first: full passes are cyclic,
where "least recently used" would give up exactly what is needed next.

A block that was decoded ahead and nobody has used yet (*awaited*) goes after all others, one that a lane is still
walking through (*open*) after that, and one in use does not go at all. What is expected and does not come costs time,
and no bit.
"""

from __future__ import annotations

from collections.abc import Mapping

from bigopt.data.entry import Entry

Key = tuple[str, int]
_NEVER = float("inf")


class Expected:
    """What the slots of a process say that they will be asked for; the lock is that of whoever owns it."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._places: dict[int, dict[Key, float]] = {}

    def say(self, slot: int, view: str, ahead: tuple[int, ...]) -> None:
        """Take which partitions of a view a slot will be asked for, the next one first; empty for what is not known."""
        if self._said.get(slot) != (view, ahead):
            self._said[slot] = view, ahead
            self._places[slot] = {(view, index): (k + 1) / len(ahead) for k, index in enumerate(ahead)}

    def until(self, key: Key) -> float:
        """Return how far away the next use of a block is: a share of what its slot will be asked for; inf for never.

        Slots go on evenly, so that shares of different slots can be compared.
        """
        return min((places.get(key, _NEVER) for places in self._places.values()), default=_NEVER)

    def first(self, entries: Mapping[Key, Entry]) -> Key | None:
        """Return the block that goes first, or None where all are in use."""
        free = ((key, entry) for key, entry in entries.items() if not entry.pins)
        return max(free, key=self._order, default=(None, None))[0]

    def _order(self, item: tuple[Key, Entry]) -> tuple[bool, float, int]:
        key, entry = item
        soon = entry.open or entry.awaited
        return not soon, 0.0 if entry.open else self.until(key), entry.last_use
