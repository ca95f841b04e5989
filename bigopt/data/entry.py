"""A decoded block where it is kept, and what is known of its use."""

from __future__ import annotations

from dataclasses import dataclass, field

from bigopt.data.plan import Ints, draw
from bigopt.data.view import Block


@dataclass
class Entry:
    """A decoded block in the cache, pinned while somebody computes on it.

    `open` says that the epoch has more of its rows to give; `awaited` that it was decoded ahead and nobody has used it,
    `unpaid` how many bytes were read for it then.
    """

    block: Block
    charge: int
    pins: int = 0
    open: bool = False
    awaited: bool = False
    unpaid: int = 0
    last_use: int = 0
    _order: tuple[int, int, Ints] | None = field(default=None, repr=False)

    def order(self, seed: int, unit: Ints) -> Ints:
        """Return the permutation of this epoch (kept until the next epoch asks)."""
        kept = self._order
        if kept is None or kept[:2] != (seed, int(unit[1])):
            kept = (seed, int(unit[1]), draw(seed, unit, self.block.X.shape[0]))
            self._order = kept
        return kept[2]
