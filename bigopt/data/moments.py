"""Moments of columns while their rows stream by: mean, deviation, least and greatest value.

Rows are folded in blocks of a fixed number counted from the first row, so that the result does not depend on how the
writer cuts its chunks or how callers cut their appends.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bigopt.core.sums import Moments
from bigopt.data.manifest import ColumnMoments
from bigopt.data.source import Array

BLOCK: Final = 4096


class RunningMoments:
    """Population moments of d columns, float64.

    Parameters
    ----------
    columns : int
    """

    def __init__(self, columns: int) -> None:
        self._moments = Moments(0.0, np.zeros(columns), np.zeros(columns))
        self._min = np.full(columns, np.inf)
        self._max = np.full(columns, -np.inf)
        self._held: list[npt.NDArray[np.float64]] = []
        self._rows = 0

    def update(self, values: Array) -> None:
        """Add rows, shape (k, columns)."""
        at = 0
        while at < len(values):
            take = min(BLOCK - self._rows, len(values) - at)
            self._held.append(np.array(values[at : at + take], dtype=np.float64))
            self._rows, at = self._rows + take, at + take
            if self._rows == BLOCK:
                self._fold()

    def _fold(self) -> None:
        if not self._held:
            return
        block = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        with np.errstate(invalid="ignore", over="ignore"):
            mean = block.mean(axis=0)
            spread = np.square(block - mean).sum(axis=0)
            self._moments = self._moments.merge(Moments(float(len(block)), mean, spread))
            self._min = np.minimum(self._min, block.min(axis=0))
            self._max = np.maximum(self._max, block.max(axis=0))
        self._held, self._rows = [], 0

    def finish(self) -> list[ColumnMoments]:
        """Return the moments of each column."""
        self._fold()
        with np.errstate(invalid="ignore"):
            std = np.sqrt(self._moments.spread / max(1.0, self._moments.weight))
        table = np.stack([self._moments.mean, std, self._min, self._max], axis=1)
        return [ColumnMoments(*(float(v) for v in row)) for row in table]
