"""A decoded block where it is kept, and what is known of its use."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bigopt.core.compiled import pointer
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

    @cached_property
    def place(self) -> tuple[int, int, int, int] | None:
        """Where X, y and weight lie (0: there is none), and how many rows they have, for a kernel.

        None where they are not as one wants them: X and y of one dtype, y of one column, weight float64, in C order.
        """
        X, y, weight = self.block[:3]
        arrays: list[Any] = [X, y] if weight is None else [X, y, weight]
        kinds = [X.dtype, X.dtype, np.dtype(np.float64)]
        if not all(
            isinstance(a, np.ndarray) and a.flags.c_contiguous and a.size == len(a) * width and a.dtype == kind
            for a, kind, width in zip(arrays, kinds, (X.shape[1], 1, 1), strict=False)
        ):
            return None
        return pointer(X), pointer(y), 0 if weight is None else pointer(weight), len(X)

    def order(self, seed: int, unit: Ints) -> Ints:
        """Return the permutation of this epoch (kept until the next epoch asks)."""
        kept = self._order
        if kept is None or kept[:2] != (seed, int(unit[1])):
            kept = (seed, int(unit[1]), draw(seed, unit, self.block.X.shape[0]))
            self._order = kept
        return kept[2]
