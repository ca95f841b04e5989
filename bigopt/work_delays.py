"""How late the gradients of Hogwild are: what one thread counts, and what turns and runs make of it.

Gradients are numbered as their threads finish reading; the delay tau at gradient t is the largest t - k of the
gradients k < t that it was read without, at least 1. It is sampled, and measured from both sides: gradients whose
reading ended during its own, and gradients read or being read before it was written itself.

The numbers of a turn are one vector: a histogram with bins by powers of two; samples, their sum and maximum; watched
rows, and how many updates of them arrived (`bigopt.models.fused_hogwild`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.models import fused_hogwild as loops

Array = npt.NDArray[Any]

DELAYS: Final = loops.BINS + 5
"""Numbers of a turn's delays: histogram, samples, sum, maximum; watched rows, and updates of those that arrived."""
LARGEST: Final = loops.BINS + 2
_APART: Final = 128
"""Bytes between what two threads write: two cache lines, for they are fetched in pairs."""


def joined_delays(left: Array, right: Array) -> Array:
    """Return the delays of both, shape (DELAYS,)."""
    both: Array = left + right
    both[LARGEST] = max(left[LARGEST], right[LARGEST])
    return both


def summary(delays: Array) -> dict[str, Any]:
    """Return delays as they stand in a run's result.

    Returns
    -------
    dict
        ``tau``: mean, max and histogram (by the lower end of bins that are powers of two) of the sampled delays.
        ``lost_share``: share of the updates of an entry that every row touches that were lost; a rarer entry loses
        less. None where nothing was watched, and with atomic_add.
    """
    samples, total, largest, watched, arrived = (int(v) for v in delays[loops.BINS :])
    return {
        "tau": {
            "mean": total / max(1, samples),
            "max": largest,
            "histogram": {str(1 << k): int(delays[k]) for k in range(loops.BINS) if delays[k]},
        },
        "lost_share": 1.0 - arrived / watched if watched else None,
    }


def own_lines(shape: tuple[int, ...], dtype: str) -> Array:
    """Return zeros in cache lines of their own: two threads that write to one line wait for each other."""
    item, size = np.dtype(dtype).itemsize, int(np.prod(shape))
    memory = np.zeros(size * item + 2 * _APART, dtype=np.uint8)
    start = -int(memory.ctypes.data) % _APART
    return memory[start : start + size * item].view(dtype).reshape(shape)


class Part:
    """What one thread has done in a turn."""

    def __init__(self) -> None:
        self.sums = own_lines((3,), "float64")
        self.delays = own_lines((loops.BINS + 3,), "int64")
        self.rows = self.watched = self.bytes_read = 0

    def note(self, counters: Array, me: int, begun: int, number: int) -> None:
        """Add the delay at a gradient of this thread that is now written, as the compiled loops do."""
        others = np.delete(counters[:-1], me, axis=0)
        reading = np.count_nonzero((others[:, loops.BUSY] == 1) & (others[:, loops.READ] == others[:, loops.WRITTEN]))
        last = int(counters[:-1, loops.READ].sum()) + int(reading)
        tau = max(1, last - number, number - 1 - begun)
        self.delays[min(tau.bit_length() - 1, loops.BINS - 1)] += 1
        self.delays[loops.BINS : LARGEST] += (1, tau)
        self.delays[LARGEST] = max(tau, int(self.delays[LARGEST]))
