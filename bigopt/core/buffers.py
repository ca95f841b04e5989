"""Working memory of one thread: arrays by name that are kept from one use to the next.

Fresh memory is not free: the system clears every page of it, and a batch of a few hundred rows is over sooner than
that. Whoever takes an array from here must be done with it before the same name is taken again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


class Buffers:
    """Arrays by name, as large as they ever were."""

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialised C-contiguous array; it never owns its memory (`array.base` is not None)."""
        kind, size = np.dtype(dtype), math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.dtype != kind or kept.size < size:
            kept = self._kept[name] = np.empty(size, dtype=kind)
        return kept[:size].reshape(shape)


def room(buffers: Buffers | None, name: str, shape: tuple[int, ...], like: Any) -> dict[str, Any]:
    """Return the keyword ``out`` with an array of `like`'s dtype, or none where there are no buffers."""
    return {} if buffers is None else {"out": buffers.take(name, shape, like.dtype)}
