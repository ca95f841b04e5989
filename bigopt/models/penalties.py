"""Penalties: taken once, on the driver, on the mean.

``penalty(w) = l2 ||w||^2 + l1 ||w||_1``, without a 1/2 and without intercepts. So ridge solves
``(X^T S X / W + l2 I) w = X^T S y / W``: scikit-learn's Ridge has alpha = W l2, its LogisticRegression
C = 1 / (2 W l2), its Lasso alpha = l1 / 2; torch's coupled weight_decay is 2 l2.

The l2 part has a gradient, ``2 l2 w``. The l1 part has none at 0, where its solutions lie: it counts in the value, and
the optimizer takes it by proximal steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigopt.core.codec import wire
from bigopt.core.errors import ConfError
from bigopt.core.layout import Layout

_TILE: Final = 1 << 15


@wire
@dataclass(frozen=True)
class Penalty:
    """l2 ||w||^2 + l1 ||w||_1 over the penalised blocks of a layout.

    Parameters
    ----------
    l2, l1 : float
        At least 0.
    """

    l2: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("l2", self.l2), ("l1", self.l1)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfError(f"{value} is not a number of at least 0", where=f"model.{name}")

    def value(self, params: npt.NDArray[Any], layout: Layout) -> float:
        """Return l2 ||w||^2 + l1 ||w||_1 in float64; params has shape (p,)."""
        total = 0.0
        if self.l2 == 0.0 and self.l1 == 0.0:
            return total
        with np.errstate(over="ignore"):  # a run that diverges is told so by its loss
            if self.l2 != 0.0:
                total += self.l2 * sum(float(np.sum(np.square(params[s], dtype=np.float64))) for s in _tiles(layout))
            if self.l1 != 0.0:
                total += self.l1 * sum(float(np.sum(np.abs(params[s]), dtype=np.float64)) for s in _tiles(layout))
        return total

    def add_gradient(self, grad: npt.NDArray[Any], params: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
        """Add 2 l2 w, the smooth part's, to the mean gradient in its own memory and return it; both shape (p,)."""
        if self.l2 != 0.0:
            for s in _tiles(layout):
                grad[s] += 2.0 * self.l2 * params[s]
        return grad


def _tiles(layout: Layout) -> Iterator[slice]:
    """Yield the penalized parts of the flat vector in pieces that stay in the cache."""
    for block, s in layout.slices():
        if block.penalized:
            yield from (slice(lo, min(lo + _TILE, s.stop)) for lo in range(s.start, s.stop, _TILE))
